"""Calls about runs of another orchestrator, and those that act on such a run by the way."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.duration_pb2 import Duration
from qflow.orchestrator.v1 import (
    execution_pb2,
    peer_service_pb2,
    rerun_service_pb2,
    run_service_pb2,
    schedule_pb2,
)
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.peer_service_pb2_grpc import PeerServiceStub
from qflow.orchestrator.v1.run_service_pb2_grpc import RunServiceStub

from services.kit.ids import new_token, token_sha256
from services.kit.pg import open_pool
from services.kit.rpc.channel import open_channel
from services.orchestrator.gateways.peers import Peers
from services.orchestrator.usecases.forward import Router
from services.orchestrator.usecases.overlaps import Overlaps
from services.orchestrator.usecases.plans import Plans
from services.orchestrator.usecases.read import Reader
from services.orchestrator.usecases.schedule_ends import RunEnds
from services.orchestrator.usecases.watch import Watcher
from tests import factories
from tests.fakes.runner import FakeRunner
from tests.integration.orchestrator import test_schedules
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    CANCELLED,
    COMPLETED,
    cancel,
    refusal,
    reruns,
    runs,
    start,
)
from tests.integration.orchestrator.test_members import (
    assign_value,
    ended,
    on_both,
    started,
    two,
    until,
)
from tests.integration.orchestrator.test_runs import add_one
from tests.integration.orchestrator.test_schedules import create, make_due, settled

CANCEL_EXISTING = execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_CANCEL_EXISTING
USE_EXISTING = execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_USE_EXISTING
WAIT, MOMENT = Duration(seconds=20), Duration(nanos=200_000_000)


def hold(*_: Any) -> object:
    return None  # it goes on until the test answers


def let_go(*runners: FakeRunner) -> None:
    """Answer what is held, and whatever comes."""
    for each in runners:
        each.answer = add_one
        for assign in list(each.held.values()):
            each.succeed(assign, assign_value(each, assign))


async def test_many_runs_are_cancelled_wherever_each_is(orchestra: Orchestra, diamond: str) -> None:
    """I13: a batch asks the owner of each of its runs, and answers after its flush."""
    async with orchestra.running(), two(orchestra) as other:
        async with (await orchestra.runner(hold, slots=16)).kept():
            named = await started(orchestra, diamond, 4) + await started(other, diamond, 4)
            for asked in (orchestra, other):
                answer = await reruns(asked).BatchCancelExecutions(
                    rerun_service_pb2.BatchCancelExecutionsRequest(execution_ids=named)
                )
                assert [0] * 8 == [each.status.code for each in answer.items]
            seen = await ended(other, named)
            assert [CANCELLED] * 8 == [each.status for each in seen]


async def test_the_run_that_has_a_key_is_asked_to_stop_wherever_it_is(
    orchestra: Orchestra, diamond: str
) -> None:
    async with orchestra.running(), two(orchestra) as other:
        async with (await orchestra.runner(hold)).kept():
            first = await start(orchestra, diamond, business_key="k")
            for asked in (other, orchestra):
                second = await start(
                    asked, diamond, business_key="k", business_key_conflict=CANCEL_EXISTING
                )
                [stopped] = await ended(asked, [first.id])
                assert CANCELLED == stopped.status
                first = second


async def test_what_a_schedule_started_is_cancelled_for_its_next_run_wherever_it_is(
    orchestra: Orchestra,
) -> None:
    """The owner finds the maker by the schedule; an orchestrator's token alone stops nothing."""
    async with orchestra.running(), (await orchestra.runner(hold)).kept():
        made = await create(orchestra, overlap=schedule_pb2.OVERLAP_POLICY_CANCEL_RUNNING)
        await make_due(orchestra, 20)
        await until(lambda: settled(orchestra))
        [(execution_id,)] = orchestra.rows("SELECT id FROM workflow_executions")
        run = uuid.UUID(str(execution_id))
        asked = peer_service_pb2.CancelOverlappingRequest(
            schedule_id=made.id, execution_id=str(run)
        )
        async with open_channel(orchestra.attach_address, orchestra.service_token) as channel:
            told = await refusal(cast("Any", PeerServiceStub(channel).CancelOverlapping(asked)))
        assert ("NOT_FOUND", "NOT_OVERLAPPING") == told[:2]
        orchestra.sql.execute(
            "INSERT INTO schedule_ticks (schedule_id, tick_at, kind, state, tick_count, reason,"
            " message, try_at, tenant_id) SELECT schedule_id, now(), 'timed', 'pending', 1, '', '',"
            " now() + interval '1 hour', tenant_id FROM schedule_ticks"
        )
        await of_one_without_runs(
            orchestra, lambda overlaps: overlaps.cancel_all(uuid.UUID(made.id), [run])
        )
        assert [(True,)] == orchestra.rows(
            "SELECT cancel_requested_at IS NOT NULL FROM workflow_executions"
        )


