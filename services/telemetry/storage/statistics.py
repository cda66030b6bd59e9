"""Statistics of a workflow's runs, from their rows, found through the workflow's index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.telemetry.domain.analytics import (
    EDGES_MAX,
    LOOKED_AT_MAX,
    NODES_MAX,
    EdgeStatistics,
    NodeStatistics,
    Range,
    RunStatistics,
    Took,
)

# Counts up to one above the limit, to detect that there are too many.
_COUNT: Final[LiteralString] = """
    SELECT count(*) FROM (
        SELECT FROM workflow_executions
         WHERE workflow_id = $1 AND created_at >= $2 AND created_at < $3
           AND ($5 = 0 OR workflow_version = $5) AND completed_at IS NOT NULL
         LIMIT $4::integer + 1) AS over
"""


async def count(db: Db, workflow_id: UUID, span: Range, *, version: int) -> int:
    """Count finished runs, up to one above `LOOKED_AT_MAX`."""
    given = (workflow_id, span.start, span.end, LOOKED_AT_MAX, version)
    return int(await db.fetchval(_COUNT, *given))


_RUNS: Final[LiteralString] = """
    WITH looked_at AS (
        SELECT status, created_at, queued_at, started_at, completed_at, resource_usage
          FROM workflow_executions
         WHERE workflow_id = $1 AND created_at >= $2 AND created_at < $3
           AND ($5 = 0 OR workflow_version = $5)
         ORDER BY created_at DESC, id DESC
         LIMIT $4)
    SELECT count(completed_at) AS ended,
           count(*) FILTER (WHERE status = 'completed') AS completed,
           count(*) FILTER (WHERE status = 'failed') AS failed,
           percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
               ORDER BY date_part('epoch', completed_at - started_at) * 1000)
               FILTER (WHERE status = 'completed' AND started_at IS NOT NULL) AS took,
           percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
               ORDER BY date_part('epoch', started_at - queued_at) * 1000)
               FILTER (WHERE started_at IS NOT NULL) AS queued,
           COALESCE(sum((resource_usage ->> 'cpu_us')::float8), 0) / 1e6 AS cpu_s,
           min(created_at) AS oldest_at
      FROM looked_at
"""


async def runs(db: Db, workflow_id: UUID, span: Range, *, version: int) -> RunStatistics | None:
    """Aggregate runs; None if there are none that the transaction's caller may see."""
    row = await db.fetchrow(_RUNS, workflow_id, span.start, span.end, LOOKED_AT_MAX, version)
    return None if row is None or row["oldest_at"] is None else to_runs(row)


_NODES: Final[LiteralString] = """
    WITH looked_at AS (
        SELECT id
          FROM workflow_executions
         WHERE workflow_id = $1 AND created_at >= $2 AND created_at < $3
           AND ($5 = 0 OR workflow_version = $5)
         ORDER BY created_at DESC, id DESC
         LIMIT $4)
    SELECT COALESCE(n.definition_node_id, n.node_id) AS node_id,
           count(*) FILTER (WHERE n.status IN ('completed', 'failed', 'cancelled')) AS ended,
           count(*) FILTER (WHERE n.status = 'completed') AS completed,
           count(*) FILTER (WHERE n.status = 'failed') AS failed,
           count(*) FILTER (WHERE n.status = 'completed' AND n.retry_count > 0) AS flaky,
           percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
               ORDER BY date_part('epoch', n.completed_at - n.started_at) * 1000)
               FILTER (WHERE n.status = 'completed' AND n.started_at IS NOT NULL) AS took,
           COALESCE(sum((n.resource_usage ->> 'cpu_us')::float8), 0) / 1e6 AS cpu_s
      FROM looked_at
      JOIN node_executions n ON n.workflow_execution_id = looked_at.id
     WHERE n.started_at IS NOT NULL AND n.completed_at IS NOT NULL
     GROUP BY 1
     ORDER BY sum(n.completed_at - n.started_at) DESC, 1
     LIMIT $6
"""


async def nodes(db: Db, workflow_id: UUID, span: Range, *, version: int) -> list[NodeStatistics]:
    """Aggregate the nodes of the same runs, by total duration, longest first."""
    given = (workflow_id, span.start, span.end, LOOKED_AT_MAX, version, NODES_MAX)
    return [to_node(row) for row in await db.fetch(_NODES, *given)]


_EDGES: Final[LiteralString] = """
    WITH looked_at AS (
        SELECT id
          FROM workflow_executions
         WHERE workflow_id = $1 AND created_at >= $2 AND created_at < $3
           AND ($5 = 0 OR workflow_version = $5)
         ORDER BY created_at DESC, id DESC
         LIMIT $4),
    carried AS (
        SELECT regexp_replace(f.source_node_id, '[[#].*', '') AS source_node_id,
               regexp_replace(f.target_node_id, '[[#].*', '') AS target_node_id,
               f.data_size_bytes,
               (COALESCE(f.serialization_time_us, 0) + COALESCE(f.transfer_time_us, 0))::float8
                   / 1000 AS took_ms
          FROM looked_at
          JOIN node_data_flow f ON f.workflow_execution_id = looked_at.id)
    SELECT source_node_id, target_node_id, count(*) AS values,
           percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY took_ms) AS took,
           COALESCE(avg(data_size_bytes), 0)::float8 AS mean_bytes
      FROM carried
     GROUP BY source_node_id, target_node_id
     ORDER BY (percentile_cont(0.95) WITHIN GROUP (ORDER BY took_ms)) DESC,
              source_node_id, target_node_id
     LIMIT $6
"""


async def edges(db: Db, workflow_id: UUID, span: Range, *, version: int) -> list[EdgeStatistics]:
    """Aggregate the edges of the same runs, slowest first."""
    given = (workflow_id, span.start, span.end, LOOKED_AT_MAX, version, EDGES_MAX)
    return [_to_edge(row) for row in await db.fetch(_EDGES, *given)]


def to_took(percentiles: Sequence[float | None] | None) -> Took | None:
    """Convert three percentiles; None if nothing was measured."""
    if not percentiles or percentiles[0] is None:
        return None
    p50, p95, p99 = (float(each or 0) for each in percentiles)
    return Took(p50_ms=p50, p95_ms=p95, p99_ms=p99)


def to_runs(row: Row) -> RunStatistics:
    """Build the statistics of runs from their row."""
    return RunStatistics(
        ended=row["ended"],
        completed=row["completed"],
        failed=row["failed"],
        duration=to_took(row["took"]),
        queue_time=to_took(row["queued"]),
        cpu_s=row["cpu_s"],
        oldest_at=row["oldest_at"],
    )


def to_node(row: Row) -> NodeStatistics:
    """Build the statistics of a node from its row."""
    return NodeStatistics(
        node_id=row["node_id"],
        ended=row["ended"],
        completed=row["completed"],
        failed=row["failed"],
        flaky=row["flaky"],
        duration=to_took(row["took"]),
        cpu_s=row["cpu_s"],
    )


def _to_edge(row: Row) -> EdgeStatistics:
    return EdgeStatistics(
        source_node_id=row["source_node_id"],
        target_node_id=row["target_node_id"],
        count=row["values"],
        duration=to_took(row["took"]),
        mean_bytes=row["mean_bytes"],
    )
