"""Metrics: points taken a second, percentiles of many, and what measuring costs the engine."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psutil
from google.protobuf.timestamp_pb2 import Timestamp
from qflow.telemetry.v1 import analytics_service_pb2, metric_service_pb2
from qflow.telemetry.v1.analytics_service_pb2_grpc import AnalyticsServiceStub
from qflow.telemetry.v1.metric_service_pb2_grpc import MetricServiceStub

from bench.figures import figure
from bench.flow import ONE, OTHER, SUM, Flow, running
from tests.support.suite import Suite

_ROUNDS: Final = 5
_CALLS: Final = 10
_POINTS: Final = 10_000
_SERIES: Final = 10
_VALUES: Final = 10_000_000
_PERCENTILES: Final = (50.0, 95.0, 99.0, 99.9)


async def metric_points() -> dict[str, Any]:
    """Points recorded a second of processor time of telemetry and PostgreSQL together."""
    async with running() as flow:
        suite = flow.suite
        async with suite.channel("telemetry") as channel:
            record: Any = MetricServiceStub(channel).RecordMetrics
            kept = await _recorded(suite, record, keep_points=True)
            summed = await _recorded(suite, record, keep_points=False)
    told = figure(
        [each[0] for each in summed], "points/s of one core", "higher", target=50_000.0, floor=0.0
    )
    return told | {
        "wall_points_per_s": round(statistics.median(each[1] for each in summed)),
        "kept_points_per_s": round(statistics.median(each[0] for each in kept)),
    }


async def _recorded(suite: Suite, record: Any, *, keep_points: bool) -> list[tuple[float, float]]:
    """Give what a second of a core, and a second, take, by rounds."""
    found = []
    for _ in range(_ROUNDS):
        requests = [_request(keep_points=keep_points) for _ in range(_CALLS)]
        before, begin = _cpu_s(suite), time.perf_counter()
        for request in requests:
            answer = await record(request, timeout=60)
            assert answer.recorded_count == _POINTS, answer
        wall = time.perf_counter() - begin
        points = _CALLS * _POINTS
        found.append((points / (_cpu_s(suite) - before), points / wall))
    return found


def _request(*, keep_points: bool) -> metric_service_pb2.RecordMetricsRequest:
    now = Timestamp()
    now.GetCurrentTime()
    return metric_service_pb2.RecordMetricsRequest(
        series=[
            metric_service_pb2.MetricSeries(
                metric_name=f"bench.{number}",
                keep_points=keep_points,
                points=[
                    metric_service_pb2.MetricPoint(
                        metric_value=random.lognormvariate(3, 1),
                        record_time=now,
                    )
                    for _ in range(_POINTS // _SERIES)
                ],
            )
            for number in range(_SERIES)
        ]
    )


def _cpu_s(suite: Suite) -> float:
    """Give what telemetry, PostgreSQL and all its backends have taken."""
    marks = suite.marks()
    postgres = psutil.Process(marks["postgres"].pid)
    processes = [psutil.Process(marks["telemetry"].pid), postgres, *postgres.children()]
    return sum(sum(each.cpu_times()[:2]) for each in processes)


async def percentiles() -> dict[str, Any]:
    """Seconds of a query for four percentiles over ten million values of a day, with its error."""
    async with running() as flow:
        suite = flow.suite
        end = datetime.now(UTC) - timedelta(minutes=1)
        await asyncio.to_thread(_fill, suite, end)
        start = end - timedelta(days=1)
        request = analytics_service_pb2.QueryMetricsRequest(
            metric_name="bench", percentiles=_PERCENTILES
        )
        request.start_time.FromDatetime(start)
        request.end_time.FromDatetime(end)
        async with suite.channel("telemetry") as channel:
            query: Any = AnalyticsServiceStub(channel).QueryMetrics
            spans = []
            for _ in range(9):
                begin = time.perf_counter()
                answer = await query(request, timeout=60)
                spans.append(time.perf_counter() - begin)
            request.bucket_width.FromTimedelta(timedelta(minutes=7))
            begin = time.perf_counter()
            in_buckets = await query(request, timeout=60)
            bucket_span = time.perf_counter() - begin
        exact = await asyncio.to_thread(_exact, suite)
    [whole] = answer.buckets
    assert whole.count == _VALUES == sum(each.count for each in in_buckets.buckets), whole
    errors = [
        abs(found - true) / true for found, true in zip(whole.percentiles, exact, strict=True)
    ]
    assert max(errors) <= 0.01, errors
    told = figure(spans, "s", "lower", target=1.0, floor=0.0)
    return told | {
        "error_max": round(max(errors), 5),
        "buckets_s": round(bucket_span, 4),
        "buckets": len(in_buckets.buckets),
    }


def _fill(suite: Suite, end: datetime) -> None:
    """Record ten million values: summed up as they would be, the last minute of them as rows."""
    with suite.sql() as db:
        [(tenant,)] = db.execute("SELECT id FROM users WHERE is_owner").fetchall()
        db.execute("CREATE UNLOGGED TABLE bench_values (value double precision, at timestamptz)")
        db.execute("SELECT setseed(0.5)")
        db.execute(
            "INSERT INTO bench_values SELECT exp(3 + sqrt(-2 * ln(1 - random()))"
            " * cos(2 * pi() * random())), %s - n * interval '8640 us'"
            " FROM generate_series(1, %s) n",
            (end, _VALUES),
        )
        db.execute(
            "SELECT add_metric_sums(array_agg(%s::uuid), array_agg('bench'::text),"
            " array_agg(NULL::uuid), array_agg(minute), array_agg(mark), array_agg(n),"
            " array_agg(total), array_agg(low), array_agg(high))"
            " FROM (SELECT date_trunc('minute', at) AS minute, metric_mark(value) AS mark,"
            "              count(*) AS n, sum(value) AS total, min(value) AS low,"
            "              max(value) AS high FROM bench_values GROUP BY 1, 2) AS fine",
            (tenant,),
        )
        # Of the minutes in which the range begins and ends there are rows too.
        db.execute("ALTER TABLE performance_metrics DISABLE TRIGGER performance_metrics_roll_up")
        db.execute(
            "INSERT INTO performance_metrics (metric_name, metric_value, tenant_id, recorded_at)"
            " SELECT 'bench', value, %(tenant)s, at FROM bench_values"
            "  WHERE at < %(end)s - interval '23:59' OR at > %(end)s - interval '1 min'",
            {"tenant": tenant, "end": end},
        )
        db.execute("ALTER TABLE performance_metrics ENABLE TRIGGER performance_metrics_roll_up")
        db.execute("ANALYZE metric_rollups, performance_metrics")


def _exact(suite: Suite) -> list[float]:
    with suite.sql() as db:
        row = db.execute(
            "SELECT percentile_cont(%s::float8[]) WITHIN GROUP (ORDER BY value) FROM bench_values",
            ([each / 100 for each in _PERCENTILES],),
        ).fetchone()
    assert row is not None
    return [float(each) for each in row[0]]


async def metrics_cost() -> dict[str, Any]:
    """How much of its throughput the engine keeps with metrics of its runs, in turns without."""
    async with running() as measured, running({"QFLOW_EXECUTION_METRICS": "0"}) as bare:
        ids = [await diamond(each) for each in (measured, bare)]
        ratios = []
        for flow, workflow_id in zip((measured, bare), ids, strict=True):
            await rate(flow, workflow_id)
        for number in range(_ROUNDS * 2):
            turns = [(measured, ids[0]), (bare, ids[1])]
            rates = {}
            for flow, workflow_id in turns if number % 2 else reversed(turns):
                rates[workflow_id] = await rate(flow, workflow_id)
            ratios.append(rates[ids[0]] / rates[ids[1]])
    return figure(ratios, "of the throughput", "higher", target=0.95, floor=1.0)


async def diamond(flow: Flow) -> str:
    """Make a workflow of five nodes, three of them side by side."""
    one, other, add = [await flow.node(code) for code in (ONE, OTHER, SUM)]
    places = {"a": one, "b": other, "c": one, "d": other, "e": add}
    edges = [("", "a", "x"), ("a", "b", "x"), ("a", "c", "x"), ("a", "d", "x")]
    edges += [("b", "e", "x"), ("c", "e", "y"), ("d", "e", "z")]
    return await flow.workflow(places, edges, "e")


async def rate(flow: Flow, workflow_id: str) -> float:
    """Run it a hundred times at once; gives how many came to their ends a second."""
    begin = time.perf_counter()
    runs = await asyncio.gather(*(flow.start(workflow_id, x) for x in range(100)))
    await flow.result(runs[-1])
    await flow.all_over(workflow_id)
    return len(runs) / (time.perf_counter() - begin)
