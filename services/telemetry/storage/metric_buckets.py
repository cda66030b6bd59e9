"""Exact time buckets of performance_metrics; an index holds the values of each name."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.telemetry.domain.analytics import BUCKETS_MAX, Bucket, Range

# Buckets are aligned to the start of the range, so their number is bounded by the range's length.
_BUCKETS: Final[LiteralString] = """
    SELECT date_bin($4, m.recorded_at, $2) AS starts_at, count(*) AS values,
           sum(m.metric_value)::float8 AS sum, min(m.metric_value)::float8 AS min,
           max(m.metric_value)::float8 AS max,
           percentile_cont($5::float8[]) WITHIN GROUP (ORDER BY m.metric_value::float8)
               AS percentiles
      FROM performance_metrics m
     WHERE m.metric_name = $1 AND m.recorded_at >= $2 AND m.recorded_at < $3
     GROUP BY starts_at
     ORDER BY starts_at
     LIMIT $6
"""

_BUCKETS_OF_EXECUTION: Final[LiteralString] = """
    SELECT date_bin($4, m.recorded_at, $2) AS starts_at, count(*) AS values,
           sum(m.metric_value)::float8 AS sum, min(m.metric_value)::float8 AS min,
           max(m.metric_value)::float8 AS max,
           percentile_cont($5::float8[]) WITHIN GROUP (ORDER BY m.metric_value::float8)
               AS percentiles
      FROM performance_metrics m
     WHERE m.metric_name = $1 AND m.recorded_at >= $2 AND m.recorded_at < $3
       AND m.workflow_execution_id = $7
       AND ($8::uuid IS NULL OR EXISTS (
            SELECT FROM workflow_executions e
             WHERE e.id = m.workflow_execution_id AND e.workflow_id = $8))
     GROUP BY starts_at
     ORDER BY starts_at
     LIMIT $6
"""

_BUCKETS_OF_WORKFLOW: Final[LiteralString] = """
    SELECT date_bin($4, m.recorded_at, $2) AS starts_at, count(*) AS values,
           sum(m.metric_value)::float8 AS sum, min(m.metric_value)::float8 AS min,
           max(m.metric_value)::float8 AS max,
           percentile_cont($5::float8[]) WITHIN GROUP (ORDER BY m.metric_value::float8)
               AS percentiles
      FROM performance_metrics m
      JOIN workflow_executions e ON e.id = m.workflow_execution_id
     WHERE m.metric_name = $1 AND m.recorded_at >= $2 AND m.recorded_at < $3
       AND e.workflow_id = $7
     GROUP BY starts_at
     ORDER BY starts_at
     LIMIT $6
"""


async def buckets(
    db: Db,
    *,
    name: str,
    span: Range,
    width: timedelta,
    percentiles: Sequence[float],
    execution_id: UUID | None,
    workflow_id: UUID | None,
) -> list[Bucket]:
    """Aggregate what the transaction's caller may see, ordered by time."""
    fractions = [each / 100 for each in percentiles]
    given = (name, span.start, span.end, width, fractions, BUCKETS_MAX)
    if execution_id is not None:
        rows = await db.fetch(_BUCKETS_OF_EXECUTION, *given, execution_id, workflow_id)
    elif workflow_id is not None:
        rows = await db.fetch(_BUCKETS_OF_WORKFLOW, *given, workflow_id)
    else:
        rows = await db.fetch(_BUCKETS, *given)
    return [to_bucket(row) for row in rows]


def to_bucket(row: Row) -> Bucket:
    """Build a bucket from its row."""
    return Bucket(
        starts_at=row["starts_at"],
        count=row["values"],
        sum=row["sum"],
        min=row["min"],
        max=row["max"],
        percentiles=row["percentiles"] or (),
    )
