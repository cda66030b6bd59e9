"""Several orchestrators over one database: shards are shared, moved, and calls find their runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import grpc
import psycopg
import pytest
from qflow.orchestrator.v1 import execution_pb2, peer_service_pb2, run_service_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub
from qflow.orchestrator.v1.peer_service_pb2_grpc import PeerServiceStub
from qflow.orchestrator.v1.run_service_pb2_grpc import RunServiceStub

from services.kit.ids import token_sha256
from services.kit.rpc.channel import open_channel
from tests import factories
from tests.fakes.runner import FakeRunner
from tests.integration.kit.test_kit_wire import reason
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_runs import add_one

COMPLETED = execution_pb2.EXECUTION_STATUS_COMPLETED
CANCELLED = execution_pb2.EXECUTION_STATUS_CANCELLED
_OWNERS = """
    SELECT m.state, count(s.shard) FROM engine_members m
      LEFT JOIN engine_shards s ON s.member_id = m.id
     WHERE m.state IN ('live', 'idle') GROUP BY m.id, m.state ORDER BY m.id
"""
_RUNS = 16


async def until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    """Wait for what other processes, or other tasks, do to the database."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # the database tells nobody
            await asyncio.sleep(0.02)


def shares(orchestra: Orchestra) -> list[int]:
    """How many shards each living member has, the older member first."""
    return [int(str(count)) for _, count in orchestra.rows(_OWNERS)]


def owners(orchestra: Orchestra) -> dict[str, UUID]:
    """Which member has which open run."""
    rows = orchestra.rows(
        "SELECT w.id::text, s.member_id FROM workflow_executions w"
        " JOIN engine_shards s ON s.shard = w.shard"
    )
    return {str(run): UUID(str(member)) for run, member in rows}


@asynccontextmanager
async def on_both(runner: FakeRunner, other: Orchestra) -> AsyncIterator[FakeRunner]:
    """Attach the same runner to a second orchestrator: what it has is one."""
    channel = open_channel(other.attach_address, other.runner_token)
    second = FakeRunner(
        channel,
        runner.answer,
        incarnation=runner.incarnation,
        held=runner.held,
        unacked=runner.unacked,
        other=runner,
    )
    runner.other = second
    async with second.kept():
        yield second
    await channel.close()


async def started(orchestra: Orchestra, workflow: str, count: int = _RUNS) -> list[str]:
    answers = await asyncio.gather(
        *(
            orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=workflow, input_json=f'{{"x":{x}}}')
            )
            for x in range(count)
        )
    )
    return [each.execution.id for each in answers]


async def ended(orchestra: Orchestra, runs: list[str]) -> list[Any]:
    waits = [
        orchestra.stub.WaitExecution(pb.WaitExecutionRequest(execution_id=run), timeout=60)
        for run in runs
    ]
    return [answer.execution for answer in await asyncio.gather(*waits)]


@asynccontextmanager
async def two(orchestra: Orchestra) -> AsyncIterator[Orchestra]:
    """A second orchestrator that has its half of the shards, and gives it back at the end."""
    with orchestra.beside() as beside:
        async with beside.running() as other:
            await until(lambda: shares(orchestra) == [32, 32])
            yield other


async def test_a_member_that_comes_gets_half_of_the_shards_and_gives_them_back(
    orchestra: Orchestra, diamond: str
) -> None:
    """I9: balanced while both live, whether the one before is at work or rests."""
    async with orchestra.running():
        assert [64] == shares(orchestra)
        async with two(orchestra) as other:
            async with (await other.runner(add_one)).kept():
                [run] = await ended(other, await started(other, diamond, 1))
                assert COMPLETED == run.status
        await until(lambda: shares(orchestra) == [64])


async def test_who_waits_for_a_run_at_a_member_that_leaves_is_told_at_once(
    orchestra: Orchestra, diamond: str
) -> None:
    """F8: the member ends without waiting for a run that may take a minute, and cuts nobody off."""
    async with AsyncExitStack() as after:
        async with orchestra.running():
            channel = open_channel(orchestra.address, orchestra.owner.token)
            after.push_async_callback(channel.close)
            start = pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
            runner = await orchestra.runner(lambda *_: None)
            async with runner.kept():
                asked = run_service_pb2.ExecuteWorkflowRequest(start=start)
                executing = asyncio.ensure_future(RunServiceStub(channel).ExecuteWorkflow(asked))
                await runner.until(lambda: len(runner.held) == 1)
                [[run]] = orchestra.rows("SELECT id::text FROM workflow_executions")
                request = pb.WaitExecutionRequest(execution_id=str(run))
                waiting = asyncio.ensure_future(
                    ExecutionServiceStub(channel).WaitExecution(request)
                )
                await asyncio.sleep(0)
        executed, waited = await asyncio.gather(executing, waiting, return_exceptions=True)
    assert isinstance(executed, run_service_pb2.ExecuteWorkflowResponse), executed
    assert (run, False) == (executed.execution.id, executed.done)
    assert isinstance(waited, grpc.aio.AioRpcError)
    assert (grpc.StatusCode.UNAVAILABLE, "DRAINING") == (waited.code(), reason(waited))


