"""Package rules of tenants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Pool
from services.runner.domain.package_rules import NO_RULES, PackageRules


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRules:
    """The rules of a tenant, and who set them."""

    allowed: Sequence[str]
    denied: Sequence[str]
    release_age_days_min: int
    revision: int
    updated_by: UUID
    updated_at: datetime


# For attempts, by the tenant of the run.
_OF_TENANT: Final[LiteralString] = """
    SELECT allowed, denied, release_age_days_min FROM package_rules WHERE tenant_id = $1
"""


async def of_tenant(pool: Pool, tenant_id: UUID) -> PackageRules:
    """Return the rules of a tenant; without any, everything is allowed."""
    row = await pool.fetchrow(_OF_TENANT, tenant_id)
    return NO_RULES if row is None else PackageRules(**row)


_GET: Final[LiteralString] = """
    SELECT allowed, denied, release_age_days_min, revision, updated_by, updated_at
      FROM package_rules WHERE tenant_id = current_tenant_id()
"""


async def get(db: Db) -> StoredRules | None:
    """Return the rules of the caller's tenant; None without any."""
    row = await db.fetchrow(_GET)
    return None if row is None else StoredRules(**row)


_INSERT: Final[LiteralString] = """
    INSERT INTO package_rules (allowed, denied, release_age_days_min)
    VALUES ($1, $2, $3)
        ON CONFLICT (tenant_id) DO NOTHING
 RETURNING allowed, denied, release_age_days_min, revision, updated_by, updated_at
"""


async def insert(db: Db, rules: PackageRules) -> StoredRules | None:
    """Insert the first rules of the caller's tenant; None if it has some already."""
    row = await db.fetchrow(
        _INSERT, list(rules.allowed), list(rules.denied), rules.release_age_days_min
    )
    return None if row is None else StoredRules(**row)


_UPDATE: Final[LiteralString] = """
    UPDATE package_rules
       SET allowed = $1, denied = $2, release_age_days_min = $3, revision = revision + 1,
           updated_by = current_user_id()
     WHERE tenant_id = current_tenant_id() AND revision = $4
 RETURNING allowed, denied, release_age_days_min, revision, updated_by, updated_at
"""


async def update(db: Db, rules: PackageRules, revision: int) -> StoredRules | None:
    """Replace the rules of the caller's tenant; None if they are not at this revision."""
    row = await db.fetchrow(
        _UPDATE, list(rules.allowed), list(rules.denied), rules.release_age_days_min, revision
    )
    return None if row is None else StoredRules(**row)
