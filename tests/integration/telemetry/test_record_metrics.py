"""Points that callers measure: recorded at once, each refused by itself, and asked for exactly."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2
from qflow.telemetry.v1 import analytics_service_pb2, telemetry_service_pb2
from qflow.telemetry.v1 import metric_service_pb2 as pb
from qflow.telemetry.v1.analytics_service_pb2_grpc import AnalyticsServiceStub
from qflow.telemetry.v1.metric_service_pb2_grpc import MetricServiceStub

from services.telemetry.domain.points import mark_of
from tests import factories
from tests.integration.telemetry.conftest import Runs, Telemetry

_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)


def at(minutes: float) -> Timestamp:
    """Minutes after an hour of today."""
    moment = Timestamp()
    moment.FromDatetime(_HOUR + timedelta(minutes=minutes))
    return moment


def series(points: list[tuple[float, float]], **more: Any) -> pb.MetricSeries:
    """Points as (minute, value)."""
    return pb.MetricSeries(
        metric_name=more.pop("name", "latency"),
        points=[pb.MetricPoint(metric_value=value, record_time=at(when)) for when, value in points],
        **more,
    )


def record(telemetry: Telemetry, user: factories.User) -> Any:
    stub: Any = MetricServiceStub(telemetry.channel(user))
    return stub.RecordMetrics


async def asked(telemetry: Telemetry, user: factories.User, **question: Any) -> Any:
    stub: Any = AnalyticsServiceStub(telemetry.channel(user))
    whole: dict[str, Any] = {
        "metric_name": "latency",
        "start_time": at(0),
        "end_time": at(240),
    } | question
    return await stub.QueryMetrics(analytics_service_pb2.QueryMetricsRequest(**whole))


@pytest.mark.parametrize("keeps", [True, False])
async def test_points_are_told_of_as_soon_as_they_are_recorded(
    telemetry: Telemetry,
    owner: factories.User,
    keeps: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    points = [(0.5, 1.0), (0.75, 3.0), (61, 8.0), (200, -2.0)]
    answer = await record(telemetry, owner)(
        pb.RecordMetricsRequest(series=[series(points, keep_points=keeps, metric_unit="ms")])
    )
    assert (4, 0) == (answer.recorded_count, answer.rejected_count)
    found = await asked(
        telemetry, owner, bucket_width=Duration(seconds=3600), percentiles=[0, 50, 100]
    )
    told = [(each.count, each.sum, each.min, each.max) for each in found.buckets]
    assert [(2, 4.0, 1.0, 3.0), (1, 8.0, 8.0, 8.0), (1, -2.0, -2.0, -2.0)] == told
    assert (0 if keeps else 0.01) == found.percentile_error
    rows = telemetry.stub(owner).ListMetrics(telemetry_service_pb2.ListMetricsRequest())
    assert (4 if keeps else 0) == len((await rows).metrics)


async def test_a_point_that_cannot_be_recorded_is_listed_and_the_others_are_recorded(
    telemetry: Telemetry, owner: factories.User
) -> None:
    """B75, B76, B77."""
    now = datetime.now(UTC)
    wrong_times = [
        Timestamp(seconds=-62_135_596_800),  # the year 1
        Timestamp(seconds=253_402_300_799),  # the year 9999
        Timestamp(seconds=2**62),
        Timestamp(seconds=int(now.timestamp()), nanos=10**9),
        Timestamp(seconds=int(now.timestamp()), nanos=-1),
        Timestamp(seconds=int(now.timestamp()) + 400),
        Timestamp(seconds=int(now.timestamp()) - 367 * 86_400),
    ]
    wrong_values = [math.nan, math.inf, -math.inf, 1e308, -1e24]
    right = [float(2**40), 0.0, 1e-9, -5.5]
    request = pb.RecordMetricsRequest(
        series=[
            pb.MetricSeries(
                metric_name="m",
                points=[
                    *(pb.MetricPoint(metric_value=each) for each in wrong_values),
                    *(pb.MetricPoint(metric_value=each) for each in right),
                    *(pb.MetricPoint(metric_value=1, record_time=each) for each in wrong_times),
                ],
            ),
            pb.MetricSeries(metric_name="node_mine", points=[pb.MetricPoint()]),
        ]
    )
    answer = await record(telemetry, owner)(request)
    assert (4, 13) == (answer.recorded_count, answer.rejected_count)
    assert [0, 1, 2, 3, 4, *range(9, 16), -1] == [each.point_index for each in answer.rejected]
    assert {code_pb2.INVALID_ARGUMENT} == {each.status.code for each in answer.rejected}
    reasons = []
    for each in answer.rejected:
        info = error_details_pb2.ErrorInfo()
        assert each.status.details[0].Unpack(info)
        reasons.append(info.reason)
    assert ["METRIC_VALUE_INVALID"] * 5 + ["RECORD_TIME_INVALID"] * 7 == reasons[:-1]
    assert "METRIC_NAME_RESERVED" == reasons[-1]
    found = await asked(
        telemetry, owner, metric_name="m", start_time=at(0), end_time=at(600), percentiles=[100]
    )
    [whole] = found.buckets
    assert (4, -5.5, float(2**40)) == (whole.count, whole.min, whole.max)
    assert pytest.approx(2**40, rel=0.01) == whole.percentiles[0]


@pytest.mark.parametrize(
    "wrong",
    [
        pb.RecordMetricsRequest(),
        pb.RecordMetricsRequest(series=[series([], name="m")]),
        pb.RecordMetricsRequest(series=[series([(0, 1)], name="'; DROP TABLE users")]),
        pb.RecordMetricsRequest(series=[series([(0, 1)], name="m" * 101)]),
        pb.RecordMetricsRequest(series=[series([(0, 1)], execution_id="x")]),
        pb.RecordMetricsRequest(series=[series([(0, 1)] * 10_001)]),
        pb.RecordMetricsRequest(series=[series([(0, 1)] * 6_000), series([(0, 1)] * 6_000)]),
        pb.RecordMetricsRequest(series=[series([(0, 1)])], request_id="x"),
    ],
    ids=["none", "empty", "name", "long", "id", "series", "points", "request"],
)
async def test_a_call_that_is_wrong_as_a_whole_records_nothing(
    telemetry: Telemetry, owner: factories.User, wrong: pb.RecordMetricsRequest
) -> None:
    """B17, B18, B27."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await record(telemetry, owner)(wrong)
    assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()


