"""Answers over many records: right to the value, bounded, and of one's own tenant alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from qflow.telemetry.v1 import analytics_service_pb2 as pb
from qflow.telemetry.v1.analytics_service_pb2_grpc import AnalyticsServiceStub

from tests import factories
from tests.integration.telemetry.conftest import Runs, Telemetry

START = datetime(2026, 1, 5, tzinfo=UTC)


def at(seconds: float) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(START + timedelta(seconds=seconds))
    return moment


def analytics(telemetry: Telemetry, user: factories.User) -> Any:
    return AnalyticsServiceStub(telemetry.channel(user))


def recorded(sql: psycopg.Connection, run: UUID, values: dict[float, float]) -> None:
    """Values of the metric `m` of a run, by their second."""
    for second, value in values.items():
        sql.execute(
            "INSERT INTO performance_metrics (metric_name, metric_value, workflow_execution_id,"
            " tenant_id, recorded_at) SELECT 'm', %s, id, tenant_id, %s FROM workflow_executions"
            " WHERE id = %s",
            (value, START + timedelta(seconds=second), run),
        )


def ended(sql: psycopg.Connection, run: UUID, node: str, status: str) -> None:
    """A node of a run that was not tried again, and took half a second of a processor."""
    sql.execute(
        "INSERT INTO node_executions (workflow_execution_id, node_id, definition_node_id,"
        " node_type, status, started_at, completed_at, execution_order, resource_usage,"
        " output_data) SELECT id, %(node)s, %(node)s, 'python', %(status)s, started_at,"
        " completed_at, 9, '{\"cpu_us\": 500000}', '{}' FROM workflow_executions"
        " WHERE id = %(run)s",
        {"node": node, "status": status, "run": run},
    )


async def test_a_metric_is_aggregated_in_buckets_that_begin_with_the_range(
    telemetry: Telemetry, runs: Runs, sql: psycopg.Connection
) -> None:
    recorded(sql, runs.finished(), {-1: 99, 5: 1, 6: 3, 14: 8, 35: 7, 45: 99})
    request = pb.QueryMetricsRequest(
        metric_name="m",
        start_time=at(5),
        end_time=at(45),
        bucket_width=Duration(seconds=10),
        percentiles=[50, 0, 100],
    )
    answer = await analytics(telemetry, runs.owner).QueryMetrics(request)
    full = pb.MetricBucket(
        start_time=at(5), count=3, sum=12, mean=4, min=1, max=8, percentiles=[3, 1, 8]
    )
    last = pb.MetricBucket(
        start_time=at(35), count=1, sum=7, mean=7, min=7, max=7, percentiles=[7, 7, 7]
    )
    assert [full, last] == list(answer.buckets)
    request.ClearField("bucket_width")
    [whole] = (await analytics(telemetry, runs.owner).QueryMetrics(request)).buckets
    assert (4, 19.0, 5.0) == (whole.count, whole.sum, whole.percentiles[0])


async def test_a_metric_can_be_asked_of_one_run_or_one_workflow(
    telemetry: Telemetry,
    runs: Runs,
    runs_of: Callable[[factories.User], Runs],
    sql: psycopg.Connection,
) -> None:
    other = runs_of(runs.owner)
    first, second, elsewhere = runs.finished(), runs.finished(), other.finished()
    for run, value in ((first, 1), (second, 2), (elsewhere, 4)):
        recorded(sql, run, {1: value})
    stub = analytics(telemetry, runs.owner)

    async def summed(**which: Any) -> list[float]:
        request = pb.QueryMetricsRequest(metric_name="m", start_time=at(0), end_time=at(9), **which)
        return [each.sum for each in (await stub.QueryMetrics(request)).buckets]

    assert [7] == await summed()
    assert [2] == await summed(execution_id=str(second))
    assert [3] == await summed(workflow_id=str(runs.workflow_id))
    assert [4] == await summed(workflow_id=str(other.workflow_id), execution_id=str(elsewhere))
    assert [] == await summed(execution_id=str(uuid4()))
    # Both are meant where both are given.
    assert [] == await summed(workflow_id=str(other.workflow_id), execution_id=str(second))


@pytest.mark.parametrize(
    "wrong",
    [
        {"metric_name": ""},
        {"end_time": at(0)},
        {"end_time": at(367 * 86_400)},
        {"bucket_width": Duration(nanos=1)},
        {"bucket_width": Duration(seconds=1), "end_time": at(1001)},
        {"percentiles": [101]},
        {"percentiles": [float("nan")]},
        {"percentiles": [1.0] * 11},
        {"execution_id": "x"},
    ],
    ids=str,
)
async def test_a_query_without_bounds_is_refused(
    telemetry: Telemetry, owner: factories.User, wrong: dict[str, Any]
) -> None:
    """B75."""
    right: dict[str, Any] = {"metric_name": "m", "start_time": at(0), "end_time": at(1000)}
    request = pb.QueryMetricsRequest(**(right | wrong))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await analytics(telemetry, owner).QueryMetrics(request)
    assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()


async def test_a_workflows_runs_nodes_and_edges_are_summed_up(
    telemetry: Telemetry, runs: Runs, sql: psycopg.Connection
) -> None:
    for _ in range(3):
        run = runs.finished(nodes=1)  # a node that completed when it was tried again
        ended(sql, run, "n1", "completed")
    ended(sql, runs.finished(status="failed", nodes=0), "n1", "failed")
    runs.finished(ago="30 days")  # out of the range
    sql.execute(
        "INSERT INTO node_data_flow (workflow_execution_id, source_node_id, target_node_id,"
        " data_type, data_size_bytes, serialization_time_us, transfer_time_us)"
        " SELECT id, 'n0', 'n1', 'json', 10, 1000, 2000 FROM workflow_executions"
    )
    answer = await analytics(telemetry, runs.owner).GetWorkflowStatistics(
        pb.GetWorkflowStatisticsRequest(workflow_id=str(runs.workflow_id))
    )
    every = answer.runs
    assert (4, 3, 1, 0.75) == (
        every.ended_count,
        every.completed_count,
        every.failed_count,
        every.success_rate,
    )
    assert 100 == every.duration.p50.ToMilliseconds() == every.duration.p99.ToMilliseconds()
    assert 5 == every.queue_time.p95.ToMilliseconds()
    assert pytest.approx(0.006) == every.cpu_seconds
    of_node = {each.node_id: each for each in answer.nodes}
    assert ["n1", "n0"] == [each.node_id for each in answer.nodes]  # four times against three
    n0, n1 = of_node["n0"], of_node["n1"]
    assert (3, 3, 0, 3) == (n0.ended_count, n0.completed_count, n0.failed_count, n0.flaky_count)
    assert (4, 3, 1, 0) == (n1.ended_count, n1.completed_count, n1.failed_count, n1.flaky_count)
    assert (0.75, 2.0) == (n1.success_rate, n1.cpu_seconds)
    [edge] = answer.edges
    assert ("n0", "n1", 4, 10.0) == (
        edge.source_node_id,
        edge.target_node_id,
        edge.count,
        edge.mean_bytes,
    )
    assert 3 == edge.duration.p50.ToMilliseconds()
    assert answer.HasField("oldest_create_time")


async def test_errors_are_grouped_by_what_they_have_in_common(
    telemetry: Telemetry, runs: Runs, sql: psycopg.Connection
) -> None:
    run, other = runs.finished(), runs.finished()
    told = [
        (run, "n0", "user_error", "KeyError: 'ada' at row 17 of 0x7f2a"),
        (other, "n0", "user_error", "KeyError: 'grace hopper' at row 4 of 0xbeef1"),
        (other, "n0", "user_error", 'KeyError: "x" at row 5 of 0x01'),
        (run, "n1", "user_error", "KeyError: 'ada' at row 17 of 0x7f2a"),
        (run, "n0", "timeout", "KeyError: 'ada' at row 17 of 0x7f2a"),
    ]
    for second, (execution, node, kind, message) in enumerate(told):
        sql.execute(
            "INSERT INTO error_logs (error_type, error_message, workflow_execution_id,"
            " node_execution_id, tenant_id, created_at)"
            " SELECT %s, %s, n.workflow_execution_id, n.id, %s, %s FROM node_executions n"
            " WHERE n.workflow_execution_id = %s AND n.node_id = %s",
            (kind, message, runs.owner.id, START + timedelta(seconds=second), execution, node),
        )
    stub = analytics(telemetry, runs.owner)
    asked: dict[str, Any] = {"start_time": at(0), "end_time": at(60)}
    answer = await stub.ListErrorGroups(pb.ListErrorGroupsRequest(**asked))
    assert [("user_error", "n0", 3, 2), ("timeout", "n0", 1, 1), ("user_error", "n1", 1, 1)] == [
        (each.error_type, each.node_id, each.count, each.execution_count) for each in answer.groups
    ]
    largest = answer.groups[0]
    assert (at(0), at(2)) == (largest.first_time, largest.last_time)
    assert (told[2][3], str(other)) == (largest.example_message, largest.example_execution_id)
    assert 3 == len({each.fingerprint for each in answer.groups})
    again = await stub.ListErrorGroups(pb.ListErrorGroupsRequest(max_groups=1, **asked))
    assert [largest] == list(again.groups)
    of_workflow = pb.ListErrorGroupsRequest(workflow_id=str(runs.workflow_id), **asked)
    assert answer == await stub.ListErrorGroups(of_workflow)
    of_workflow.workflow_id = str(uuid4())
    assert pb.ListErrorGroupsResponse() == await stub.ListErrorGroups(of_workflow)


async def test_another_tenant_is_told_nothing(
    telemetry: Telemetry, runs: Runs, sql: psycopg.Connection
) -> None:
    """X13, X14."""
    run = runs.finished()
    recorded(sql, run, {1: 1})
    sql.execute(
        "INSERT INTO error_logs (error_type, error_message, workflow_execution_id, tenant_id)"
        " VALUES ('user_error', 'canary', %s, %s)",
        (run, runs.owner.id),
    )
    own = analytics(telemetry, runs.owner)
    foreign = analytics(telemetry, factories.user(sql, role="admin"))
    metric: dict[str, Any] = {"metric_name": "m", "start_time": at(0), "end_time": at(9)}
    whose: list[dict[str, Any]] = [
        {},
        {"execution_id": str(run)},
        {"workflow_id": str(runs.workflow_id)},
    ]
    for which in whose:
        query = pb.QueryMetricsRequest(**metric, **which)
        assert 1 == len((await own.QueryMetrics(query)).buckets)
        assert pb.QueryMetricsResponse() == await foreign.QueryMetrics(query)
    workflow = pb.GetWorkflowStatisticsRequest(workflow_id=str(runs.workflow_id))
    assert 1 == (await own.GetWorkflowStatistics(workflow)).runs.ended_count
    assert pb.GetWorkflowStatisticsResponse() == await foreign.GetWorkflowStatistics(workflow)
    assert 1 == len((await own.ListErrorGroups(pb.ListErrorGroupsRequest())).groups)
    assert pb.ListErrorGroupsResponse() == await foreign.ListErrorGroups(
        pb.ListErrorGroupsRequest()
    )
