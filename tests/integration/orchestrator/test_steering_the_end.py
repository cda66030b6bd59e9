"""What closes a run is steered as its other nodes are, also while the run is being cancelled."""

from __future__ import annotations

from functools import partial
from typing import Any

import grpc
import pytest
from qflow.orchestrator.v1 import control_service_pb2 as pb
from qflow.orchestrator.v1.control_service_pb2_grpc import ControlServiceStub

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    CANCELLED,
    cancel,
    ended,
    get,
    refusal,
    start,
    told,
)

LONG: dict[str, Any] = {"kind": "sleep", "sleep": {}, "parameters": {"seconds": "600"}}
ASK: dict[str, Any] = {"kind": "approval", "approval": {"name": "ok"}, "phase": "finally"}
TOLD: dict[str, Any] = {"kind": "signal", "signal": {"name": "go"}, "phase": "finally"}


async def closing(orchestra: Orchestra, **nodes: Any) -> str:
    """Give a run that is being cancelled, and waits in what closes it."""
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"long": LONG, **nodes},
        edges=[],
        inputs=(),
        outputs=[],
    )
    run = (await start(orchestra, workflow, "{}")).id
    await cancel(orchestra, run)
    return run


async def test_the_words_that_close_a_cancelled_run_are_taken(orchestra: Orchestra) -> None:
    async with orchestra.running():
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        run = await closing(orchestra, ask=ASK, told=TOLD)
        waits = await stub.ListWaits(pb.ListWaitsRequest(execution_id=run))
        assert {"ok", "go"} == {each.name for each in waits.waits}
        held = partial(stub.PauseExecution, pb.PauseExecutionRequest(execution_id=run))
        assert "EXECUTION_STOPPING" == (await refusal(held()))[1]
        await stub.AnswerApproval(
            pb.AnswerApprovalRequest(execution_id=run, name="ok", approved=True)
        )
        await stub.SendSignal(pb.SendSignalRequest(execution_id=run, name="go", payload_json="1"))
        assert CANCELLED == (await ended(orchestra, run)).status


async def test_what_closes_a_cancelled_run_is_ended_by_hand(orchestra: Orchestra) -> None:
    async with orchestra.running():
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        run = await closing(orchestra, ask=ASK)
        await stub.SkipNode(pb.SkipNodeRequest(execution_id=run, node="ask"))
        assert CANCELLED == (await ended(orchestra, run)).status


async def test_a_cancelled_run_that_nothing_closes_takes_no_word(orchestra: Orchestra) -> None:
    async with orchestra.running():
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        run = await closing(orchestra)
        word = pb.SendSignalRequest(execution_id=run, name="go", payload_json="1")
        assert (await refusal(stub.SendSignal(word)))[1] in {
            "EXECUTION_FINISHED",
            "EXECUTION_STOPPING",
        }
        assert CANCELLED == (await get(orchestra, run)).status


async def test_a_run_that_is_over_waits_for_nothing(orchestra: Orchestra) -> None:
    """To ask what a run waits for changes nothing of it: whoever asks a moment late is answered."""
    async with orchestra.running():
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        run = await closing(orchestra)
        asked = pb.ListWaitsRequest(execution_id=run)
        assert not (await stub.ListWaits(asked)).waits
        await ended(orchestra, run)
        assert not (await stub.ListWaits(asked)).waits


async def test_what_closes_a_run_is_not_steered_before_it_closes(orchestra: Orchestra) -> None:
    undo = {"kind": "sleep", "sleep": {}, "parameters": {"seconds": "1"}, "compensates": "long"}
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"long": LONG, "ask": ASK, "undo": undo},
        edges=[],
        inputs=(),
        outputs=[],
    )
    async with orchestra.running():
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        run = (await start(orchestra, workflow, "{}")).id
        for node, said in (("ask", "a finally node"), ("undo", "a compensation")):
            for call in (
                stub.PauseNode(pb.PauseNodeRequest(execution_id=run, node=node)),
                stub.SkipNode(pb.SkipNodeRequest(execution_id=run, node=node)),
            ):
                code, reason, why = await refusal_of(call)
                assert ("FAILED_PRECONDITION", "NODE_NOT_REACHED") == (code, reason)
                assert said in why
        begun = stub.PauseNode(pb.PauseNodeRequest(execution_id=run, node="long"))
        assert "has begun already" in (await refusal_of(begun))[2]
        await cancel(orchestra, run)
        never = stub.PauseNode(pb.PauseNodeRequest(execution_id=run, node="undo"))
        assert "there is nothing of long to be undone" in (await refusal_of(never))[2]


async def refusal_of(call: Any) -> tuple[str, str, str]:
    """The code, the reason and the words with which a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    code, reason, _ = told(refused.value)
    return code, reason, refused.value.details() or ""
