"""Several orchestrators over one database, as processes: killed, stopped, rolled and left alone."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import psycopg
import pytest
import pytest_asyncio
from qflow.orchestrator.v1 import execution_pb2

from tests.support.cluster import TTL_S, Cluster, OrchestratorProcess
from tests.support.database import Database
from tests.support.invariants import broken
from tests.support.suite_fixtures import discard

pytestmark = pytest.mark.timeout(240)

COMPLETED = execution_pb2.EXECUTION_STATUS_COMPLETED
_RUNS = 50
_TAKEOVER_MAX_S = TTL_S + 5.0  # of a lease of ten seconds: fifteen


@pytest_asyncio.fixture
async def cluster(database: Database) -> AsyncIterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="qfc-", dir="/tmp"))
    with database.connect() as sql:
        made = Cluster(database, folder, sql)
        try:
            yield made
        finally:
            await made.stop()
    discard(folder)


async def test_who_cannot_listen_is_no_member(cluster: Cluster) -> None:
    """None was ever: others would give it shards, and wait for it."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        made = cluster.orchestrator("first", QFLOW_ORCHESTRATOR_LISTEN=taken)
        runner = cluster.runner(made, QFLOW_RUNNER_LISTEN=taken)
        assert [2, 2] == [await each.ended() for each in (made, runner)]
    for each in (made, runner):
        assert "is it in use" in each.said()
    for table in ("engine_members", "runner_members"):
        assert [] == cluster.sql.execute(f"SELECT FROM {table}").fetchall(), table


async def two(cluster: Cluster) -> tuple[OrchestratorProcess, OrchestratorProcess]:
    """Two orchestrators with a runner that knows of the first alone."""
    a = cluster.orchestrator("a")
    await a.until_said("service_started")
    runner = cluster.runner(a)
    await runner.until_said("attached", timeout_s=90)
    b = cluster.orchestrator("b")
    await b.until_said("service_started")
    await runner.until_said("orchestrator_found")
    await runner.until_said("attached", times=2)
    return a, b


async def fifty(
    cluster: Cluster, workflow: str, a: OrchestratorProcess, b: OrchestratorProcess
) -> list[str]:
    """Start fifty runs, half of them at each."""
    starts = [cluster.start(partial(pick, a if x % 2 else b), workflow, x) for x in range(_RUNS)]
    return await asyncio.gather(*starts)


def pick(one: OrchestratorProcess) -> OrchestratorProcess:
    return one


async def in_the_middle(cluster: Cluster) -> None:
    """Wait until a third of all attempts have begun."""
    async with asyncio.timeout(90):
        while sum(cluster.begun().values()) < _RUNS:  # noqa: ASYNC110  # other processes write
            await asyncio.sleep(0.02)


def proven(cluster: Cluster, runs: list[str], *, nodes: int = 3) -> None:
    """Each node of each run began once and has one outcome, and no invariant is broken."""
    begun = cluster.begun()
    assert {f"{run} n{at}": 1 for run in runs for at in range(nodes)} == dict(begun)
    assert broken(cluster.sql) == {}
    counted = cluster.sql.execute(
        "SELECT count(*), sum(retry_count), sum(delivery_count) FROM node_executions"
        " WHERE status = 'completed'"
    ).fetchone()
    assert counted == (len(runs) * nodes, 0, 0)


async def test_runs_of_an_orchestrator_that_is_killed_go_on_at_another(cluster: Cluster) -> None:
    """F2, I9, I13, CP14: every run ends, each attempt was made once, within the time promised."""
    a, b = await two(cluster)
    workflow = cluster.chain()
    runs = await fifty(cluster, workflow, a, b)
    waits = [asyncio.ensure_future(cluster.finished(lambda: b, run)) for run in runs]
    await in_the_middle(cluster)
    a.send(signal.SIGKILL)
    killed_at = time.monotonic()
    await b.until_said("member_dead", timeout_s=_TAKEOVER_MAX_S)
    await b.until_said("shards_taken_in", timeout_s=_TAKEOVER_MAX_S)
    taken_after_s = time.monotonic() - killed_at
    ends = await asyncio.gather(*waits)
    assert [COMPLETED] * _RUNS == [each.status for each in ends]
    assert taken_after_s < _TAKEOVER_MAX_S
    proven(cluster, runs)


