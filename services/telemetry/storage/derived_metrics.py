"""Metrics of runs, nodes and sandboxes, derived by SQL where their rows are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

import asyncpg

from services.kit.pg import Db
from services.telemetry.domain.metrics import MARKER, METRICS_OF_RUN

# Missing or non-numeric values are skipped, not guessed: one odd row must not block all others. Ids
# are passed in, in time order: random ones would be scattered over the index.
_OF_RUNS: Final[LiteralString] = """
    INSERT INTO performance_metrics (id, metric_name, metric_value, metric_unit,
           workflow_execution_id, tenant_id, recorded_at)
    SELECT ($2::uuid[])[$4 * run.number + measured.number], measured.name,
           GREATEST(measured.value, 0), measured.unit, run.id, run.tenant_id, $3
      FROM (
            SELECT id, tenant_id, queued_at, started_at, completed_at, resource_usage,
                   row_number() OVER (ORDER BY completed_at, id) - 1 AS number
              FROM workflow_executions
             WHERE id = ANY($1::uuid[])) AS run
     CROSS JOIN LATERAL (
            SELECT count(*) AS node_count, COALESCE(sum(retry_count), 0) AS retry_count
              FROM node_executions
             WHERE workflow_execution_id = run.id) AS n
     CROSS JOIN LATERAL (VALUES
            (1, $5, 'count', n.node_count::numeric),
            (2, 'execution_retry_count', 'count', n.retry_count::numeric),
            (3, 'execution_queue_ms', 'ms', 1000 * extract(
                epoch FROM COALESCE(run.started_at, run.completed_at) - run.queued_at)),
            (4, 'execution_duration_ms', 'ms', 1000 * extract(
                epoch FROM run.completed_at - run.started_at)),
            (5, 'execution_cpu_seconds', 's', CASE
                WHEN jsonb_typeof(run.resource_usage -> 'cpu_us') = 'number'
                THEN (run.resource_usage ->> 'cpu_us')::numeric / 1000000 END),
            (6, 'execution_memory_peak_bytes', 'bytes', CASE
                WHEN jsonb_typeof(run.resource_usage -> 'memory_peak_bytes') = 'number'
                THEN (run.resource_usage ->> 'memory_peak_bytes')::numeric END)
           ) AS measured(number, name, unit, value)
     WHERE measured.value IS NOT NULL
"""


class RunGone(Exception):  # noqa: N818 - it says what happened
    """A measured run has been removed meanwhile."""


async def insert_of_runs(
    db: Db, execution_ids: Sequence[UUID], *, new_id: Callable[[], UUID], at: datetime
) -> None:
    """Insert the metrics of finished runs in one statement; raises RunGone if one was removed."""
    ids = [new_id() for _ in range(METRICS_OF_RUN * len(execution_ids))]
    try:
        await _write_planned_now(db, _OF_RUNS, execution_ids, ids, at, METRICS_OF_RUN, MARKER)
    except asyncpg.ForeignKeyViolationError:
        raise RunGone from None


_OF_NODES: Final[LiteralString] = """
    INSERT INTO performance_metrics (metric_name, metric_value, metric_unit,
           workflow_execution_id, node_execution_id, tenant_id, recorded_at)
    SELECT measured.name, GREATEST(measured.value, 0), measured.unit, run.id, node.id,
           run.tenant_id, $2
      FROM workflow_executions run
      JOIN node_executions node ON node.workflow_execution_id = run.id
     CROSS JOIN LATERAL (VALUES
            ('node_duration_ms', 'ms',
             (date_part('epoch', node.completed_at - node.started_at) * 1000)::numeric),
            ('node_cpu_seconds', 's', (node.resource_usage ->> 'cpu_us')::numeric / 1000000),
            ('node_memory_peak_bytes', 'bytes',
             (node.resource_usage ->> 'memory_peak_bytes')::numeric)
           ) AS measured(name, unit, value)
     WHERE run.id = ANY($1::uuid[]) AND node.completed_at IS NOT NULL
       AND node.started_at IS NOT NULL AND measured.value IS NOT NULL
"""


async def insert_of_nodes(db: Db, execution_ids: Sequence[UUID], *, at: datetime) -> None:
    """Insert the metrics of the runs' nodes that were started."""
    await _write_planned_now(db, _OF_NODES, execution_ids, at)


# A stopped sandbox is measured once: its metrics exist as long as its row.
_OF_SANDBOXES: Final[LiteralString] = """
    WITH stopped AS (
        SELECT c.id, c.tenant_id, c.started_at, c.stopped_at, c.resource_usage
          FROM containers c
         WHERE c.stopped_at > COALESCE(
                (SELECT completed_at FROM telemetry_watermarks WHERE name = $1), '-infinity')
                - $2::interval
           AND c.started_at IS NOT NULL
           AND NOT EXISTS (
                SELECT FROM performance_metrics m
                 WHERE m.container_id = c.id)
         ORDER BY c.stopped_at, c.id
         LIMIT $3),
    written AS (
        INSERT INTO performance_metrics (metric_name, metric_value, metric_unit, container_id,
               tenant_id, recorded_at)
        SELECT measured.name, GREATEST(measured.value, 0), measured.unit, stopped.id,
               stopped.tenant_id, $4
          FROM stopped
         CROSS JOIN LATERAL (VALUES
                ('container_lifetime_ms', 'ms',
                 (date_part('epoch', stopped_at - started_at) * 1000)::numeric),
                ('container_cpu_seconds', 's', (resource_usage ->> 'cpu_us')::numeric / 1000000),
                ('container_memory_peak_bytes', 'bytes',
                 (resource_usage ->> 'memory_peak_bytes')::numeric)
               ) AS measured(name, unit, value)
         WHERE measured.value IS NOT NULL)
    SELECT count(*) AS sandboxes, max(stopped_at) AS last_at FROM stopped
"""


async def insert_of_sandboxes(
    db: Db, *, reader: str, again: timedelta, limit: int, at: datetime
) -> tuple[int, datetime | None]:
    """Insert the metrics of stopped sandboxes; returns how many, and the last stop time."""
    row = await db.fetchrow(_OF_SANDBOXES, reader, again, limit, at)
    assert row is not None
    return row["sandboxes"], row["last_at"]


_ANY_STOPPED: Final[LiteralString] = """
    SELECT EXISTS (
        SELECT FROM containers c
         WHERE c.stopped_at > COALESCE(
                (SELECT completed_at FROM telemetry_watermarks WHERE name = $1), '-infinity')
                - $2::interval
           AND c.started_at IS NOT NULL
           AND NOT EXISTS (SELECT FROM performance_metrics m WHERE m.container_id = c.id))
"""


async def any_stopped(db: Db, *, reader: str, again: timedelta) -> bool:
    """Return whether there is a sandbox to measure."""
    return bool(await db.fetchval(_ANY_STOPPED, reader, again))


async def _write_planned_now(db: Db, sql: LiteralString, *arguments: object) -> None:
    """Execute a statement prepared just now, so that it is planned for the tables' present sizes.

    Disabling generic plans for the transaction instead would also replan the foreign-key check of
    every row.
    """
    statement = await db.prepare(sql)
    await statement.fetch(*arguments)
