"""Metrics of nodes and of sandboxes, derived where their rows are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db

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
    """Write what the nodes of runs took; of those that began."""
    await db.execute(_OF_NODES, execution_ids, at)


# One that stopped is measured once: the metric is of it until its row goes.
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
    """Write what sandboxes took that stopped; tells how many, and when the last of them did."""
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
    """Tell whether there is a sandbox to measure."""
    return bool(await db.fetchval(_ANY_STOPPED, reader, again))
