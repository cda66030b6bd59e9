"""What a tenant may have of environments, as the orchestrator keeps it."""

from __future__ import annotations

from typing import Final, LiteralString, NamedTuple
from uuid import UUID

from services.kit.pg import Pool


class EnvironmentQuota(NamedTuple):
    """How many environments a tenant may have on a disk, and how large in sum; None: any."""

    environments: int | None = None
    size_bytes: int | None = None


NO_QUOTA: Final = EnvironmentQuota()

_OF_TENANT: Final[LiteralString] = """
    SELECT environments, environment_bytes FROM tenant_quotas WHERE tenant_id = $1
"""


async def of_tenant(pool: Pool, tenant_id: UUID) -> EnvironmentQuota:
    """Give a tenant's quota as it is now."""
    row = await pool.fetchrow(_OF_TENANT, tenant_id)
    return NO_QUOTA if row is None else EnvironmentQuota(*row)
