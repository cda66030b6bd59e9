"""Statistics from sums are those of the runs, whatever of them is forgotten meanwhile."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from qflow.telemetry.v1 import analytics_service_pb2 as pb
from qflow.telemetry.v1.analytics_service_pb2_grpc import AnalyticsServiceStub

from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, connection, transaction
from services.telemetry.domain.analytics import (
    EdgeStatistics,
    NodeStatistics,
    Range,
    RunStatistics,
    Took,
)
from services.telemetry.storage import retention, workflow_rollups
from services.telemetry.usecases.roll_up import roll_up_finished
from tests import factories
from tests.integration.telemetry.conftest import Runs, Telemetry
from tests.support.database import Database

_NOW: Final = datetime.now(UTC)
_ALL: Final = Range(_NOW - timedelta(days=360), _NOW + timedelta(hours=1))
_STATES: Final = ("completed", "completed", "completed", "failed", "cancelled", "running")


@dataclass
class Node:
    place: str
    status: str
    took_us: int
    retries: int
    usage: dict[str, Any] | None


@dataclass
class Run:
    """What a run is planted with, and what the sums are held against."""

    id: UUID
    created_at: datetime
    status: str
    queued_us: int
    took_us: int
    usage: dict[str, Any] | None
    nodes: list[Node]
    edges: list[tuple[str, str, int, int | None]]

    @property
    def is_over(self) -> bool:
        return self.status != "running"


@dataclass
class Planted:
    """Runs of one workflow, of all kinds, written as the engine would have written them."""

    sql: psycopg.Connection
    runs: Runs
    chance: random.Random
    all: list[Run] = field(default_factory=list)

    def some(self, count: int, *, days: int) -> None:
        for _ in range(count):
            run = self._run(days)
            self.all.append(run)
            self._write(run)

    def end(self) -> None:
        """Let those that run end now: long after they were created."""
        for run in self.all:
            if not run.is_over:
                run.status = "failed"
                self.sql.execute(
                    "UPDATE workflow_executions SET status = 'failed', completed_at = started_at"
                    " + %s * interval '1 us' WHERE id = %s",
                    (run.took_us, run.id),
                )

    def _run(self, days: int) -> Run:
        pick = self.chance
        usages: tuple[dict[str, Any] | None, ...] = (
            None,
            {},
            {"cpu_us": pick.randrange(10**7)},
            {"cpu_us": "many"},
        )
        nodes = [
            Node(
                place=pick.choice(("a", "b", "c")),
                status=pick.choice((*_STATES[:-1], "quarantined")),
                took_us=pick.choice((0, 1, pick.randrange(10**4), pick.randrange(10**10))),
                retries=pick.choice((0, 0, 2)),
                usage=pick.choice(usages[:3]),
            )
            for _ in range(pick.randrange(5))
        ]
        edges = [
            ("a", "b", pick.randrange(10**5), pick.choice((None, pick.randrange(10**6))))
            for _ in range(pick.randrange(3))
        ]
        return Run(
            id=uuid7(),
            created_at=_NOW - timedelta(seconds=pick.uniform(0, days * 86_400)),
            status=pick.choice(_STATES),
            queued_us=pick.randrange(10**6),
            took_us=pick.randrange(1, 10**9),
            usage=pick.choice(usages),
            nodes=nodes,
            edges=edges,
        )

    def _write(self, run: Run) -> None:
        started = run.created_at + timedelta(microseconds=run.queued_us)
        ended = started + timedelta(microseconds=run.took_us) if run.is_over else None
        self.sql.execute(
            "INSERT INTO workflow_executions (id, workflow_id, workflow_version, status, shard,"
            " created_at, queued_at, started_at, completed_at, tenant_id, created_by,"
            " resource_usage) VALUES (%s, %s, 1, %s, 0, %s, %s, %s, %s, %s, %s, %s)",
            (
                *(run.id, self.runs.workflow_id, run.status, run.created_at, run.created_at),
                *(started, ended, self.runs.owner.id, self.runs.owner.id),
                None if run.usage is None else json.dumps(run.usage),
            ),
        )
        for order, node in enumerate(run.nodes):
            self.sql.execute(
                "INSERT INTO node_executions (workflow_execution_id, node_id, definition_node_id,"
                " node_type, status, started_at, completed_at, execution_order, retry_count,"
                " max_retries, output_data, resource_usage)"
                " VALUES (%s, %s, %s, 'python', %s, %s, %s, %s, %s, 3, '{}', %s)",
                (
                    *(run.id, f"{node.place}[{order}]", node.place, node.status, started),
                    *(started + timedelta(microseconds=node.took_us), order, node.retries),
                    None if node.usage is None else json.dumps(node.usage),
                ),
            )
        for order, (source, target, took_us, size) in enumerate(run.edges):
            self.sql.execute(
                "INSERT INTO node_data_flow (workflow_execution_id, source_node_id,"
                " target_node_id, data_type, data_size_bytes, serialization_time_us,"
                " transfer_time_us) VALUES (%s, %s, %s, 'json', %s, %s, 0)",
                (run.id, f"{source}[{order}]#2", f"{target}#{order}", size, took_us),
            )


def _picked(values_us: Sequence[int]) -> Took | None:
    """The values below which a half, 95 and 99 of 100 lie, in milliseconds."""
    if not values_us:
        return None
    ordered = sorted(values_us)
    p50, p95, p99 = (
        ordered[math.floor(part * (len(ordered) - 1))] / 1000 for part in (0.5, 0.95, 0.99)
    )
    return Took(p50_ms=p50, p95_ms=p95, p99_ms=p99)


def _close(expected: Took | None, found: Took | None) -> bool:
    if expected is None or found is None:
        return expected is found
    pairs = (
        (expected.p50_ms, found.p50_ms),
        (expected.p95_ms, found.p95_ms),
        (expected.p99_ms, found.p99_ms),
    )
    return all(math.isclose(one, other, rel_tol=0.0051) for one, other in pairs)


def _cpu_s(usages: Sequence[dict[str, Any] | None]) -> float:
    numbers = [(usage or {}).get("cpu_us") for usage in usages]
    return sum(each for each in numbers if isinstance(each, int)) / 1e6


def holds(
    planted: Planted,
    runs: RunStatistics | None,
    nodes: Sequence[NodeStatistics],
    edges: Sequence[EdgeStatistics],
) -> None:
    """Hold what was told against all runs that are over, those that are gone included."""
    over = [run for run in planted.all if run.is_over]
    if not over:
        assert runs is None
        return
    assert runs is not None
    done = [run for run in over if run.status == "completed"]
    failed = [run for run in over if run.status == "failed"]
    assert (len(over), len(done), len(failed)) == (runs.ended, runs.completed, runs.failed)
    assert _close(_picked([run.took_us for run in done]), runs.duration)
    assert _close(_picked([run.queued_us for run in over]), runs.queue_time)
    assert pytest.approx(_cpu_s([run.usage for run in over])) == runs.cpu_s
    assert min(run.created_at for run in over) == runs.oldest_at
    ran: dict[str, list[Node]] = {}
    for run in over:
        for node in run.nodes:
            ran.setdefault(node.place, []).append(node)
    longest = sorted(ran, key=lambda place: -sum(node.took_us for node in ran[place]))
    assert longest == [each.node_id for each in nodes]
    for told in nodes:
        of = ran[told.node_id]
        done_nodes = [node for node in of if node.status == "completed"]
        ended = sum(node.status in {"completed", "failed", "cancelled"} for node in of)
        assert (ended, len(done_nodes)) == (told.ended, told.completed)
        assert sum(node.status == "failed" for node in of) == told.failed
        assert sum(node.retries > 0 for node in done_nodes) == told.flaky
        assert _close(_picked([node.took_us for node in done_nodes]), told.duration)
        assert pytest.approx(_cpu_s([node.usage for node in of])) == told.cpu_s
    carried = [edge for run in over for edge in run.edges]
    assert bool(carried) == bool(edges)
    for edge in edges:
        assert ("a", "b", len(carried)) == (edge.source_node_id, edge.target_node_id, edge.count)
        assert _close(_picked([took_us for _, _, took_us, _ in carried]), edge.duration)
        sizes = [size for *_, size in carried if size is not None]
        assert pytest.approx(sum(sizes) / len(sizes) if sizes else 0) == edge.mean_bytes


async def _told(db: Db, workflow_id: UUID) -> tuple[Any, Any, Any]:
    return (
        await workflow_rollups.runs(db, workflow_id, _ALL, version=0),
        await workflow_rollups.nodes(db, workflow_id, _ALL, version=0),
        await workflow_rollups.edges(db, workflow_id, _ALL, version=0),
    )


async def _forget(maint: Pool, subject: str, days: int, *, batch: int) -> None:
    gone: int | None = None
    while gone != 0:
        if gone is None:  # the service is at it itself, for a moment
            await asyncio.sleep(0.01)
        async with transaction(maint) as db:
            keep = timedelta(days=days)
            gone = await retention.forget_batch(db, subject, keep=keep, batch=batch)


@pytest.mark.parametrize("seed", range(6))
async def test_sums_are_those_of_all_runs_whatever_happens_in_which_order(
    maint: Pool, runs: Runs, sql: psycopg.Connection, seed: int
) -> None:
    """I22, G6: before retention and after it, also of runs that nobody had summed up before."""
    chance = random.Random(seed)
    planted = Planted(sql, runs, chance)
    for _ in range(12):
        match chance.randrange(5):
            case 0 | 1:
                planted.some(chance.randrange(1, 12), days=chance.choice((1, 60)))
            case 2:
                await roll_up_finished(maint)
            case 3:
                await _forget(maint, "executions", chance.choice((1, 20)), batch=3)
            case _:
                await _forget(maint, "workflow_hours", chance.choice((1, 14)), batch=7)
    planted.end()
    for keep_days in (400, 10, 1):
        await _forget(maint, "executions", keep_days, batch=3)
        while await roll_up_finished(maint, again=timedelta(days=400)):
            pass
        async with connection(maint) as db:
            holds(planted, *await _told(db, runs.workflow_id))
        await _forget(maint, "workflow_hours", keep_days, batch=7)
        async with connection(maint) as db:
            holds(planted, *await _told(db, runs.workflow_id))


async def test_a_run_is_summed_up_once_by_several_that_try(
    database: Database, maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    """CP26: the one that waits finds it done; what was undone is done again."""
    made = [runs.finished() for _ in range(3)]
    with database.connect() as other, other.transaction(force_rollback=True):
        other.execute("SELECT roll_up_executions(%s)", (made,))
    async with connection(maint) as db:
        assert 3 == await workflow_rollups.roll_up(db, made)
        assert 0 == await workflow_rollups.roll_up(db, made)
        assert 0 == await workflow_rollups.roll_up(db, [])
    assert 0 == await roll_up_finished(maint)
    row = sql.execute("SELECT sum(ended_count) FROM workflow_rollups WHERE kind = 'run'").fetchone()
    assert (3,) == row


async def test_sums_are_told_to_their_own_tenant_alone(
    telemetry: Telemetry, maint: Pool, runs: Runs, sql: psycopg.Connection
) -> None:
    """X13: also when nothing else is left of the runs."""
    made = runs.finished()
    async with connection(maint) as db:
        await workflow_rollups.roll_up(db, [made])
    for table in ("node_executions", "workflow_executions"):
        # The service may hold a row and go on in this loop alone.
        await asyncio.to_thread(sql.execute, f"DELETE FROM {table}")
    request = pb.GetWorkflowStatisticsRequest(workflow_id=str(runs.workflow_id))
    own: Any = AnalyticsServiceStub(telemetry.channel(runs.owner))
    assert 1 == (await own.GetWorkflowStatistics(request)).runs.ended_count
    other: Any = AnalyticsServiceStub(telemetry.channel(factories.user(sql, role="admin")))
    assert not (await other.GetWorkflowStatistics(request)).HasField("runs")


async def test_what_retention_forgot_is_told_from_sums_and_what_is_there_exactly(
    telemetry: Telemetry, maint: Pool, runs: Runs
) -> None:
    """G6."""
    stub: Any = AnalyticsServiceStub(telemetry.channel(runs.owner))
    start = Timestamp()
    start.FromDatetime(_NOW - timedelta(days=60))
    request = pb.GetWorkflowStatisticsRequest(
        workflow_id=str(runs.workflow_id), start_time=start, workflow_version=1
    )
    for ago in ("40 days", "2 days", "1 hour"):
        runs.finished(ago=ago)
    exact = await stub.GetWorkflowStatistics(request)
    assert (3, 0.0) == (exact.runs.ended_count, exact.percentile_error)
    while await maint.fetchval("SELECT count(*) FROM workflow_executions") > 2:
        await _forget(maint, "executions", 30, batch=10)  # not while the service measures it
    await _forget(maint, "workflow_hours", 14, batch=10)
    while await roll_up_finished(maint):
        pass
    summed = await stub.GetWorkflowStatistics(request)
    assert (3, 3, 0.01) == (
        summed.runs.ended_count,
        summed.runs.completed_count,
        summed.percentile_error,
    )
    assert ["n0", "n1"] == [each.node_id for each in summed.nodes]
    assert [3, 3] == [each.flaky_count for each in summed.nodes]
    assert exact.runs.cpu_seconds == summed.runs.cpu_seconds
    assert 100 == pytest.approx(summed.runs.duration.p50.ToMicroseconds() / 1000, rel=0.005)
    assert exact.oldest_create_time == summed.oldest_create_time
    request.workflow_version = 2
    assert not (await stub.GetWorkflowStatistics(request)).HasField("runs")
    # Of what has happened since, all rows are there.
    request.workflow_version = 0
    start.FromDatetime(_NOW - timedelta(days=5))
    request.start_time.CopyFrom(start)
    recent = await stub.GetWorkflowStatistics(request)
    assert (2, 0.0) == (recent.runs.ended_count, recent.percentile_error)
