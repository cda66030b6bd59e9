"""Answers over many records, for the caller's eyes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from services.kit.caller import Caller
from services.kit.pg import Pool, as_caller
from services.telemetry.domain.analytics import (
    GROUPS_MAX,
    LOOKED_AT_MAX,
    SUMMED_ERROR,
    VALUES_MAX,
    Buckets,
    ErrorGroup,
    Range,
    WorkflowStatistics,
    bucket_width,
    shared_minutes,
    whole_hours,
)
from services.telemetry.storage import (
    error_groups,
    metric_buckets,
    metric_rollups,
    statistics,
    workflow_rollups,
)


async def query_metrics(
    pool: Pool,
    caller: Caller,
    *,
    name: str,
    span: Range,
    width: timedelta | None,
    percentiles: Sequence[float],
    execution_id: UUID | None,
    workflow_id: UUID | None,
) -> Buckets:
    """Give a metric in buckets; what is foreign has none.

    Where there are not too many, values are read one by one: if none is missing, what was measured
    is told exactly.
    """
    wide = bucket_width(span, width)
    async with as_caller(pool, caller, plans_by_value=True) as db:
        summed = (
            await metric_rollups.buckets(
                db,
                name=name,
                span=span,
                width=wide,
                percentiles=percentiles,
                workflow_id=workflow_id,
                shared_minutes=shared_minutes(span, wide),
            )
            if execution_id is None
            else []
        )
        count = sum(each.count for each in summed)
        if count <= VALUES_MAX:
            exact = await metric_buckets.buckets(
                db,
                name=name,
                span=span,
                width=wide,
                percentiles=percentiles,
                execution_id=execution_id,
                workflow_id=workflow_id,
            )
            if sum(each.count for each in exact) >= count:
                return Buckets(buckets=exact, error=0.0)
        return Buckets(buckets=summed, error=SUMMED_ERROR)


async def workflow_statistics(
    pool: Pool, caller: Caller, workflow_id: UUID, span: Range, *, version: int = 0
) -> WorkflowStatistics:
    """Give how a workflow's runs, nodes and edges did; of a foreign one there is nothing.

    Where there are not too many runs and none of them was forgotten, their rows tell exactly.
    Otherwise it is told from the sums of the range's hours and days; where those are still to be
    made, from the newest rows.
    """
    hours = whole_hours(span)
    async with as_caller(pool, caller, plans_by_value=True) as db:
        summed = await workflow_rollups.count(db, workflow_id, hours, version=version)
        lying = await statistics.count(db, workflow_id, hours, version=version)
        if summed <= min(lying, LOOKED_AT_MAX):
            return WorkflowStatistics(
                runs=await statistics.runs(db, workflow_id, span, version=version),
                nodes=await statistics.nodes(db, workflow_id, span, version=version),
                edges=await statistics.edges(db, workflow_id, span, version=version),
            )
        return WorkflowStatistics(
            runs=await workflow_rollups.runs(db, workflow_id, hours, version=version),
            nodes=await workflow_rollups.nodes(db, workflow_id, hours, version=version),
            edges=await workflow_rollups.edges(db, workflow_id, hours, version=version),
            error=SUMMED_ERROR,
        )


async def list_error_groups(
    pool: Pool, caller: Caller, *, workflow_id: UUID | None, span: Range, limit: int
) -> list[ErrorGroup]:
    """Give groups of errors, the largest first; of a foreign workflow there are none."""
    async with as_caller(pool, caller, plans_by_value=True) as db:
        return await error_groups.error_groups(
            db, workflow_id=workflow_id, span=span, limit=limit or GROUPS_MAX
        )