async def test_a_schedule_is_told_of_the_end_of_a_run_that_another_has(
    orchestra: Orchestra, diamond: str
) -> None:
    """By the end itself, of all that it waits for; where nobody answers, by nothing."""
    told = asyncio.Event()
    async with orchestra.running():
        runner = await orchestra.runner(hold, slots=16)
        async with runner.kept():
            named = [uuid.UUID(each) for each in await started(orchestra, diamond, 2)]
            schedule_id, other_id = uuid.uuid4(), uuid.uuid4()

            async def listen(overlaps: Overlaps) -> None:
                router = overlaps.router
                ends = RunEnds(Watcher(overlaps.reader, router.engine, router), told.set)
                ends.follow(schedule_id, named)
                await cancel(orchestra, str(named[0]))
                await ended(orchestra, [str(named[0])])
                assert [] == ends.take()
                await cancel(orchestra, str(named[1]))
                await asyncio.wait_for(told.wait(), 10)
                assert [schedule_id] == ends.take()
                [third] = await started(orchestra, diamond, 1)
                await orchestra.change("UPDATE engine_members SET address = 'localhost:1'")
                ends.follow(other_id, [uuid.UUID(third)])
                async with asyncio.timeout(10):
                    await asyncio.gather(*ends._listening.values())
                assert [] == ends.take()

            await of_one_without_runs(orchestra, listen)


async def test_the_next_run_of_a_schedule_begins_whoever_has_the_one_before_it(
    orchestra: Orchestra,
) -> None:
    """Of two orchestrators either sees to a schedule, and nobody looks at its tick for an hour."""
    async with orchestra.running(), two(orchestra) as other:
        orchestra.sql.execute(test_schedules.PUT_OFF)
        runner = await orchestra.runner(hold, slots=16)
        async with runner.kept(), on_both(runner, other) as second:
            for _ in range(4):
                await create(orchestra, overlap=schedule_pb2.OVERLAP_POLICY_BUFFER_ONE)
            await make_due(orchestra, 20)
            await until(lambda: settled(orchestra, 4))
            await until(lambda: len(runner.held) == 4)
            await make_due(orchestra, 1)
            await until(
                lambda: (
                    [(4,)]
                    == orchestra.rows(
                        "SELECT count(*) FROM schedule_ticks WHERE reason = 'OVERLAP'"
                    )
                )
            )
            let_go(runner, second)
            await until(lambda: settled(orchestra, 8))


async def of_one_without_runs(
    orchestra: Orchestra, act: Callable[[Overlaps], Awaitable[None]]
) -> None:
    """Act as an orchestrator that has none of the runs."""
    pool = await open_pool(
        orchestra.database.url("qflow_orchestrator_engine"), application_name="test", setting="test"
    )
    engine = SimpleNamespace(
        shards=SimpleNamespace(whole=False),
        core=SimpleNamespace(runs={}),
        member=SimpleNamespace(id=uuid.uuid4()),
    )
    peers = Peers(orchestra.service_token)
    router = Router(cast("Any", engine), pool, peers)
    try:
        await act(Overlaps(pool, Reader(pool, pool, Plans()), router))
    finally:
        await peers.close()
        await pool.close()


def noted(monkeypatch: pytest.MonkeyPatch, of: type[Any], method: str) -> asyncio.Event:
    """Give what is set once a method is called."""
    called, before = asyncio.Event(), getattr(of, method)

    def noting(*arguments: Any, **named: Any) -> Any:
        called.set()
        return before(*arguments, **named)

    monkeypatch.setattr(of, method, noting)
    return called