async def test_runs_that_move_lose_no_attempt_and_every_member_knows_how_they_end(
    orchestra: Orchestra, diamond: str
) -> None:
    """I10, I13, CP27: given with attempts under way, whose results go to the new owner."""
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None, slots=_RUNS)
        async with runner.kept():
            runs = await started(orchestra, diamond)
            await runner.until(lambda: len(runner.held) == _RUNS)
            waits = asyncio.ensure_future(ended(orchestra, runs))
            async with two(orchestra) as other, on_both(runner, other) as second:
                assert len(set(owners(orchestra).values())) == 2
                runner.answer = second.answer = add_one
                for assign in list(runner.held.values()):
                    runner.succeed(assign, assign_value(runner, assign))
                seen = await ended(other, runs)
                first = await waits
    assert [COMPLETED] * _RUNS == [each.status for each in seen]
    assert [each.output_json for each in seen] == [each.output_json for each in first]
    assert [f'{{"sum":{2 * (x + 2) + 1}}}' for x in range(_RUNS)] == [
        each.output_json for each in seen
    ]
    doubled = "SELECT node_id FROM node_executions WHERE delivery_count + retry_count > 0"
    assert [] == orchestra.rows(doubled)


def assign_value(runner: FakeRunner, assign: Any) -> object:
    """Answer late what was held: the first node adds one to the input."""
    value = int(assign.inputs[0].json)
    return value + 1


async def test_a_cancel_on_any_member_is_answered_by_the_owner_after_its_flush(
    orchestra: Orchestra, diamond: str
) -> None:
    """I13, I14: from the OK on every member says that the run is being cancelled."""
    async with orchestra.running(), two(orchestra) as other:
        runner = await orchestra.runner(lambda *_: None, slots=_RUNS)
        async with runner.kept():
            runs = await started(orchestra, diamond, 4)
            stops = [
                other.stub.CancelExecution(pb.CancelExecutionRequest(execution_id=run))
                for run in runs
            ]
            for answer in await asyncio.gather(*stops):
                assert answer.execution.HasField("cancel_time")
            seen = await ended(other, runs)
        assert [CANCELLED] * 4 == [each.status for each in seen]


async def test_a_watch_on_any_member_shows_every_change_to_the_end(
    orchestra: Orchestra, diamond: str
) -> None:
    async with orchestra.running(), two(orchestra) as other:
        runner = await orchestra.runner(lambda *_: None)
        async with runner.kept():
            [run] = await started(orchestra, diamond, 1)
            kinds, revisions, last = [], [], None
            call = other.stub.WatchExecution(pb.WatchExecutionRequest(execution_id=run))
            async for message in call:
                kinds.append(message.WhichOneof("event"))
                revisions.append(message.revision)
                if message.HasField("bookmark"):
                    runner.answer = add_one
                    [assign] = runner.held.values()
                    runner.succeed(assign, 1)
                last = message
    assert ["snapshot", "bookmark"] == kinds[:2]
    assert sorted(revisions[1:]) == revisions[1:]
    assert last is not None
    assert COMPLETED == last.delta.execution.status


async def test_a_watch_follows_its_run_to_another_member(
    orchestra: Orchestra, diamond: str
) -> None:
    """One bookmark, then changes: the client does not see that the run has moved."""
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None, slots=_RUNS)
        async with runner.kept():
            runs = await started(orchestra, diamond)
            calls = [
                orchestra.stub.WatchExecution(pb.WatchExecutionRequest(execution_id=run))
                for run in runs
            ]
            streams = [asyncio.ensure_future(read_all(call)) for call in calls]
            await runner.until(lambda: len(runner.held) == _RUNS)
            async with two(orchestra) as other, on_both(runner, other) as second:
                runner.answer = second.answer = add_one
                for assign in list(runner.held.values()):
                    runner.succeed(assign, assign_value(runner, assign))
                messages = await asyncio.gather(*streams)
    for each in messages:
        assert 1 == sum(message.HasField("bookmark") for message in each)
        assert COMPLETED == each[-1].delta.execution.status


async def read_all(call: Any) -> list[Any]:
    return [message async for message in call]