async def test_a_repeated_call_records_its_points_once(
    telemetry: Telemetry, owner: factories.User
) -> None:
    request = pb.RecordMetricsRequest(series=[series([(1, 5.0)])], request_id=str(uuid4()))
    call = record(telemetry, owner)
    assert await call(request) == await call(request)
    assert [1] == [each.count for each in (await asked(telemetry, owner)).buckets]
    request.series[0].points[0].metric_value = 6
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(request)
    assert grpc.StatusCode.ALREADY_EXISTS == refused.value.code()


async def test_points_about_a_run_are_found_by_its_workflow_and_a_foreign_run_is_a_missing_one(
    telemetry: Telemetry,
    runs: Runs,
    runs_of: Callable[[factories.User], Runs],
    sql: psycopg.Connection,
) -> None:
    """X13, X14."""
    run, foreign = runs.finished(), runs_of(factories.user(sql)).finished()
    call = record(telemetry, runs.owner)
    for keeps in (True, False):
        about = {"execution_id": str(run), "keep_points": keeps}
        answer = await call(pb.RecordMetricsRequest(series=[series([(1, 2.0)], **about)]))
        assert 1 == answer.recorded_count
    of_workflow = await asked(telemetry, runs.owner, workflow_id=str(runs.workflow_id))
    assert [2] == [each.count for each in of_workflow.buckets]
    of_run = await asked(telemetry, runs.owner, execution_id=str(run))
    assert [1] == [each.count for each in of_run.buckets]
    for keeps in (True, False):
        refused = []
        for hidden in (str(foreign), str(uuid4())):
            about = {"execution_id": hidden, "keep_points": keeps}
            answer = await call(pb.RecordMetricsRequest(series=[series([(1, 2.0)], **about)]))
            assert 0 == answer.recorded_count
            refused.append(answer)
        assert refused[0] == refused[1]
        assert code_pb2.NOT_FOUND == refused[0].rejected[0].status.code
    [(count,)] = sql.execute(
        "SELECT count(*) FROM metric_rollups WHERE tenant_id <> %s AND metric_name = 'latency'",
        (runs.owner.id,),
    )
    assert 0 == count


