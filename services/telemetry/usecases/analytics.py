"""Aggregate queries over what the caller may see."""

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
    """Return a metric in buckets; empty for what the caller cannot see.

    Reads single values if there are not too many. If none of them is missing, the result is exact.
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
    """Return statistics of a workflow's runs, nodes and edges; empty if the caller cannot see it.

    If there are not too many runs and retention has removed none of them, the result is exact, from
    their rows. Otherwise it is computed from the sums of the range's hours and days or, while those
    are not written yet, from the newest rows.
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
    """Return groups of similar errors, largest first; none for a workflow the caller cannot see."""
    async with as_caller(pool, caller, plans_by_value=True) as db:
        return await error_groups.error_groups(
            db, workflow_id=workflow_id, span=span, limit=limit or GROUPS_MAX
        )