@pytest.mark.parametrize("named", ["request_id", "business_key"])
async def test_a_workflow_that_another_runs_is_waited_for_there(
    orchestra: Orchestra, diamond: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F8, I12: what a client behind a balancer does after an answer that was lost."""
    asked = pb.StartExecutionRequest(workflow_id=diamond, input_json='{"x":1}')
    if named == "request_id":
        asked.request_id = str(uuid.uuid4())
    else:
        asked.business_key, asked.business_key_conflict = "k", USE_EXISTING
    request = run_service_pb2.ExecuteWorkflowRequest(start=asked, wait=WAIT)
    async with orchestra.running(), two(orchestra) as other:
        runner = await orchestra.runner(hold)
        async with runner.kept():
            first = asyncio.ensure_future(runs(orchestra).ExecuteWorkflow(request))
            await runner.until(lambda: bool(runner.held))
            short = run_service_pb2.ExecuteWorkflowRequest(start=asked, wait=MOMENT)
            asked_early = await runs(other).ExecuteWorkflow(short)
            assert (True, False) == (asked_early.existing, asked_early.done)
            waits = noted(monkeypatch, Watcher, "await_end")
            second = asyncio.ensure_future(runs(other).ExecuteWorkflow(request))
            await waits.wait()  # with a key that nobody has any more it would start another
            let_go(runner)
            answers = await asyncio.gather(first, second)
    assert [True, True] == [each.done for each in answers]
    assert [COMPLETED, COMPLETED] == [each.execution.status for each in answers]
    assert 1 == len({each.execution.id for each in answers})
    assert answers[0].execution.output_json == answers[1].execution.output_json


async def test_a_node_that_another_runs_is_waited_for_there(orchestra: Orchestra) -> None:
    node = factories.node(orchestra.sql, orchestra.owner)

    def request(wait: Duration) -> run_service_pb2.RunNodeRequest:
        return run_service_pb2.RunNodeRequest(
            node_id=str(node.id), input_json='{"x":1}', request_id=request_id, wait=wait
        )

    request_id = str(uuid.uuid4())
    async with orchestra.running(), two(orchestra) as other:
        runner = await orchestra.runner(hold)
        async with runner.kept():
            first = asyncio.ensure_future(runs(orchestra).RunNode(request(WAIT)))
            await runner.until(lambda: bool(runner.held))
            early = await runs(other).RunNode(request(MOMENT))
            assert (True, False) == (early.existing, early.done)
            second = asyncio.ensure_future(runs(other).RunNode(request(WAIT)))
            let_go(runner)
            answers = await asyncio.gather(first, second)
    assert ['{"result":2}'] * 2 == [each.execution.output_json for each in answers]
    assert [(1,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


async def test_a_call_that_runs_a_workflow_goes_along_when_its_run_moves(
    orchestra: Orchestra, diamond: str
) -> None:
    """I10, F8: another orchestrator joins while the calls wait; none of them fails."""
    requests = [
        run_service_pb2.ExecuteWorkflowRequest(
            start=pb.StartExecutionRequest(workflow_id=diamond, input_json=f'{{"x":{x}}}'),
            wait=WAIT,
        )
        for x in range(16)
    ]
    async with orchestra.running():
        runner = await orchestra.runner(hold, slots=16)
        async with runner.kept():
            calls = [asyncio.ensure_future(runs(orchestra).ExecuteWorkflow(r)) for r in requests]
            await runner.until(lambda: len(runner.held) == len(calls))
            async with two(orchestra) as other, on_both(runner, other) as second:
                let_go(runner, second)
                answers = await asyncio.gather(*calls)
    assert [COMPLETED] * 16 == [each.execution.status for each in answers]


async def test_a_token_that_only_writes_runs_a_workflow_wherever_its_run_is(
    orchestra: Orchestra, diamond: str
) -> None:
    """The wait is in nobody's name: its call lets them see the run, and no other call is made."""
    asked = pb.StartExecutionRequest(
        workflow_id=diamond, input_json='{"x":1}', request_id=str(uuid.uuid4())
    )
    request = run_service_pb2.ExecuteWorkflowRequest(start=asked, wait=MOMENT)
    token = new_token()
    orchestra.sql.execute(
        "INSERT INTO user_service_tokens (tenant_id, user_id, name, token_sha256, scopes,"
        " expires_at) VALUES (%s, %s, 'w', %s, '{executions:write}', now() + interval '1 day')",
        (orchestra.owner.id, orchestra.owner.id, token_sha256(token)),
    )
    async with orchestra.running(), two(orchestra) as other:
        async with (await orchestra.runner(hold)).kept():
            for each in (orchestra, other):
                stub = RunServiceStub(each.channel(token))
                assert not (await stub.ExecuteWorkflow(request)).done