@pytest.mark.slow
async def test_an_orchestrator_that_wakes_after_its_lease_writes_nothing_more(
    cluster: Cluster,
) -> None:
    """F7, CP15, CP28, I10: stopped for twice its lease, it finds itself fenced and ends."""
    a, b = await two(cluster)
    workflow = cluster.chain()
    runs = await fifty(cluster, workflow, a, b)
    await in_the_middle(cluster)
    a.send(signal.SIGSTOP)
    stopped_at = time.monotonic()
    ends = await asyncio.gather(*(cluster.finished(lambda: b, run) for run in runs))
    await asyncio.sleep(max(0.0, stopped_at + 2 * TTL_S - time.monotonic()))
    before = rows(cluster.sql)
    a.send(signal.SIGCONT)
    assert await a.ended() == 0
    assert "member_fenced" in a.said()
    assert [COMPLETED] * _RUNS == [each.status for each in ends]
    assert before == rows(cluster.sql)
    proven(cluster, runs)


def rows(sql: psycopg.Connection) -> list[tuple[object, ...]]:
    """What must not change any more, the physical versions of rows too."""
    return sql.execute(
        "SELECT 'run', id, xmin::text FROM workflow_executions"
        " UNION ALL SELECT 'node', id, xmin::text FROM node_executions ORDER BY 1, 2"
    ).fetchall()


@pytest.mark.slow
async def test_twenty_restarts_one_after_the_other_fail_no_run(cluster: Cluster) -> None:
    """F8, CP27, G2: each gives its shards away before it ends, and runners go on meanwhile."""
    a, b = await two(cluster)
    workflow = cluster.chain()
    alive = {"a": a, "b": b}
    names = itertools.cycle("ab")
    started: list[str] = []
    over = asyncio.Event()

    def any_one() -> OrchestratorProcess:
        return alive[next(names)]

    async def load() -> None:
        while not over.is_set():
            started.append(await cluster.start(any_one, workflow, len(started)))
            await asyncio.sleep(0.1)

    loading = asyncio.create_task(load())
    for _, name in zip(range(20), itertools.cycle("ab"), strict=False):
        assert await alive[name].stop() == 0
        alive[name] = cluster.orchestrator(name)
        await alive[name].until_said("service_started")
    over.set()
    await loading
    ends = await asyncio.gather(*(cluster.finished(any_one, run) for run in started))
    assert {COMPLETED} == {each.status for each in ends}
    assert len(started) >= 20
    proven(cluster, started)


# A lease that nobody outlives: who takes over within a test has not waited for it.
_FOR_EVER = {"QFLOW_LEASE_TTL_S": "600"}


@pytest.mark.slow
async def test_a_standby_takes_over_at_once_when_the_other_process_of_its_home_dies(
    cluster: Cluster,
) -> None:
    """F2: holding the home's lock it has proof of death, and waits for no lease."""
    a = cluster.orchestrator("a", **_FOR_EVER)
    await a.until_said("service_started")
    refused = cluster.orchestrator("a")
    assert await refused.ended() == 2
    assert "another orchestrator runs on" in refused.said()
    assert "Traceback" not in refused.said()
    standby = cluster.orchestrator("a", QFLOW_ORCHESTRATOR_STANDBY="1", **_FOR_EVER)
    await standby.until_said("standing_by")
    a.send(signal.SIGKILL)
    await standby.until_said("executions_loaded")
    await standby.until_said("service_started")
    workflow = cluster.chain(1)
    runner = cluster.runner(standby)
    await runner.until_said("attached", timeout_s=90)
    run = await cluster.start(lambda: standby, workflow, 1)
    assert COMPLETED == (await cluster.finished(lambda: standby, run)).status


_IDLE_S = 20.0


@pytest.mark.slow
async def test_members_that_have_nothing_to_do_leave_the_database_alone(cluster: Cluster) -> None:
    """W8: no lease, no heartbeat, no poll, whatever there is of them."""
    a, b = await two(cluster)
    run = await cluster.start(lambda: a, cluster.chain(1), 1)
    await cluster.finished(lambda: b, run)
    rests = "SELECT count(*) FROM engine_members WHERE state = 'idle'"
    async with asyncio.timeout(30):
        while cluster.sql.execute(rests).fetchone() != (2,):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    await asyncio.sleep(2 * TTL_S)  # the runner's lease ends a little later
    changes = await seen_changes(cluster)
    assert len(changes) < 0.1 * _IDLE_S, changes


async def seen_changes(cluster: Cluster) -> list[tuple[object, ...]]:
    """Give each time that one of Qflow's connections was seen to have done something."""
    before = dict[object, tuple[object, ...]]()
    changes = []
    ends_at = time.monotonic() + _IDLE_S
    while time.monotonic() < ends_at:
        found = cluster.sql.execute(
            "SELECT pid, state_change, application_name, query FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'qflow-%'"
        ).fetchall()
        changes += [each for each in found if before.get(each[0], each) != each]
        before = {each[0]: each for each in found}
        await asyncio.sleep(0.1)
    return changes
