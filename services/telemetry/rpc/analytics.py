"""AnalyticsService."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from qflow.telemetry.v1 import analytics_service_pb2 as pb
from qflow.telemetry.v1.analytics_service_pb2_grpc import AnalyticsServiceServicer

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.rpc.call import Context
from services.kit.rpc.codec import (
    duration_ms,
    milliseconds_from,
    moment_from,
    timestamp,
    uuid_from,
    uuid_or_none,
)
from services.telemetry.domain import analytics as domain
from services.telemetry.usecases import analytics

_DAY: Final = timedelta(days=1)
_WEEK: Final = timedelta(days=7)


class AnalyticsServicer(AnalyticsServiceServicer):
    """Serves aggregate queries over records."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def QueryMetrics(
        self, request: pb.QueryMetricsRequest, context: Context
    ) -> pb.QueryMetricsResponse:
        """See the contract."""
        width = None
        if request.HasField("bucket_width"):
            width_ms = milliseconds_from(request.bucket_width, field="bucket_width")
            width = timedelta(milliseconds=width_ms)
        found = await analytics.query_metrics(
            self._pool,
            current_caller(),
            name=request.metric_name,
            span=_range(request, usual=_DAY),
            width=width,
            percentiles=list(request.percentiles),
            execution_id=uuid_or_none(request.execution_id, field="execution_id"),
            workflow_id=uuid_or_none(request.workflow_id, field="workflow_id"),
        )
        return pb.QueryMetricsResponse(
            buckets=[_bucket_to_pb(each) for each in found.buckets], percentile_error=found.error
        )

    async def GetWorkflowStatistics(
        self, request: pb.GetWorkflowStatisticsRequest, context: Context
    ) -> pb.GetWorkflowStatisticsResponse:
        """See the contract."""
        found = await analytics.workflow_statistics(
            self._pool,
            current_caller(),
            uuid_from(request.workflow_id, field="workflow_id"),
            _range(request, usual=_WEEK),
            version=request.workflow_version,
        )
        if found.runs is None:
            return pb.GetWorkflowStatisticsResponse()
        return pb.GetWorkflowStatisticsResponse(
            runs=_runs_to_pb(found.runs),
            nodes=[_node_to_pb(each) for each in found.nodes],
            edges=[_edge_to_pb(each) for each in found.edges],
            oldest_create_time=timestamp(found.runs.oldest_at),
            percentile_error=found.error,
        )

    async def ListErrorGroups(
        self, request: pb.ListErrorGroupsRequest, context: Context
    ) -> pb.ListErrorGroupsResponse:
        """See the contract."""
        found = await analytics.list_error_groups(
            self._pool,
            current_caller(),
            workflow_id=uuid_or_none(request.workflow_id, field="workflow_id"),
            span=_range(request, usual=_WEEK),
            limit=request.max_groups,
        )
        return pb.ListErrorGroupsResponse(groups=[_group_to_pb(each) for each in found])


def _range(
    request: pb.QueryMetricsRequest | pb.GetWorkflowStatisticsRequest | pb.ListErrorGroupsRequest,
    *,
    usual: timedelta,
) -> domain.Range:
    start = (
        moment_from(request.start_time, field="start_time")
        if request.HasField("start_time")
        else None
    )
    end = moment_from(request.end_time, field="end_time") if request.HasField("end_time") else None
    return domain.range_of(start, end, now=datetime.now(UTC), usual=usual)


def _rate(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _took_to_pb(took: domain.Took | None) -> pb.DurationStatistics | None:
    if took is None:
        return None
    return pb.DurationStatistics(
        p50=duration_ms(took.p50_ms), p95=duration_ms(took.p95_ms), p99=duration_ms(took.p99_ms)
    )


def _bucket_to_pb(bucket: domain.Bucket) -> pb.MetricBucket:
    return pb.MetricBucket(
        start_time=timestamp(bucket.starts_at),
        count=bucket.count,
        sum=bucket.sum,
        mean=bucket.sum / bucket.count,
        min=bucket.min,
        max=bucket.max,
        percentiles=bucket.percentiles,
    )


def _runs_to_pb(runs: domain.RunStatistics) -> pb.RunStatistics:
    return pb.RunStatistics(
        ended_count=runs.ended,
        completed_count=runs.completed,
        failed_count=runs.failed,
        success_rate=_rate(runs.completed, runs.ended),
        duration=_took_to_pb(runs.duration),
        queue_time=_took_to_pb(runs.queue_time),
        cpu_seconds=runs.cpu_s,
    )


def _node_to_pb(node: domain.NodeStatistics) -> pb.NodeStatistics:
    return pb.NodeStatistics(
        node_id=node.node_id,
        ended_count=node.ended,
        completed_count=node.completed,
        failed_count=node.failed,
        success_rate=_rate(node.completed, node.ended),
        flaky_count=node.flaky,
        duration=_took_to_pb(node.duration),
        cpu_seconds=node.cpu_s,
    )


def _edge_to_pb(edge: domain.EdgeStatistics) -> pb.EdgeStatistics:
    return pb.EdgeStatistics(
        source_node_id=edge.source_node_id,
        target_node_id=edge.target_node_id,
        count=edge.count,
        duration=_took_to_pb(edge.duration),
        mean_bytes=edge.mean_bytes,
    )


def _group_to_pb(group: domain.ErrorGroup) -> pb.ErrorGroup:
    return pb.ErrorGroup(
        fingerprint=group.fingerprint,
        error_type=group.error_type,
        node_id=group.node_id,
        count=group.count,
        execution_count=group.executions,
        first_time=timestamp(group.first_at),
        last_time=timestamp(group.last_at),
        example_id=str(group.example_id),
        example_message=group.example_message,
        example_execution_id=str(group.example_execution_id or ""),
    )
