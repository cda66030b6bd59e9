"""performance_metrics, and how far finished runs have been measured."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

import asyncpg

from services.kit.columns import flat
from services.kit.pg import Db, Row
from services.telemetry.domain.records import FinishedExecution, Metric, Position

_LIST_METRICS: Final[LiteralString] = """
    SELECT id, metric_name, metric_value, metric_unit, workflow_execution_id, tenant_id, recorded_at
      FROM performance_metrics
     WHERE ($1::text IS NULL OR metric_name = $1)
       AND (recorded_at, id) < ($2, $3)
     ORDER BY recorded_at DESC, id DESC
     LIMIT $4
"""

# A run has few: they are found by the run and sorted, not by walking all metrics in order.
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
    """Read a page, newest first, of what the transaction's caller may see."""
    if execution_id is None:
        rows = await db.fetch(_LIST_METRICS, name, *after, limit)
    else:
        rows = await db.fetch(_LIST_METRICS_OF_EXECUTION, name, *after, limit, execution_id)
    return [to_metric(row) for row in rows]


_INSERT_METRICS: Final[LiteralString] = """
    INSERT INTO performance_metrics (id, metric_name, metric_value, metric_unit,
           workflow_execution_id, tenant_id, recorded_at)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::float8[], $4::text[], $5::uuid[], $6::uuid[],
                         $7::timestamptz[])
"""


class RunGone(Exception):  # noqa: N818 - it says what happened
    """A run that metrics are of has been removed meanwhile."""


async def insert_metrics(db: Db, metrics: Sequence[Metric]) -> None:
    """Write metrics in one statement; raises RunGone."""
    try:
        await db.execute(_INSERT_METRICS, *flat(list(zip(*metrics, strict=True))))
    except asyncpg.ForeignKeyViolationError:
        raise RunGone from None


_MEMBERS_REST: Final[LiteralString] = """
    SELECT NOT EXISTS (SELECT FROM engine_members WHERE state = 'live')
"""


async def members_rest(db: Db) -> bool:
    """Say whether no orchestrator holds a lease: then none has a run to end."""
    return bool(await db.fetchval(_MEMBERS_REST))


# A run may be committed after one that ended later, so the last moments before the mark are looked
# at again; the marker metric tells which runs of them were measured already.
_FINISHED_EXECUTIONS: Final[LiteralString] = """
    WITH next AS MATERIALIZED (
        SELECT e.id, e.tenant_id, e.queued_at, e.started_at, e.completed_at, e.resource_usage
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
         LIMIT $4)
    SELECT next.*, n.node_count, n.retry_count
      FROM next
     CROSS JOIN LATERAL (
            SELECT count(*) AS node_count, COALESCE(sum(retry_count), 0) AS retry_count
              FROM node_executions
             WHERE workflow_execution_id = next.id) n
     ORDER BY next.completed_at, next.id
"""


async def finished_executions(
    db: Db, *, reader: str, again: timedelta, marker: str, limit: int
) -> list[FinishedExecution]:
    """Read runs that are over and not measured yet, in the order of their end."""
    rows = await db.fetch(_FINISHED_EXECUTIONS, reader, again, marker, limit)
    return [_to_finished(row) for row in rows]


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
    """Remember how far finished runs have been measured; it never goes back."""
    await db.execute(_ADVANCE_WATERMARK, reader, completed_at, execution_id)


# Two telemetry processes must not measure the same run; the one that waits finds it measured.
_LOCK_READER: Final[LiteralString] = """
    SELECT pg_advisory_xact_lock(hashtext('qflow.telemetry'), hashtext($1))
"""


async def begin_measuring(db: Db, *, reader: str) -> None:
    """Measure alone until the end of the transaction."""
    await db.execute(_LOCK_READER, reader)


def to_metric(row: Row) -> Metric:
    """Read a metric."""
    return Metric(
        id=row["id"],
        name=row["metric_name"],
        value=float(row["metric_value"]),
        unit=row["metric_unit"] or "",
        execution_id=row["workflow_execution_id"],
        tenant_id=row["tenant_id"],
        recorded_at=row["recorded_at"],
    )


def _to_finished(row: Row) -> FinishedExecution:
    usage = row["resource_usage"] or {}
    return FinishedExecution(
        id=row["id"],
        tenant_id=row["tenant_id"],
        queued_at=row["queued_at"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        cpu_us=usage.get("cpu_us"),
        memory_peak_bytes=usage.get("memory_peak_bytes"),
        node_count=row["node_count"],
        retry_count=int(row["retry_count"]),
    )
