"""Words from outside that are sent again: carried out once, and answered each time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from qflow.orchestrator.v1 import control_service_pb2 as control
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.control_service_pb2_grpc import ControlServiceStub
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import refusal

INT = {"t": "int"}
GO = {"kind": "signal", "signal": {"name": "go", "type": INT, "timeout_ms": None}}
ASK = {"kind": "approval", "approval": {"name": "ok", "type": INT}}

send = partial(control.SendSignalRequest, name="go", payload_json="1")
decide = partial(control.AnswerApprovalRequest, name="ok", approved=True, reply_json="1")


async def start(orchestra: Orchestra, user: factories.User, **nodes: Any) -> str:
    """Start a run of nodes that wait."""
    workflow = factories.workflow(orchestra.sql, user, nodes=nodes, edges=[], inputs=(), outputs=[])
    stub = ExecutionServiceStub(orchestra.channel(user.token))
    request = pb.StartExecutionRequest(workflow_id=str(workflow))
    return (await stub.StartExecution(request)).execution.id


def reused(refused: tuple[str, str, Any]) -> bool:
    return refused[:2] == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")


async def test_a_request_id_says_one_thing_to_one_run(orchestra: Orchestra) -> None:
    """What was said to one run is not taken for said to another: the caller learns of it."""
    async with orchestra.running():
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        one, other = [await start(orchestra, orchestra.owner, s=GO) for _ in range(2)]
        again = str(uuid4())
        assert "s" == (await stub.SendSignal(send(execution_id=one, request_id=again))).node_id
        assert reused(await refusal(stub.SendSignal(send(execution_id=other, request_id=again))))
        told = await stub.SendSignal(send(execution_id=other, request_id=str(uuid4())))
        assert "s" == told.node_id


async def test_request_ids_are_each_callers_own(orchestra: Orchestra) -> None:
    """Whether others use an id shows to nobody, and stands in nobody's way."""
    stranger = factories.user(orchestra.sql)
    async with orchestra.running():
        again = str(uuid4())
        for user in (orchestra.owner, stranger):
            stub = ControlServiceStub(orchestra.channel(user.token))
            request = send(execution_id=await start(orchestra, user, s=GO), request_id=again)
            assert ["s", "s"] == [(await stub.SendSignal(request)).node_id for _ in range(2)]


@pytest.mark.parametrize("node", [GO, ASK], ids=["signal", "approval"])
async def test_what_ended_a_run_is_answered_again(
    orchestra: Orchestra, node: dict[str, Any]
) -> None:
    async with orchestra.running():
        run = await start(orchestra, orchestra.owner, s=node)
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        call: Callable[..., Awaitable[Any]] = stub.SendSignal if node is GO else stub.AnswerApproval
        say: Any = send if node is GO else decide
        other = {"payload_json": "2"} if node is GO else {"approved": False}
        said = partial(say, execution_id=run, request_id=str(uuid4()))
        assert "s" == (await call(said())).node_id
        await orchestra.stub.WaitExecution(pb.WaitExecutionRequest(execution_id=run))
        assert "s" == (await call(said())).node_id
        assert reused(await refusal(call(said(**other))))
        late = await refusal(call(say(execution_id=run, request_id=str(uuid4()))))
        assert "EXECUTION_FINISHED" == late[1]


async def test_words_from_before_are_found_by_the_id_of_their_row(orchestra: Orchestra) -> None:
    """Their rows had the request id for their own."""
    async with orchestra.running():
        run = await start(orchestra, orchestra.owner, s=GO, t=GO)
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        said = partial(send, execution_id=run, request_id=str(uuid4()))
        assert "s" == (await stub.SendSignal(said())).node_id
        await orchestra.change("UPDATE execution_signals SET id = %s", said().request_id)
        assert "s" == (await stub.SendSignal(said())).node_id
        assert reused(await refusal(stub.SendSignal(said(payload_json="2"))))
    assert [(1,)] == orchestra.rows("SELECT count(*) FROM execution_signals")


@pytest.mark.parametrize("node", [GO, ASK], ids=["signal", "approval"])
async def test_a_call_that_is_repeated_while_the_first_is_under_way_is_answered_with_it(
    orchestra: Orchestra, node: dict[str, Any]
) -> None:
    """So it is where a client's time is up before the answer is there."""
    async with orchestra.running():
        run = await start(orchestra, orchestra.owner, s=node, t=node)
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        call: Any = stub.SendSignal if node is GO else stub.AnswerApproval
        say: Any = send if node is GO else decide
        said = say(execution_id=run, request_id=str(uuid4()))
        told = await asyncio.gather(*(call(said) for _ in range(8)))
        assert {"s"} == {each.node_id for each in told}
        assert "t" == (await call(say(execution_id=run))).node_id
        ended = await orchestra.stub.WaitExecution(pb.WaitExecutionRequest(execution_id=run))
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == ended.execution.status
    assert [(2,)] == orchestra.rows("SELECT count(*) FROM execution_signals")


async def test_early_words_of_a_run_are_bounded_in_bytes_and_stop_none_that_is_waited_for(
    orchestra: Orchestra,
) -> None:
    """They lie in memory: a thousand of the largest would be 64 MiB of every run."""
    text = {"t": "str"}
    late = {"kind": "signal", "signal": {"name": "late", "type": text, "timeout_ms": None}}
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"s": GO, "l": late},
        edges=[],
        links=[{"source": "s", "target": "l", "kind": "order"}],
        inputs=(),
        outputs=[],
    )
    async with orchestra.running():
        run = await orchestra.stub.StartExecution(
            pb.StartExecutionRequest(workflow_id=str(workflow))
        )
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        said = partial(send, execution_id=run.execution.id, name="late")
        large = '"' + "x" * 65_534 + '"'
        for _ in range(64):
            assert "" == (await stub.SendSignal(said(payload_json=large))).node_id
        refused = await refusal(stub.SendSignal(said(payload_json='""')))
        assert ("RESOURCE_EXHAUSTED", "SIGNALS_WAIT") == refused[:2]
        waited_for = await stub.SendSignal(send(execution_id=run.execution.id))
        assert "s" == waited_for.node_id
        answer = await orchestra.stub.WaitExecution(
            pb.WaitExecutionRequest(execution_id=run.execution.id)
        )
        assert execution_pb2.EXECUTION_STATUS_COMPLETED == answer.execution.status


async def test_a_thousand_early_words_stop_none_that_is_waited_for(orchestra: Orchestra) -> None:
    """A run that got them for a node behind the one that waits could never go on."""
    late = {"kind": "signal", "signal": {"name": "late", "type": INT, "timeout_ms": None}}
    async with orchestra.running():
        run = await start(orchestra, orchestra.owner, s=GO, l=late)
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        word = partial(send, execution_id=run, name="late")
        assert "l" == (await stub.SendSignal(word())).node_id
        for _ in range(10):  # not all at once: each is to be answered within its own time
            await asyncio.gather(*(stub.SendSignal(word()) for _ in range(100)))
        refused = await refusal(stub.SendSignal(word()))
        assert ("RESOURCE_EXHAUSTED", "SIGNALS_WAIT") == refused[:2]
        assert "s" == (await stub.SendSignal(send(execution_id=run))).node_id
