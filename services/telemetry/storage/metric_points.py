"""Points measured by callers, as rows of performance_metrics or added to the sums only."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.columns import flat
from services.kit.ids import uuid7
from services.kit.pg import Db
from services.telemetry.domain.points import Series, Sum

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_WORKFLOWS_OF: Final[LiteralString] = """
    SELECT id, workflow_id FROM workflow_executions WHERE id = ANY($1::uuid[])
"""


async def workflows_of(db: Db, execution_ids: Sequence[UUID]) -> dict[UUID, UUID | None]:
    """Return the workflows of those runs that the transaction's caller may read."""
    rows = await db.fetch(_WORKFLOWS_OF, execution_ids)
    return {row["id"]: row["workflow_id"] for row in rows}


# Not by COPY, which row-level security forbids; arrays are as fast.
_INSERT_POINTS: Final[LiteralString] = """
    INSERT INTO performance_metrics (id, metric_name, metric_value, metric_unit,
           workflow_execution_id, tenant_id, recorded_at)
    SELECT point.id, series.name, point.value, series.unit, series.execution_id,
           current_tenant_id(), point.recorded_at
      FROM unnest($1::uuid[], $2::integer[], $3::float8[], $4::timestamptz[])
           AS point(id, place, value, recorded_at)
      JOIN unnest($5::text[], $6::text[], $7::uuid[]) WITH ORDINALITY
           AS series(name, unit, execution_id, place) ON series.place = point.place
"""


_SUMMED: Final[LiteralString] = "SELECT set_config('qflow.metrics_summed', 'on', true)"


async def insert_points(db: Db, kept: Sequence[Series]) -> None:
    """Insert each point as a row of the caller's tenant; the caller must add the sums.

    A trigger of the schema normally adds rows to the sums. It is disabled here, because the sums
    are added in the same transaction, together with other points and locked once in a fixed order.
    """
    await db.execute(_SUMMED)
    places = [place for place, each in enumerate(kept, start=1) for _ in each.values]
    await db.execute(
        _INSERT_POINTS,
        *flat(
            (
                [uuid7() for _ in places],
                places,
                [value for each in kept for value in each.values],
                [_moment(time_us) for each in kept for time_us in each.times_us],
                [each.name for each in kept],
                [each.unit for each in kept],
                [each.execution_id for each in kept],
            )
        ),
    )


_ADD_SUMS: Final[LiteralString] = """
    SELECT add_metric_sums(array_fill(current_tenant_id(), ARRAY[cardinality($1::text[])]),
                           $1, $2::uuid[], $3::timestamptz[], $4::integer[], $5::bigint[],
                           $6::float8[], $7::float8[], $8::float8[])
"""


async def add_sums(db: Db, sums: Sequence[Sum]) -> None:
    """Add to the sums of the caller's tenant."""
    await db.execute(
        _ADD_SUMS,
        [each.name for each in sums],
        [each.workflow_id for each in sums],
        [_moment(each.minute_us) for each in sums],
        [each.mark for each in sums],
        [each.count for each in sums],
        [each.total for each in sums],
        [each.low for each in sums],
        [each.high for each in sums],
    )


def _moment(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_us)
