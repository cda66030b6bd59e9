"""retention_rules: tenants' own retention, shorter than the deployment's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.telemetry.domain.retention import TenantRule

_LIST: Final[LiteralString] = "SELECT subject, keep_days, revision FROM retention_rules"


async def list_rules(db: Db) -> list[TenantRule]:
    """Return the rules of the caller's tenant."""
    return [_to_rule(row) for row in await db.fetch(_LIST)]


_GET: Final[LiteralString] = """
    SELECT subject, keep_days, revision FROM retention_rules WHERE subject = $1 FOR UPDATE
"""


async def get_rule(db: Db, subject: str) -> TenantRule | None:
    """Lock and return a rule of the caller's tenant; None without one."""
    row = await db.fetchrow(_GET, subject)
    return None if row is None else _to_rule(row)


_SET: Final[LiteralString] = """
    INSERT INTO retention_rules AS kept (subject, keep_days) VALUES ($1, $2)
    ON CONFLICT (tenant_id, subject) DO UPDATE
       SET keep_days = EXCLUDED.keep_days, revision = kept.revision + 1,
           updated_by = EXCLUDED.updated_by, updated_at = EXCLUDED.updated_at
 RETURNING subject, keep_days, revision
"""


async def set_rule(db: Db, subject: str, *, keep_days: int) -> TenantRule:
    """Set a rule of the caller's tenant."""
    row = await db.fetchrow(_SET, subject, keep_days)
    assert row is not None
    return _to_rule(row)


_DELETE: Final[LiteralString] = "DELETE FROM retention_rules WHERE subject = $1"


async def delete_rule(db: Db, subject: str) -> None:
    """Delete a rule of the caller's tenant, if there is one."""
    await db.execute(_DELETE, subject)


_OF_ALL: Final[LiteralString] = """
    SELECT tenant_id, keep_days FROM retention_rules WHERE subject = $1 ORDER BY tenant_id
"""


async def rules_of_all(db: Db, subject: str) -> Sequence[tuple[UUID, int]]:
    """Return the tenants with a rule for a kind, with their days."""
    return [(row["tenant_id"], row["keep_days"]) for row in await db.fetch(_OF_ALL, subject)]


def _to_rule(row: Row) -> TenantRule:
    return TenantRule(subject=row["subject"], keep_days=row["keep_days"], revision=row["revision"])
