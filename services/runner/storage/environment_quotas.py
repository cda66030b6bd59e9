"""Tenants' quotas of environments, which the orchestrator writes."""

from __future__ import annotations

from typing import Final, LiteralString, NamedTuple
from uuid import UUID

from services.kit.pg import Pool


class EnvironmentQuota(NamedTuple):
    """How many environments a tenant may have on one disk, and their total size; None: no limit."""

    environments: int | None = None
    size_bytes: int | None = None


NO_QUOTA: Final = EnvironmentQuota()

_OF_TENANT: Final[LiteralString] = """
    SELECT environments, environment_bytes FROM tenant_quotas WHERE tenant_id = $1
"""


async def of_tenant(pool: Pool, tenant_id: UUID) -> EnvironmentQuota:
    """Return a tenant's current quota."""
    row = await pool.fetchrow(_OF_TENANT, tenant_id)
    return NO_QUOTA if row is None else EnvironmentQuota(*row)
