"""performance_metrics, and watermarks of how far finished runs have been measured."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.telemetry.domain.records import EndedRun, Metric, Position

_LIST_METRICS: Final[LiteralString] = """
    SELECT id, metric_name, metric_value, metric_unit, workflow_execution_id, tenant_id, recorded_at
      FROM performance_metrics
     WHERE ($1::text IS NULL OR metric_name = $1)
       AND (recorded_at, id) < ($2, $3)
     ORDER BY recorded_at DESC, id DESC
     LIMIT $4
"""

# A run has few metrics: they are found through the run's index and sorted.
_LIST_METRICS_OF_EXECUTION: Final[LiteralString] = """
    SELECT id, metric_name, metric_value, metric_unit, workflow_execution_id, tenant_id, recorded_at
      FROM performance_metrics
     WHERE workflow_execution_id = $5
       AND ($1::text IS NULL OR metric_name = $1)
       AND (recorded_at, id) < ($2, $3)
     ORDER BY recorded_at DESC, id DESC
     LIMIT $4
"""


async def list_metrics(
    db: Db,
    *,
    execution_id: UUID | None,
    name: str | None,
    after: Position,
    limit: int,
) -> list[Metric]:
    """Return a page, newest first, of what the transaction's caller may see."""
    if execution_id is None:
        rows = await db.fetch(_LIST_METRICS, name, *after, limit)
    else:
        rows = await db.fetch(_LIST_METRICS_OF_EXECUTION, name, *after, limit, execution_id)
    return [to_metric(row) for row in rows]


_MEMBERS_REST: Final[LiteralString] = """
    SELECT NOT EXISTS (SELECT FROM engine_members WHERE state = 'live')
"""


async def members_rest(db: Db) -> bool:
    """Return whether no orchestrator holds a lease, so that no run can finish."""
    return bool(await db.fetchval(_MEMBERS_REST))


# A run may be committed after one that ended later, so a span before the watermark is read again;
# the marker metric shows which of its runs are measured already.
_UNMEASURED: Final[LiteralString] = """
    SELECT e.id, e.completed_at
      FROM workflow_executions e
     WHERE e.completed_at IS NOT NULL
       AND e.completed_at > COALESCE(
            (SELECT completed_at FROM telemetry_watermarks WHERE name = $1), '-infinity')
            - $2::interval
       AND e.purge_started_at IS NULL
       AND NOT EXISTS (
            SELECT FROM performance_metrics m
             WHERE m.workflow_execution_id = e.id AND m.metric_name = $3)
     ORDER BY e.completed_at, e.id
     LIMIT $4
"""


async def unmeasured_runs(
    db: Db, *, reader: str, again: timedelta, marker: str, limit: int
) -> list[EndedRun]:
    """Return finished runs without metrics, ordered by their end."""
    rows = await db.fetch(_UNMEASURED, reader, again, marker, limit)
    return [EndedRun(id=row["id"], completed_at=row["completed_at"]) for row in rows]


_ADVANCE_WATERMARK: Final[LiteralString] = """
    INSERT INTO telemetry_watermarks (name, completed_at, execution_id) VALUES ($1, $2, $3)
    ON CONFLICT (name) DO UPDATE
       SET completed_at = EXCLUDED.completed_at, execution_id = EXCLUDED.execution_id,
           updated_at = now()
     WHERE telemetry_watermarks.completed_at < EXCLUDED.completed_at
"""


async def advance_watermark(
    db: Db, *, reader: str, completed_at: datetime, execution_id: UUID | None
) -> None:
    """Advance a watermark; it never moves back."""
    await db.execute(_ADVANCE_WATERMARK, reader, completed_at, execution_id)


# Prevents two telemetry processes from measuring the same run; the second then finds it measured.
_LOCK_READER: Final[LiteralString] = """
    SELECT pg_advisory_xact_lock(hashtext('qflow.telemetry'), hashtext($1))
"""


async def begin_measuring(db: Db, *, reader: str) -> None:
    """Lock measuring until the transaction ends."""
    await db.execute(_LOCK_READER, reader)


def to_metric(row: Row) -> Metric:
    """Build a metric from its row."""
    return Metric(
        id=row["id"],
        name=row["metric_name"],
        value=float(row["metric_value"]),
        unit=row["metric_unit"] or "",
        execution_id=row["workflow_execution_id"],
        tenant_id=row["tenant_id"],
        recorded_at=row["recorded_at"],
    )
