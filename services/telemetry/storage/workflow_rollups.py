"""workflow_rollups: sums of runs, nodes and edges per hour and per day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.telemetry.domain.analytics import (
    EDGES_MAX,
    NODES_MAX,
    EdgeStatistics,
    NodeStatistics,
    Range,
    RunStatistics,
)
from services.telemetry.domain.records import EndedRun
from services.telemetry.storage.statistics import to_node, to_runs, to_took

# Finds finished runs like the metrics do. A watermark ahead of the clock, after the clock was set
# back, is capped at the present; runs missed by this are counted before retention deletes them.
_ENDED: Final[LiteralString] = """
    SELECT e.id, e.completed_at
      FROM workflow_executions e
     WHERE e.completed_at IS NOT NULL AND e.workflow_id IS NOT NULL
       AND e.completed_at > COALESCE(
            (SELECT LEAST(completed_at, clock_timestamp()) FROM telemetry_watermarks
              WHERE name = $1), '-infinity') - $2::interval
       AND NOT EXISTS (SELECT FROM rolled_up_executions r WHERE r.execution_id = e.id)
     ORDER BY e.completed_at, e.id
     LIMIT $3
"""


async def ended_runs(db: Db, *, reader: str, again: timedelta, limit: int) -> list[EndedRun]:
    """Return finished runs that are not summed up yet, ordered by their end."""
    rows = await db.fetch(_ENDED, reader, again, limit)
    return [EndedRun(id=row["id"], completed_at=row["completed_at"]) for row in rows]


_ROLL_UP: Final[LiteralString] = "SELECT roll_up_executions($1)"


async def roll_up(db: Db, execution_ids: Sequence[UUID]) -> int:
    """Sum up finished runs, each once; returns how many were new."""
    return int(await db.fetchval(_ROLL_UP, execution_ids))


_COUNT: Final[LiteralString] = """
    SELECT COALESCE(sum(ended_count), 0)::bigint
      FROM workflow_rollups
     WHERE workflow_id = $1 AND kind = 'run' AND span_s IN (3600, 86400)
       AND starts_at >= $2 AND starts_at < $3 AND ($4 = 0 OR workflow_version = $4)
"""


async def count(db: Db, workflow_id: UUID, span: Range, *, version: int) -> int:
    """Count the summed-up runs that the transaction's caller may see."""
    return int(await db.fetchval(_COUNT, workflow_id, span.start, span.end, version))


# Percentiles as in `metric_rollups`: the middle of the step at which that fraction is reached.
_SUMMED: Final[LiteralString] = """
    WITH part AS MATERIALIZED (
        SELECT * FROM workflow_rollups
         WHERE workflow_id = $1 AND kind = $5 AND span_s IN (3600, 86400)
           AND starts_at >= $2 AND starts_at < $3 AND ($4 = 0 OR workflow_version = $4)),
    place AS (
        SELECT source_node_id, node_id, sum(ended_count)::bigint AS ended,
               sum(completed_count)::bigint AS completed, sum(failed_count)::bigint AS failed,
               sum(flaky_count)::bigint AS flaky, sum(took_us) AS took_us,
               sum(cpu_us)::float8 / 1e6 AS cpu_s,
               COALESCE(sum(size_bytes)::float8 / NULLIF(sum(sized_count), 0), 0) AS mean_bytes,
               min(oldest_at) AS oldest_at
          FROM part
         GROUP BY source_node_id, node_id),
    marked AS (
        SELECT part.source_node_id, part.node_id, each.is_queue, each.mark,
               sum(each.counted) AS counted
          FROM part
         CROSS JOIN LATERAL (
               SELECT false, * FROM unnest(part.duration_marks, part.duration_counts)
                UNION ALL
               SELECT true, * FROM unnest(part.queue_marks, part.queue_counts)
               ) AS each(is_queue, mark, counted)
         GROUP BY 1, 2, 3, 4),
    climbed AS (
        SELECT source_node_id, node_id, is_queue, mark,
               sum(counted) OVER (
                   PARTITION BY source_node_id, node_id, is_queue ORDER BY mark) AS up_to,
               sum(counted) OVER (PARTITION BY source_node_id, node_id, is_queue) AS values
          FROM marked),
    picked AS (
        SELECT source_node_id, node_id, is_queue, asked.fraction,
               metric_value_of(min(climbed.mark)) AS value
          FROM climbed
          JOIN unnest(ARRAY[0.5, 0.95, 0.99]) AS asked(fraction)
            ON climbed.up_to > floor(asked.fraction * (climbed.values - 1))
         GROUP BY 1, 2, 3, 4),
    taken AS (
        SELECT source_node_id, node_id,
               array_agg(value ORDER BY fraction) FILTER (WHERE NOT is_queue) AS took,
               array_agg(value ORDER BY fraction) FILTER (WHERE is_queue) AS queued
          FROM picked
         GROUP BY 1, 2)
    SELECT place.*, taken.took, taken.queued
      FROM place
      LEFT JOIN taken USING (source_node_id, node_id)
     ORDER BY CASE $5 WHEN 'edge' THEN taken.took[2] ELSE place.took_us END DESC NULLS LAST,
              source_node_id, node_id
     LIMIT $6
"""


async def _summed(
    db: Db, workflow_id: UUID, span: Range, version: int, kind: str, limit: int
) -> Sequence[Row]:
    return await db.fetch(_SUMMED, workflow_id, span.start, span.end, version, kind, limit)


async def runs(db: Db, workflow_id: UUID, span: Range, *, version: int) -> RunStatistics | None:
    """Sum up runs; None if there are none that the transaction's caller may see."""
    rows = await _summed(db, workflow_id, span, version, "run", 1)
    return to_runs(rows[0]) if rows else None


async def nodes(db: Db, workflow_id: UUID, span: Range, *, version: int) -> list[NodeStatistics]:
    """Sum up the nodes of the same runs, by total duration, longest first."""
    rows = await _summed(db, workflow_id, span, version, "node", NODES_MAX)
    return [to_node(row) for row in rows]


async def edges(db: Db, workflow_id: UUID, span: Range, *, version: int) -> list[EdgeStatistics]:
    """Sum up the edges of the same runs, slowest first."""
    rows = await _summed(db, workflow_id, span, version, "edge", EDGES_MAX)
    return [_to_edge(row) for row in rows]


def _to_edge(row: Row) -> EdgeStatistics:
    return EdgeStatistics(
        source_node_id=row["source_node_id"],
        target_node_id=row["node_id"],
        count=row["ended"],
        duration=to_took(row["took"]),
        mean_bytes=row["mean_bytes"],
    )
