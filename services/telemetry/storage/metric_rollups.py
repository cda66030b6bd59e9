"""metric_rollups: sums of metrics per hour and per minute."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db
from services.telemetry.domain.analytics import BUCKETS_MAX, Bucket, Range
from services.telemetry.storage.metric_buckets import to_bucket

_EVERY_WORKFLOW: Final = UUID(int=0)

# A bucket combines the hours entirely within it, the remaining minutes, and single values of
# minutes that it shares with another bucket, each placed by its own time. If rows of such a minute
# are missing, the whole minute counts at its start.
_BUCKETS: Final[LiteralString] = """
    WITH single AS MATERIALIZED (
        SELECT ragged.minute, m.recorded_at, m.metric_value::float8 AS value
          FROM unnest($8::timestamptz[]) AS ragged(minute)
          JOIN performance_metrics m
            ON m.metric_name = $1 AND m.recorded_at >= ragged.minute
           AND m.recorded_at < ragged.minute + interval '1 minute'
         WHERE $7 = '00000000-0000-0000-0000-000000000000'::uuid OR EXISTS (
               SELECT FROM workflow_executions e
                WHERE e.id = m.workflow_execution_id AND e.workflow_id = $7)),
    found AS MATERIALIZED (
        SELECT minute, count(*) AS rows FROM single GROUP BY minute),
    minutes AS MATERIALIZED (
        SELECT r.starts_at, r.value_count, r.value_sum, r.value_min, r.value_max, r.marks,
               r.mark_counts, r.starts_at = ANY($8) AS is_ragged,
               r.value_count > COALESCE(found.rows, 0) AS is_short
          FROM metric_rollups r
          LEFT JOIN found ON found.minute = r.starts_at
         CROSS JOIN LATERAL (SELECT date_trunc('hour', r.starts_at, 'UTC')) AS whole(hour)
         WHERE r.metric_name = $1 AND r.workflow_id = $7 AND r.span_s = 60
           AND r.starts_at >= $2::timestamptz - interval '1 minute' AND r.starts_at < $3
           AND NOT (whole.hour >= $2 AND whole.hour + interval '1 hour' <= $3
                    AND date_bin($4, whole.hour, $2)
                        = date_bin($4, whole.hour + interval '59:59.999999', $2))),
    parts AS MATERIALIZED (
        SELECT date_bin($4, starts_at, $2) AS starts_at, value_count, value_sum, value_min,
               value_max, marks, mark_counts
          FROM metric_rollups
         WHERE metric_name = $1 AND workflow_id = $7 AND span_s = 3600
           AND starts_at >= $2 AND starts_at <= $3::timestamptz - interval '1 hour'
           AND date_bin($4, starts_at, $2)
               = date_bin($4, starts_at + interval '59:59.999999', $2)
         UNION ALL
        SELECT date_bin($4, starts_at, $2), value_count, value_sum, value_min, value_max, marks,
               mark_counts
          FROM minutes
         WHERE starts_at >= $2 AND (NOT is_ragged OR is_short)
         UNION ALL
        SELECT date_bin($4, s.recorded_at, $2), count(*), sum(s.value), min(s.value), max(s.value),
               ARRAY[metric_mark(s.value)], ARRAY[count(*)]
          FROM single s
         WHERE s.recorded_at >= $2 AND s.recorded_at < $3
           AND s.minute <> ALL (ARRAY(
               SELECT minutes.starts_at FROM minutes
                WHERE minutes.is_short AND minutes.is_ragged))
         GROUP BY 1, metric_mark(s.value)),
    sums AS MATERIALIZED (
        SELECT starts_at, sum(value_count)::bigint AS values, sum(value_sum) AS sum,
               min(value_min) AS min, max(value_max) AS max
          FROM parts
         GROUP BY starts_at
         ORDER BY starts_at
         LIMIT $6),
    marked AS (
        SELECT parts.starts_at, each.mark, sum(each.counted) AS counted
          FROM parts, unnest(parts.marks, parts.mark_counts) AS each(mark, counted)
         GROUP BY 1, 2),
    climbed AS (
        SELECT starts_at, mark,
               sum(counted) OVER (PARTITION BY starts_at ORDER BY mark) AS up_to
          FROM marked),
    picked AS (
        SELECT sums.starts_at, asked.place, min(climbed.mark) AS mark
          FROM sums
         CROSS JOIN unnest($5::float8[]) WITH ORDINALITY AS asked(fraction, place)
          JOIN climbed ON climbed.starts_at = sums.starts_at
           AND climbed.up_to > floor(asked.fraction * (sums.values - 1))
         GROUP BY 1, 2)
    SELECT sums.starts_at, sums.values, sums.sum, sums.min, sums.max,
           array_agg(LEAST(sums.max, GREATEST(sums.min, metric_value_of(picked.mark)))
                     ORDER BY picked.place) FILTER (WHERE picked.place IS NOT NULL) AS percentiles
      FROM sums
      LEFT JOIN picked ON picked.starts_at = sums.starts_at
     GROUP BY sums.starts_at, sums.values, sums.sum, sums.min, sums.max
     ORDER BY sums.starts_at
"""


async def buckets(
    db: Db,
    *,
    name: str,
    span: Range,
    width: timedelta,
    percentiles: Sequence[float],
    workflow_id: UUID | None,
    shared_minutes: Sequence[datetime],
) -> list[Bucket]:
    """Sum up what the transaction's caller may see, ordered by time."""
    rows = await db.fetch(
        _BUCKETS,
        name,
        span.start,
        span.end,
        width,
        [each / 100 for each in percentiles],
        BUCKETS_MAX,
        workflow_id or _EVERY_WORKFLOW,
        shared_minutes,
    )
    return [to_bucket(row) for row in rows]
