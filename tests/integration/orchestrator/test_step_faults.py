"""A fault of the engine's own in a step of one run: that run alone feels it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import grpc
import pytest
from qflow.orchestrator.v1 import control_service_pb2 as control
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.control_service_pb2_grpc import ControlServiceStub

from services.orchestrator.domain import controls, stopping
from services.orchestrator.domain.state import Run
from tests import factories
from tests.fakes.runner import FakeRunner
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_runs import add_one

_FAILED = execution_pb2.EXECUTION_STATUS_FAILED
_COMPLETED = execution_pb2.EXECUTION_STATUS_COMPLETED


def sleeping(seconds: float) -> Mapping[str, Any]:
    return {"kind": "sleep", "parameters": {"seconds": str(seconds)}}


def make(orchestra: Orchestra, nodes: Mapping[str, Any], edges: Any = ()) -> str:
    made = factories.workflow(
        orchestra.sql, orchestra.owner, nodes=nodes, edges=list(edges), outputs=[]
    )
    return str(made)


async def begin(orchestra: Orchestra, workflow: str) -> str:
    started = await orchestra.stub.StartExecution(
        pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x":1}')
    )
    return str(started.execution.id)


async def end(orchestra: Orchestra, execution_id: str) -> execution_pb2.Execution:
    done = await orchestra.stub.WaitExecution(pb.WaitExecutionRequest(execution_id=execution_id))
    return done.execution


def falls_over(original: Callable[..., Any], place: str) -> Callable[..., Any]:
    """Take a step, and fall over half-way where the run has a place of this name."""

    def step(run: Run, *given: Any, **named: Any) -> Any:
        taken = original(run, *given, **named)
        if place in run.plan.index:
            raise IndexError(place)
        return taken

    return step


@pytest.mark.parametrize("steps", [("wait_over",), ("wait_over", "break_off")])
async def test_timers_of_other_runs_go_on_whatever_becomes_of_one(
    orchestra: Orchestra,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    steps: tuple[str, ...],
) -> None:
    """Rule 6: it is forgotten and read again, and ends when it goes wrong once more.

    Where it cannot be ended in memory, it is by its rows.
    """
    if "break_off" in steps:
        monkeypatch.setattr(stopping, "break_off", falls_over(stopping.break_off, "bad"))
    monkeypatch.setattr(controls, "wait_over", falls_over(controls.wait_over, "bad"))
    bad = make(orchestra, {"bad": sleeping(0.1)})
    good = make(orchestra, {"a": sleeping(0.1)})
    async with orchestra.running():
        broken = await begin(orchestra, bad)
        sound = [await begin(orchestra, good) for _ in range(3)]
        assert [_COMPLETED] * 3 == [(await end(orchestra, each)).status for each in sound]
        ended = await end(orchestra, broken)
        assert _COMPLETED == (await end(orchestra, await begin(orchestra, good))).status
    assert _FAILED == ended.status
    assert "engine_error" == ended.error.error_type
    assert "a fault of the engine's: IndexError('bad')" == ended.error.message
    assert len(steps) + 1 == capsys.readouterr().out.count("execution_step_failed")


async def test_a_caller_whose_word_goes_wrong_is_told_and_the_run_stands_as_before(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal = {"kind": "signal", "signal": {"name": "go", "type": {"t": "int"}, "timeout_ms": None}}
    workflow = make(orchestra, {"s": signal})
    async with orchestra.running():
        execution_id = await begin(orchestra, workflow)
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
        word = control.SendSignalRequest(execution_id=execution_id, name="go", payload_json="1")
        with monkeypatch.context() as patched:
            patched.setattr(controls, "take_signal", falls_over(controls.take_signal, "s"))
            for _ in range(3):
                code = grpc.StatusCode.UNAVAILABLE
                while code is grpc.StatusCode.UNAVAILABLE:  # while it is read again
                    with pytest.raises(grpc.aio.AioRpcError) as told:
                        await stub.SendSignal(word, timeout=40)
                    code = told.value.code()
                assert grpc.StatusCode.INTERNAL == code
        node = ""
        while not node:
            try:
                node = (await stub.SendSignal(word, timeout=40)).node_id
            except grpc.aio.AioRpcError as error:
                assert grpc.StatusCode.UNAVAILABLE == error.code()  # noqa: PT017
        assert _COMPLETED == (await end(orchestra, execution_id)).status
    assert "s" == node
    assert [(1,)] == orchestra.rows("SELECT count(*) FROM execution_signals")


@pytest.mark.parametrize("times", [1, 9])
async def test_a_node_whose_inputs_cannot_be_given_ends_its_run_and_no_other(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """What hangs on a commit is carried out in the writer's own task: it must not fall over."""
    left = [times]
    original = Run.inputs

    def inputs(self: Run, slot: int) -> Any:
        if "bad" in self.plan.index and left[0]:
            left[0] -= 1
            raise IndexError("bad")
        return original(self, slot)

    monkeypatch.setattr(Run, "inputs", inputs)
    node = factories.node(orchestra.sql, orchestra.owner)
    bad = make(orchestra, {"bad": node}, [("", "x", "bad", "x")])
    good = make(orchestra, {"a": node}, [("", "x", "a", "x")])
    async with orchestra.running():
        runner: FakeRunner = await orchestra.runner(add_one)
        async with runner.kept():
            broken, sound = await begin(orchestra, bad), await begin(orchestra, good)
            assert _COMPLETED == (await end(orchestra, sound)).status
            ended = await end(orchestra, broken)
            assert _COMPLETED == (await end(orchestra, await begin(orchestra, good))).status
    assert (_COMPLETED if times == 1 else _FAILED) == ended.status
    assert ("" if times == 1 else "engine_error") == ended.error.error_type
