"""Quotas as the engine reads them, budgets of runs, and what tenants used today."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.orchestrator.domain.amounts import Amounts
from services.orchestrator.domain.ledger import Budget, Quota

_US: Final = 1_000_000

_QUOTAS: Final[LiteralString] = """
    SELECT tenant_id, nodes_per_day, cpu_s_per_day, gb_s_per_day, moved_bytes_per_day,
           execution_nodes, execution_cpu_s, execution_gb_s, execution_moved_bytes
      FROM tenant_quotas
"""


async def get_quotas(db: Db) -> dict[UUID, Quota]:
    """Return the quotas of all tenants that have one."""
    return {row["tenant_id"]: _to_quota(row) for row in await db.fetch(_QUOTAS)}


def _to_quota(row: Row) -> Quota:
    return Quota(
        per_day=Amounts(
            row["nodes_per_day"],
            _us(row["cpu_s_per_day"]),
            _us(row["gb_s_per_day"]),
            row["moved_bytes_per_day"],
        ),
        per_run=Amounts(
            row["execution_nodes"],
            _us(row["execution_cpu_s"]),
            _us(row["execution_gb_s"]),
            row["execution_moved_bytes"],
        ),
    )


def _us(seconds: int | None) -> int | None:
    return None if seconds is None else seconds * _US


_TENANT: Final[LiteralString] = "SELECT EXISTS (SELECT FROM tenants WHERE id = $1)"


async def tenant_exists(db: Db, tenant_id: UUID) -> bool:
    """Return whether there is such a tenant."""
    return bool(await db.fetchval(_TENANT, tenant_id))


_BUDGETS: Final[LiteralString] = """
    SELECT execution_id, nodes, cpu_us, gb_us, moved_bytes, nodes_used, cpu_us_used, gb_us_used,
           moved_bytes_used
      FROM execution_budgets WHERE execution_id = ANY($1)
"""


async def get_budgets(db: Db, run_ids: Collection[UUID]) -> dict[UUID, Budget]:
    """Return the budgets of those runs that have one."""
    return {
        row["execution_id"]: Budget(
            Amounts(row["nodes"], row["cpu_us"], row["gb_us"], row["moved_bytes"]),
            row["nodes_used"],
            row["cpu_us_used"],
            row["gb_us_used"],
            row["moved_bytes_used"],
        )
        for row in await db.fetch(_BUDGETS, list(run_ids))
    }


@dataclass(frozen=True, slots=True)
class Refused:
    """The quota of which too little is left for a run, its limit, and how much is taken."""

    by: str
    most: int
    used: int


_RESERVE: Final[LiteralString] = """
    SELECT refused_by, most, used, held_nodes, held_cpu_us, held_gb_us, held_moved_bytes
      FROM engine_reserve($1, $2, $3, $4, $5, $6, $7)
"""


async def reserve(
    db: Db, tenant_id: UUID, member_id: UUID, run_id: UUID, wanted: Amounts
) -> Budget | Refused:
    """Reserve a run's budget from its tenant's quota, all or nothing."""
    row = await db.fetchrow(_RESERVE, tenant_id, member_id, run_id, *wanted)
    assert row is not None
    if row["refused_by"] is not None:
        return Refused(row["refused_by"], row["most"], row["used"])
    return Budget(
        Amounts(row["held_nodes"], row["held_cpu_us"], row["held_gb_us"], row["held_moved_bytes"])
    )


# The run was not started, so it does not count for the day either.
_RELEASE: Final[LiteralString] = """
    WITH gone AS (
        DELETE FROM execution_budgets WHERE execution_id = $1 RETURNING tenant_id, created_at
    )
    UPDATE tenant_usage AS used SET executions = used.executions - 1
      FROM gone
     WHERE used.tenant_id = gone.tenant_id AND used.member_id = $2 AND used.executions > 0
       AND used.day = (gone.created_at AT TIME ZONE 'UTC')::date
"""


async def release(db: Db, member_id: UUID, run_id: UUID) -> None:
    """Release the budget of a run that was not started."""
    await db.execute(_RELEASE, run_id, member_id)


# Including what is reserved for open runs with a budget.
_USED: Final[LiteralString] = """
    SELECT tenant_id, sum(nodes)::bigint AS nodes, sum(cpu_us)::bigint AS cpu_us,
           sum(gb_us)::bigint AS gb_us, sum(moved_bytes)::bigint AS moved_bytes
      FROM (
        SELECT tenant_id, nodes, cpu_us, gb_us, moved_bytes FROM tenant_usage
         WHERE tenant_id = ANY($1) AND day = (clock_timestamp() AT TIME ZONE 'UTC')::date
         UNION ALL
        SELECT tenant_id, GREATEST(0, nodes - nodes_used), GREATEST(0, cpu_us - cpu_us_used),
               GREATEST(0, gb_us - gb_us_used), GREATEST(0, moved_bytes - moved_bytes_used)
          FROM execution_budgets WHERE tenant_id = ANY($1) AND NOT over
      ) AS each
     GROUP BY tenant_id
"""


async def get_used(db: Db, tenant_ids: Collection[UUID]) -> dict[UUID, Amounts]:
    """Return what tenants used today, including what is reserved for open runs."""
    rows = await db.fetch(_USED, list(tenant_ids))
    return {
        row["tenant_id"]: Amounts(row["nodes"], row["cpu_us"], row["gb_us"], row["moved_bytes"])
        for row in rows
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a tenant is running, used today, and stores."""

    executions_running: int = 0
    executions: int = 0
    nodes: int = 0
    cpu_us: int = 0
    gb_us: int = 0
    moved_bytes: int = 0
    stored_bytes: int = 0
    stored_files: int = 0
    environments: int = 0
    environment_bytes: int = 0


_USAGE: Final[LiteralString] = """
    SELECT (SELECT count(*) FROM workflow_executions AS run
             WHERE run.tenant_id = $1 AND run.status IN ('pending', 'running', 'paused')
               AND run.relation IS DISTINCT FROM 'sub_workflow') AS executions_running,
           COALESCE(sum(executions), 0)::bigint AS executions,
           COALESCE(sum(nodes), 0)::bigint AS nodes,
           COALESCE(sum(cpu_us), 0)::bigint AS cpu_us,
           COALESCE(sum(gb_us), 0)::bigint AS gb_us,
           COALESCE(sum(moved_bytes), 0)::bigint AS moved_bytes,
           COALESCE((SELECT bytes FROM file_usage WHERE tenant_id = $1), 0) AS stored_bytes,
           COALESCE((SELECT files FROM file_usage WHERE tenant_id = $1), 0) AS stored_files,
           (SELECT count(*) FROM environments
             WHERE tenant_id = $1 AND state = 'ready') AS environments,
           (SELECT COALESCE(sum(size_bytes), 0)::bigint FROM environments
             WHERE tenant_id = $1 AND state = 'ready') AS environment_bytes
      FROM tenant_usage
     WHERE tenant_id = $1 AND day = (clock_timestamp() AT TIME ZONE 'UTC')::date
"""


async def get_usage(db: Db, tenant_id: UUID) -> Usage:
    """Return what a tenant is running, used since midnight UTC while it had a quota, and stores."""
    row = await db.fetchrow(_USAGE, tenant_id)
    assert row is not None
    return Usage(**row)
