"""What of a run waits for whom: parts of maps, a run that fails or closes, and what it is of."""

from __future__ import annotations

from typing import Any

import pytest
from qflow.orchestrator.v1 import explain_service_pb2 as pb
from qflow.orchestrator.v1 import rerun_service_pb2

from services.orchestrator.domain import compatibility
from tests import factories
from tests.fakes.runner import Fail, FakeRunner
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import cancel, chain, reruns, start
from tests.integration.orchestrator.test_explain import only, reasons

_LOCKS = ("none", "pending")
_LONG = {"max_retries": 1, "initial_delay_ms": 600_000, "max_delay_ms": 600_000}


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take workflows with constructs as they are: who stores them holds them to their types."""
    monkeypatch.setattr(compatibility, "check", lambda *_: None)


async def told(orchestra: Orchestra, execution_id: str) -> list[tuple[str, list[str]]]:
    name = pb.ExecutionCause.Name
    return [
        (name(each.cause).removeprefix("EXECUTION_CAUSE_"), list(each.nodes))
        for each in await reasons(orchestra, execution_id)
    ]


def holds(runner: FakeRunner, count: int = 1) -> Any:
    return runner.until(lambda: len(runner.held) == count)


async def test_elements_that_no_runner_has_are_told_by_their_map(orchestra: Orchestra) -> None:
    """One is tried again later, which nobody can hasten, one runs, and one waits for its turn."""

    def answer(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
        if inputs["x"] < 0:
            raise Fail
        return None

    settings = {"map": {"input": "x"}, "parameters": {"x": "[-1,2,3]"}, "retry": _LONG}
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"m": factories.node(orchestra.sql, orchestra.owner)},
        edges=[],
        node_settings={"m": settings},
        outputs=[],
    )
    async with orchestra.running():
        runner = await orchestra.runner(answer, slots=1)
        async with runner.attached():
            run = await start(orchestra, workflow)
            await holds(runner)
            full, due, runs = await reasons(orchestra, run.id)
    assert (pb.EXECUTION_CAUSE_RUNNERS_FULL, ["m"]) == (full.cause, list(full.nodes))
    assert (pb.EXECUTION_CAUSE_RETRY_DUE, ["m[0]"], "") == (due.cause, list(due.nodes), due.action)
    assert (pb.EXECUTION_CAUSE_NODES_RUNNING, ["m[1]"]) == (runs.cause, list(runs.nodes))


async def test_of_a_run_that_fails_nothing_is_told_that_will_not_begin(
    orchestra: Orchestra,
) -> None:
    """Its row does not say yet that it fails: something of it still runs."""
    one, locked = (factories.node(orchestra.sql, orchestra.owner, lock=each) for each in _LOCKS)
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"bad": one, "goes_on": one, "locked": locked},
        edges=[("", "x", each, "x") for each in ("bad", "goes_on", "locked")],
        outputs=[],
    )

    def answer(define: Any, _assign: Any, _inputs: dict[str, Any]) -> object:
        if define.node_id == "bad":
            raise Fail(retryable=False)
        return None

    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            run = await start(orchestra, workflow)
            await holds(runner)
            await runner.until(lambda: bool(runner.acks))
            assert [("FAILED", ["bad"]), ("NODES_RUNNING", ["goes_on"])] == await told(
                orchestra, run.id
            )


def paid(orchestra: Orchestra, *, refund_python: str = "3.11") -> object:
    """Make a workflow of pay and ship, whose refund undoes the first."""
    one = factories.node(orchestra.sql, orchestra.owner)
    undo = factories.node(orchestra.sql, orchestra.owner, python=refund_python)
    return factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"pay": one, "ship": one, "refund": undo},
        edges=[
            ("", "x", "pay", "x"),
            ("pay", "result", "ship", "x"),
            ("pay", "result", "refund", "x"),
        ],
        node_settings={"refund": {"compensates": "pay"}},
        outputs=[],
    )


async def test_what_undoes_a_run_that_failed_waits_for_a_runner_as_all_does(
    orchestra: Orchestra,
) -> None:
    def answer(define: Any, _assign: Any, _inputs: dict[str, Any]) -> object:
        if define.node_id == "ship":
            raise Fail(retryable=False)
        return 1

    async with orchestra.running():
        run = await start(orchestra, paid(orchestra, refund_python="3.14"))
        runner = await orchestra.runner(answer)
        async with runner.attached():
            await runner.until(lambda: len(runner.acks) == 2)
            assert [("FAILED", ["ship"]), ("NO_PYTHON", ["refund"])] == await told(
                orchestra, run.id
            )


async def test_what_undoes_a_run_that_is_stopped_is_told_as_what_closes_it(
    orchestra: Orchestra,
) -> None:
    def answer(define: Any, _assign: Any, _inputs: dict[str, Any]) -> object:
        return 1 if define.node_id == "pay" else None

    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            run = await start(orchestra, paid(orchestra))
            await holds(runner)
            assert [("NODES_RUNNING", ["ship"])] == await told(orchestra, run.id)
            await cancel(orchestra, run.id)
            await runner.until(lambda: len(runner.assigns) == 3)
            assert [("CANCELLING", []), ("NODES_RUNNING", ["refund"])] == await told(
                orchestra, run.id
            )
            [closing, _] = await reasons(orchestra, run.id)
    assert closing.message.endswith("what closes it is not over")


async def test_a_run_that_was_made_of_another_is_no_part_of_it(orchestra: Orchestra) -> None:
    async with orchestra.running():
        first = await start(orchestra, chain(orchestra, "a"))
        await cancel(orchestra, first.id)
        retry = rerun_service_pb2.RetryExecutionRequest(execution_id=first.id)
        again = (await reruns(orchestra).RetryExecution(retry)).execution
        await cancel(orchestra, again.id)
        reason = await only(orchestra, again.id)
    assert "a caller stopped the run" == reason.message
    assert first.id not in reason.action
