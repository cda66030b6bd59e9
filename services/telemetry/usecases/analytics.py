"""Answers over many records, for the caller's eyes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from services.kit.caller import Caller
from services.kit.pg import Pool, as_caller
from services.telemetry.domain.analytics import (
    GROUPS_MAX,
    Bucket,
    ErrorGroup,
    Range,
    WorkflowStatistics,
    bucket_width,
)
from services.telemetry.storage import error_groups, metric_buckets, statistics


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
) -> list[Bucket]:
    """Give a metric in buckets; what is foreign has none."""
    wide = bucket_width(span, width)
    async with as_caller(pool, caller, plans_by_value=True) as db:
        return await metric_buckets.buckets(
            db,
            name=name,
            span=span,
            width=wide,
            percentiles=percentiles,
            execution_id=execution_id,
            workflow_id=workflow_id,
        )


async def workflow_statistics(
    pool: Pool, caller: Caller, workflow_id: UUID, span: Range
) -> WorkflowStatistics:
    """Give how a workflow's runs, nodes and edges did; of a foreign one there is nothing."""
    async with as_caller(pool, caller, plans_by_value=True) as db:
        runs = await statistics.runs(db, workflow_id, span)
        if runs is None:
            return WorkflowStatistics(runs=None, nodes=(), edges=())
        return WorkflowStatistics(
            runs=runs,
            nodes=await statistics.nodes(db, workflow_id, span),
            edges=await statistics.edges(db, workflow_id, span),
        )


async def list_error_groups(
    pool: Pool, caller: Caller, *, workflow_id: UUID | None, span: Range, limit: int
) -> list[ErrorGroup]:
    """Give groups of errors, the largest first; of a foreign workflow there are none."""
    async with as_caller(pool, caller, plans_by_value=True) as db:
        return await error_groups.error_groups(
            db, workflow_id=workflow_id, span=span, limit=limit or GROUPS_MAX
        )