async def test_what_another_tenant_asks_of_a_run_elsewhere_is_not_found(
    orchestra: Orchestra, diamond: str
) -> None:
    """The owner asks the database who calls: the hop gives nobody more than they have."""
    async with orchestra.running(), two(orchestra) as other:
        runner = await orchestra.runner(lambda *_: None)
        async with runner.kept():
            [run] = await started(orchestra, diamond, 1)
            stranger = factories.user(orchestra.sql)
            stub = type(other.stub)(other.channel(stranger.token))
            for call in (
                stub.CancelExecution(pb.CancelExecutionRequest(execution_id=run)),
                stub.WaitExecution(pb.WaitExecutionRequest(execution_id=run)),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call
                assert grpc.StatusCode.NOT_FOUND == refused.value.code()


async def test_a_peer_is_believed_no_caller_that_the_database_does_not_know(
    orchestra: Orchestra, diamond: str
) -> None:
    async with orchestra.running():
        async with open_channel(orchestra.attach_address, orchestra.service_token) as channel:
            peer = PeerServiceStub(channel)
            path = "/qflow.orchestrator.v1.ExecutionService"
            for method, digest, code in (
                (f"{path}/CancelExecution", "0" * 64, grpc.StatusCode.UNAUTHENTICATED),
                (
                    f"{path}/StartExecution",
                    token_sha256(orchestra.owner.token),
                    grpc.StatusCode.INVALID_ARGUMENT,
                ),
                (
                    f"{path}/WatchExecution",
                    token_sha256(orchestra.owner.token),
                    grpc.StatusCode.INVALID_ARGUMENT,
                ),
                ("/no/such", token_sha256(orchestra.owner.token), grpc.StatusCode.INVALID_ARGUMENT),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await peer.ForwardCall(
                        peer_service_pb2.ForwardCallRequest(method=method, token_digest=digest)
                    )
                assert code == refused.value.code()


async def test_a_flush_of_a_member_that_was_fenced_writes_nothing_to_the_shards_it_had(
    orchestra: Orchestra, diamond: str
) -> None:
    """F7, I9, CP28: fenced first, its shards taken after that, and both committed."""
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            await started(orchestra, diamond, 1)
            await runner.until(lambda: bool(runner.held))
            await orchestra.change("UPDATE engine_members SET state = 'fenced'")
            with orchestra.beside() as beside:
                async with beside.running():
                    [assign] = runner.held.values()
                    runner.succeed(assign, 1)
                    await until(lambda: shares(orchestra) == [64])
                    assert [("running",)] == orchestra.rows("SELECT status FROM node_executions")
                    async with on_both(runner, beside):
                        runner.answer = add_one
                        await until(lambda: [] == list(runner.unacked))


def test_a_shard_is_given_by_its_owner_alone_and_taken_of_nobody_that_lives(
    database: Any,
) -> None:
    """The statements themselves: a live member's shards cannot be taken, whoever asks."""
    with database.connect() as sql:
        a, b = _member(sql, 1, "live"), _member(sql, 2, "live")
        sql.execute("UPDATE engine_shards SET member_id = %s", (a,))
        assert [] == asyncio.run(_taken(database, b, 2))
        assert not asyncio.run(_given(database, b, 2, taker=a))
        assert asyncio.run(_given(database, a, 1, taker=b))
        sql.execute("UPDATE engine_members SET state = 'fenced' WHERE id = %s", (a,))
        assert not asyncio.run(_given(database, a, 1, taker=b))
        assert 63 == len(asyncio.run(_taken(database, b, 2)))


def _member(sql: psycopg.Connection, epoch: int, state: str) -> UUID:
    row = sql.execute(
        "INSERT INTO engine_members (id, epoch, state, expires_at, address, formats) VALUES"
        " (gen_random_uuid(), %s, %s, clock_timestamp() + interval '1 hour', 'unix:/none', '{1}')"
        " RETURNING id",
        (epoch, state),
    ).fetchone()
    assert row is not None
    return UUID(str(row[0]))


async def _taken(database: Any, member: UUID, epoch: int) -> list[int]:
    import asyncpg

    from services.orchestrator.storage import shards

    db = await asyncpg.connect(database.url("qflow_orchestrator_engine"))
    try:
        async with db.transaction():
            return await shards.take_orphans(db, member, epoch, count=64, formats=[1])
    finally:
        await db.close()


async def _given(database: Any, member: UUID, epoch: int, *, taker: UUID) -> bool:
    import asyncpg

    from services.orchestrator.storage import shards

    db = await asyncpg.connect(database.url("qflow_orchestrator_engine"))
    try:
        return await shards.give(db, member, epoch, shard=0, taker=taker)
    finally:
        await db.close()