async def test_a_viewer_records_nothing(telemetry: Telemetry, sql: psycopg.Connection) -> None:
    """X17."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await record(telemetry, factories.user(sql, role="viewer"))(
            pb.RecordMetricsRequest(series=[series([(0, 1)])])
        )
    assert grpc.StatusCode.PERMISSION_DENIED == refused.value.code()


async def test_sums_of_many_points_are_exact_and_percentiles_right_to_a_hundredth(
    telemetry: Telemetry, owner: factories.User, sql: psycopg.Connection
) -> None:
    """Ranges that begin and end anywhere, and buckets that hours and minutes do not fit."""
    sql.execute("SELECT setseed(0.5)")
    sql.execute(
        "INSERT INTO performance_metrics (metric_name, metric_value, tenant_id, recorded_at)"
        " SELECT 'latency', exp(random() * 10 - 3) * CASE WHEN random() < 0.1 THEN -1 ELSE 1 END,"
        " %s, %s + n * interval '0.6 s' FROM generate_series(0, 23999) n",
        (owner.id, _HOUR),
    )
    for begin, end, width_s in ((0, 240, 3600), (0.31, 233.77, 1700.5), (7, 239.99, None)):
        question: dict[str, Any] = {"start_time": at(begin), "end_time": at(end)}
        if width_s is not None:
            question["bucket_width"] = Duration(
                seconds=int(width_s), nanos=int(width_s % 1 * 10**9)
            )
        found = await asked(telemetry, owner, percentiles=[0, 1, 50, 95, 99.9, 100], **question)
        assert 0.01 == found.percentile_error
        expected = sql.execute(
            "SELECT count(*), sum(metric_value)::float8, min(metric_value)::float8,"
            " max(metric_value)::float8, percentile_disc('{0,.01,.5,.95,.999,1}'::float8[])"
            " WITHIN GROUP (ORDER BY metric_value::float8)"
            " FROM performance_metrics WHERE recorded_at >= %(start)s AND recorded_at < %(end)s"
            " GROUP BY date_bin(%(width)s * interval '1 s', recorded_at, %(start)s)"
            " ORDER BY min(recorded_at)",
            {
                "start": _HOUR + timedelta(minutes=begin),
                "end": _HOUR + timedelta(minutes=end),
                "width": width_s or 86_400,
            },
        ).fetchall()
        assert len(expected) == len(found.buckets)
        for bucket, (count, total, low, high, percentiles) in zip(
            found.buckets, expected, strict=True
        ):
            assert (count, low, high) == (bucket.count, bucket.min, bucket.max)
            assert pytest.approx(total) == bucket.sum
            assert pytest.approx(percentiles, rel=0.02) == list(bucket.percentiles)


def test_marks_are_those_of_the_schema(sql: psycopg.Connection) -> None:
    """Values on either side of nothing, small and large; and what is read from a mark is near."""
    chosen = random.Random(7)
    values = [0.0, 1e-6, -1e-6, 1.0, 1e23, *(chosen.lognormvariate(0, 20) for _ in range(2000))]
    values += [-each for each in values]
    values = [each for each in values if abs(each) < 1e24 and (each == 0 or abs(each) > 1e-6)]
    rows = sql.execute(
        "SELECT v, metric_mark(v), metric_value_of(metric_mark(v)) FROM unnest(%s::float8[]) v",
        (values,),
    ).fetchall()
    for value, mark, near in rows:
        assert abs(mark - mark_of(value)) <= 1, value  # a step may end within a rounding
        assert abs(near - value) <= abs(value) * 0.00501, value
    assert sorted(values) == [value for value, *_ in sorted(rows, key=lambda row: (row[1], row[0]))]
