"""Quotas of tenants for administrators of the deployment, under row-level security."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The amounts of a quota; None means unlimited."""

    executions_running: int | None = None
    executions_per_day: int | None = None
    nodes_per_day: int | None = None
    cpu_s_per_day: int | None = None
    gb_s_per_day: int | None = None
    execution_nodes: int | None = None
    execution_cpu_s: int | None = None
    execution_gb_s: int | None = None
    moved_bytes_per_day: int | None = None
    execution_moved_bytes: int | None = None
    stored_bytes: int | None = None
    stored_files: int | None = None
    environments: int | None = None
    environment_bytes: int | None = None


NO_NUMBERS: Final = Numbers()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredQuota:
    """A tenant's quota; one that was never set has revision 0 and limits nothing."""

    tenant_id: UUID
    numbers: Numbers = NO_NUMBERS
    revision: int = 0
    updated_by: UUID | None = None
    updated_at: datetime | None = None

    @property
    def etag(self) -> str:
        """Changes with every change; empty if it was never set."""
        return str(self.revision) if self.revision else ""


_GET: Final[LiteralString] = """
    SELECT tenant_id, executions_running, executions_per_day, nodes_per_day, cpu_s_per_day,
           gb_s_per_day, execution_nodes, execution_cpu_s, execution_gb_s, moved_bytes_per_day,
           execution_moved_bytes, stored_bytes, stored_files, environments, environment_bytes,
           revision, updated_by, updated_at
      FROM tenant_quotas WHERE tenant_id = $1
"""


async def get_quota(db: Db, tenant_id: UUID) -> StoredQuota:
    """Return a tenant's quota."""
    row = await db.fetchrow(_GET, tenant_id)
    return StoredQuota(tenant_id=tenant_id) if row is None else _to_quota(row)


_LOCK: Final[LiteralString] = """
    SELECT pg_advisory_xact_lock(hashtextextended('quota ' || $1::text, 0))
"""


async def lock(db: Db, tenant_id: UUID) -> None:
    """Lock a tenant's quota until the transaction ends: no run of it can begin meanwhile."""
    await db.execute(_LOCK, str(tenant_id))


_SET: Final[LiteralString] = """
    INSERT INTO tenant_quotas AS quota
           (tenant_id, executions_running, executions_per_day, nodes_per_day, cpu_s_per_day,
            gb_s_per_day, execution_nodes, execution_cpu_s, execution_gb_s, moved_bytes_per_day,
            execution_moved_bytes, stored_bytes, stored_files, environments, environment_bytes)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
        ON CONFLICT (tenant_id) DO UPDATE
       SET executions_running = EXCLUDED.executions_running,
           executions_per_day = EXCLUDED.executions_per_day,
           nodes_per_day = EXCLUDED.nodes_per_day, cpu_s_per_day = EXCLUDED.cpu_s_per_day,
           gb_s_per_day = EXCLUDED.gb_s_per_day, execution_nodes = EXCLUDED.execution_nodes,
           execution_cpu_s = EXCLUDED.execution_cpu_s, execution_gb_s = EXCLUDED.execution_gb_s,
           moved_bytes_per_day = EXCLUDED.moved_bytes_per_day,
           execution_moved_bytes = EXCLUDED.execution_moved_bytes,
           stored_bytes = EXCLUDED.stored_bytes, stored_files = EXCLUDED.stored_files,
           environments = EXCLUDED.environments, environment_bytes = EXCLUDED.environment_bytes,
           revision = quota.revision + 1, updated_by = current_user_id(),
           updated_at = clock_timestamp()
 RETURNING tenant_id, executions_running, executions_per_day, nodes_per_day, cpu_s_per_day,
           gb_s_per_day, execution_nodes, execution_cpu_s, execution_gb_s, moved_bytes_per_day,
           execution_moved_bytes, stored_bytes, stored_files, environments, environment_bytes,
           revision, updated_by, updated_at
"""


async def set_quota(db: Db, tenant_id: UUID, numbers: Numbers) -> StoredQuota:
    """Replace a tenant's quota."""
    row = await db.fetchrow(_SET, tenant_id, *astuple(numbers))  # in the order of the statement
    assert row is not None
    return _to_quota(row)


def _to_quota(row: Row) -> StoredQuota:
    said = dict(row)
    kept = {name: said.pop(name) for name in ("tenant_id", "revision", "updated_by", "updated_at")}
    return StoredQuota(numbers=Numbers(**said), **kept)
