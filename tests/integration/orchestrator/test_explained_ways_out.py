"""What a run is told to help it does help: each test takes the way out that it was shown."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from qflow.orchestrator.v1 import control_service_pb2 as control
from qflow.orchestrator.v1 import explain_service_pb2 as pb
from qflow.orchestrator.v1 import rerun_service_pb2, run_service_pb2
from qflow.orchestrator.v1.control_service_pb2_grpc import ControlServiceStub

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    COMPLETED,
    FAILED,
    cancel,
    chain,
    ended,
    reruns,
    runs,
    start,
)
from tests.integration.orchestrator.test_explain import only, reasons
from tests.integration.orchestrator.test_plans import plan

SIGNAL = {"kind": "signal", "signal": {"name": "go", "type": {"t": "int"}, "timeout_ms": None}}


def steering(orchestra: Orchestra) -> Any:
    return ControlServiceStub(orchestra.channel(orchestra.owner.token))


async def test_a_run_of_one_node_is_run_anew_or_retried(orchestra: Orchestra) -> None:
    """B62i: a rerun with another version, which helps a workflow, is refused for it."""
    node = factories.node(orchestra.sql, orchestra.owner)
    mended: list[int] = []

    def answer(*_: Any) -> object:
        if not mended:
            raise Fail
        return mended[0]

    asked = run_service_pb2.RunNodeRequest(node_id=str(node.id), input_json='{"x":1}')
    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            broken = (await runs(orchestra).RunNode(asked)).execution
            assert FAILED == broken.status
            action = (await only(orchestra, broken.id)).action
            assert "RunNode" in action
            assert "Rerun" not in action
            mended.append(1)
            assert COMPLETED == (await runs(orchestra).RunNode(asked)).execution.status
            retry = rerun_service_pb2.RetryExecutionRequest(execution_id=broken.id)
            again = (await reruns(orchestra).RetryExecution(retry)).execution
            assert COMPLETED == (await ended(orchestra, again.id)).status


async def test_what_a_run_within_waits_for_is_told_by_the_run_around_it(
    orchestra: Orchestra,
) -> None:
    inner = factories.workflow(
        orchestra.sql, orchestra.owner, nodes={"w": SIGNAL}, edges=[], outputs=[]
    )
    outer = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"s": {"kind": "workflow", "node_id": str(inner), "version": 1}},
        edges=[("", "x", "s", "x")],
        outputs=[],
    )
    async with orchestra.running():
        run = await start(orchestra, outer)
        [(child,)] = orchestra.rows(
            "SELECT id::text FROM workflow_executions WHERE parent_execution_id = %s", run.id
        )
        reason = await only(orchestra, run.id)
        assert pb.EXECUTION_CAUSE_NODES_WAITING == reason.cause
        told = f"s: SendSignal with the name go to execution {child}, which runs it"
        assert told == reason.action
        await steering(orchestra).SendSignal(
            control.SendSignalRequest(execution_id=str(child), name="go", payload_json="1")
        )
        assert COMPLETED == (await ended(orchestra, run.id)).status


async def test_what_the_innermost_run_waits_for_is_told_by_the_outermost(
    orchestra: Orchestra,
) -> None:
    """Also where one of those between them is paused by itself: that comes first."""
    ids = [
        factories.workflow(
            orchestra.sql, orchestra.owner, nodes={"w": SIGNAL}, edges=[], outputs=[]
        )
    ]
    for _ in range(2):
        place = {"kind": "workflow", "node_id": str(ids[-1]), "version": 1}
        ids.append(
            factories.workflow(
                orchestra.sql,
                orchestra.owner,
                nodes={"s": place},
                edges=[("", "x", "s", "x")],
                outputs=[],
            )
        )
    async with orchestra.running():
        run = await start(orchestra, ids[-1])
        below, within = str(run.id), list[str]()
        for _ in range(2):
            [(found,)] = orchestra.rows(
                "SELECT id::text FROM workflow_executions WHERE parent_execution_id = %s", below
            )
            below = str(found)
            within.append(below)
        told = f"s: SendSignal with the name go to execution {below}, which is in what runs it"
        assert told == (await only(orchestra, run.id)).action
        steers = steering(orchestra)
        await steers.PauseExecution(control.PauseExecutionRequest(execution_id=within[0]))
        told_first = f"s: ResumeExecution of execution {within[0]}, which runs it and is paused"
        assert told_first == (await only(orchestra, run.id)).action
        await steers.ResumeExecution(control.ResumeExecutionRequest(execution_id=within[0]))
        assert told == (await only(orchestra, run.id)).action
        await steers.SendSignal(
            control.SendSignalRequest(execution_id=below, name="go", payload_json="1")
        )
        assert COMPLETED == (await ended(orchestra, run.id)).status


async def test_a_map_over_its_tolerance_names_the_elements_that_failed(
    orchestra: Orchestra,
) -> None:
    def answer(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
        if inputs["x"] < 0:
            raise Fail
        return inputs["x"]

    rule = {"input": "x", "max_failed": 2, "max_in_flight": 1}
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"m": factories.node(orchestra.sql, orchestra.owner)},
        edges=[],
        outputs=[],
        node_settings={"m": {"map": rule, "parameters": {"x": "[1,-2,-3,4,-5,6]"}}},
    )
    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            run = await start(orchestra, workflow_id)
            assert FAILED == (await ended(orchestra, run.id)).status
            reason = await only(orchestra, run.id)
    assert "3 of its elements failed (m[1], m[2], m[4]), and max_failed is 2" in reason.message
    assert (["m", "m[1]", "m[2]", "m[4]"], 4) == (list(reason.nodes), reason.node_count)


async def test_a_retry_that_is_due_is_had_at_once(orchestra: Orchestra) -> None:
    mended: list[int] = []

    def answer(*_: Any) -> object:
        if not mended:
            raise Fail
        return mended[0]

    retry = {"retry": {"max_retries": 1, "initial_delay_ms": 600_000, "max_delay_ms": 600_000}}
    workflow_id = chain(orchestra, "a", node_settings={"a": retry})
    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            run = await start(orchestra, workflow_id)
            await runner.until(lambda: bool(runner.acks))
            assert "PauseNode and then ResumeNode" in (await only(orchestra, run.id)).action
            mended.append(1)
            stub = steering(orchestra)
            await stub.PauseNode(control.PauseNodeRequest(execution_id=run.id, node="a"))
            await stub.ResumeNode(control.ResumeNodeRequest(execution_id=run.id, node="a"))
            assert COMPLETED == (await ended(orchestra, run.id)).status


async def test_what_failed_within_another_run_is_explained_there(orchestra: Orchestra) -> None:
    def answer(*_: Any) -> object:
        raise Fail

    inner = chain(orchestra, "i")
    outer = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"s": {"kind": "workflow", "node_id": inner, "version": 1}},
        edges=[("", "x", "s", "x")],
        outputs=[],
    )
    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            run = await start(orchestra, outer)
            assert FAILED == (await ended(orchestra, run.id)).status
        [(child,)] = orchestra.rows(
            "SELECT id::text FROM workflow_executions WHERE parent_execution_id = %s", run.id
        )
        assert f"ExplainExecution of execution {child}" in (await only(orchestra, run.id)).action
        assert ["i"] == list((await only(orchestra, str(child))).nodes)


@pytest.mark.parametrize(
    "again",
    [
        {"map": {"input": "x", "max_failed": 0}},
        {"loop": {"condition": "turn < 2", "max_turns": 2, "carry": {}, "at_max": "finish"}},
    ],
    ids=["map", "loop"],
)
async def test_what_failed_within_a_part_that_is_a_run_is_explained_there(
    orchestra: Orchestra, again: dict[str, Any]
) -> None:
    """No version of a node can be named at such a place."""

    def answer(*_: Any) -> object:
        raise Fail

    inner = chain(orchestra, "i")
    given = "[1]" if "map" in again else "1"
    outer = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"s": {"kind": "workflow", "node_id": inner, "version": 1}},
        edges=[],
        outputs=[],
        node_settings={"s": {**again, "parameters": {"x": given}}},
    )
    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            run = await start(orchestra, outer)
            assert FAILED == (await ended(orchestra, run.id)).status
        [(part,)] = orchestra.rows(
            "SELECT id::text FROM workflow_executions WHERE parent_execution_id = %s", run.id
        )
        assert f"ExplainExecution of execution {part}" in (await only(orchestra, run.id)).action


async def test_a_retry_that_is_had_at_once_waits_for_a_runner_where_all_are_full(
    orchestra: Orchestra,
) -> None:
    """It fails first, and holds its only runner up for others until the test lets go."""
    first: list[str] = []

    def answer(_define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        if inputs["x"] == 1 and not first:
            first.append("failed")
            raise Fail
        return 2 if inputs["x"] == 1 else None

    retry = {"retry": {"max_retries": 1, "initial_delay_ms": 600_000}}
    workflow = chain(orchestra, "a", node_settings={"a": retry})
    async with orchestra.running():
        runner = await orchestra.runner(answer, slots=1)
        async with runner.attached():
            run = await start(orchestra, workflow)
            reason = await until(orchestra, run.id, pb.EXECUTION_CAUSE_RETRY_DUE)
            assert "PauseNode and then ResumeNode" in reason.action
            await start(orchestra, workflow, '{"x":7}')
            while not runner.held:  # noqa: ASYNC110  # its runner tells nobody
                await asyncio.sleep(0.01)
            stub = steering(orchestra)
            await stub.PauseNode(control.PauseNodeRequest(execution_id=run.id, node="a"))
            await stub.ResumeNode(control.ResumeNodeRequest(execution_id=run.id, node="a"))
            reason = await until(orchestra, run.id, pb.EXECUTION_CAUSE_RUNNERS_FULL)
            assert ["a"] == list(reason.nodes)
            [held] = runner.held.values()
            runner.succeed(held, 7)
            assert COMPLETED == (await ended(orchestra, run.id)).status


async def until(orchestra: Orchestra, execution_id: str, cause: int) -> pb.ExecutionReason:
    """Ask why a run does not go on until this is why."""
    async with asyncio.timeout(30):
        while True:
            for reason in await reasons(orchestra, execution_id):
                if reason.cause == cause:
                    return reason
            await asyncio.sleep(0.02)


async def test_what_waits_for_a_runner_that_is_kept_for_a_suspect_says_whose_that_is(
    orchestra: Orchestra,
) -> None:
    """F30: it has free slots, and no priority gives them to anybody; to end the suspect does."""

    def answer(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
        return None if inputs["x"] == 1 else inputs["x"]

    workflow = chain(orchestra, "a")
    async with orchestra.running():
        first = await orchestra.runner(answer)
        async with first.attached():
            suspects = [(await start(orchestra, workflow)).id for _ in range(2)]
            await first.until(lambda: len(first.held) > 1)
        await orchestra.renew(first, ttl_s=0)
        second = await orchestra.runner(answer)
        async with second.attached():
            await second.until(lambda: bool(second.held))
            waiting = await start(orchestra, workflow, '{"x":7}')
            reason = await until(orchestra, waiting.id, pb.EXECUTION_CAUSE_RUNNERS_KEPT)
            assert "priority" not in reason.action
            assert all(f"{each}" in reason.action for each in suspects)
            causes = {each: (await only(orchestra, each)) for each in suspects}
            [next_one] = [each for each in causes.values() if each.cause == reason.cause]
            assert next_one.message.startswith("they were on a runner that was lost")
            seats = (await plan(orchestra, workflow)).pythons
            assert [0] == [each.free_slot_count for each in seats]
            for each in suspects:
                await cancel(orchestra, each)
            assert COMPLETED == (await ended(orchestra, waiting.id)).status
