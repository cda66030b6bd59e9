"""Elements that a map put aside run again in a new run that keeps the others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.rerun_service_pb2 import RetryQuarantinedRequest

from services.orchestrator.domain import partly
from services.orchestrator.engine.journal import OutcomeUnknownError
from services.orchestrator.engine.journal_queue import JournalQueue
from services.orchestrator.usecases import kept_results
from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    COMPLETED,
    FAILED,
    chain,
    ended,
    refusal,
    reruns,
    start,
)
from tests.integration.orchestrator.test_constructs import nodes_of
from tests.integration.orchestrator.test_reruns import node, rerun


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take workflows with constructs as they are: who stores them holds them to their types."""
    from services.orchestrator.domain import compatibility

    monkeypatch.setattr(compatibility, "check", lambda *_: None)


def add_one(seen: list[Any], *, mended: bool) -> Callable[..., object]:
    """Add one to a number; a negative one fails until that is mended."""

    def answer(define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        seen.append(inputs["x"])
        if isinstance(inputs["x"], list):
            return len(inputs["x"])
        if inputs["x"] < 0 and not mended:
            raise Fail(retryable=False)
        return inputs["x"] + 1

    return answer


@asynccontextmanager
async def adding(orchestra: Orchestra, seen: list[Any], *, mended: bool) -> AsyncIterator[None]:
    """An orchestrator, and a runner that adds one."""
    async with orchestra.running():
        async with (await orchestra.runner(add_one(seen, mended=mended))).attached():
            yield


@pytest.fixture(params=[1, 2])
def mapped(orchestra: Orchestra, request: pytest.FixtureRequest) -> tuple[int, str]:
    """before → m → after, beside it a choice: m runs over numbers, or over lists of them."""
    node = factories.node(orchestra.sql, orchestra.owner)
    depth = int(request.param)
    values = "[1,-2,3,-4,5]" if depth == 1 else "[[1,-2],[],[3],[-4],[5,6]]"
    rule = {"input": "x", "depth": depth, "max_in_flight": 1, "max_failed": 3}
    choice = {"branches": [{"name": "yes", "condition": "x > 0"}], "default": None}
    made = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={
            "before": node,
            "m": node,
            "after": node,
            "pick": {"kind": "choice", "choice": choice},
        },
        edges=[
            ("", "x", "before", "x"),
            ("", "x", "pick", "x"),
            ("m", "result", "after", "x"),
        ],
        links=[{"source": "before", "target": "m", "kind": "order"}],
        node_settings={"m": {"map": rule, "parameters": {"x": values}}},
        outputs=[("m", "m"), ("after", "after")],
    )
    return depth, str(made)


@pytest.mark.parametrize("copies_max", [1, 2, 500])
async def test_only_what_was_put_aside_runs_again(
    orchestra: Orchestra,
    mapped: tuple[int, str],
    copies_max: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over a restart too, within the map's window; the parent stays as it was.

    However many flushes write what is kept.
    """
    monkeypatch.setattr(partly, "COPIES_MAX", copies_max)
    depth, workflow = mapped
    seen: list[Any] = []
    async with adding(orchestra, seen, mended=False):
        parent = await start(orchestra, workflow, '{"x":10}')
        first = await ended(orchestra, parent.id)
    async with orchestra.running():
        asked = RetryQuarantinedRequest(execution_id=parent.id, validate_only=True)
        dry = await reruns(orchestra).RetryQuarantined(asked)
        asked.validate_only = False
        made = await reruns(orchestra).RetryQuarantined(asked)
    seen.clear()
    async with adding(orchestra, seen, mended=True):
        again = await ended(orchestra, made.execution.id)
        nodes = await nodes_of(orchestra, again.id)
        before = await nodes_of(orchestra, parent.id)
    good = [2, -1, 4, -3, 6] if depth == 1 else [[2, -1], [], [4], [-3], [6, 7]]
    assert {"m": good, "after": 5} == json.loads(again.output_json)
    # Before and pick are kept, and of the map what has no poison in it, inner maps as well.
    wanted = ([-2, -4], 5) if depth == 1 else ([1, -2, -4], 8)
    assert wanted[0] == seen[:-1]
    assert wanted[1] == made.kept_results == dry.kept_results
    assert ("retry_quarantined", parent.id) == (again.relation, again.parent_execution_id)
    assert set(before) == set(nodes)
    assert {"COMPLETED"} == set(nodes.values())
    assert 2 == sum(each == "QUARANTINED" for each in before.values())
    assert [(first.output_json,)] == orchestra.rows(
        "SELECT output_data::text FROM workflow_executions WHERE id = %s", parent.id
    )


async def test_what_an_orchestrator_left_half_made_begins_nothing(
    orchestra: Orchestra, mapped: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had been kept would run again: it fails, says so, and can be made once more."""
    _, workflow = mapped
    seen: list[Any] = []
    monkeypatch.setattr(partly, "COPIES_MAX", 1)
    async with orchestra.running():
        async with (await orchestra.runner(add_one(seen, mended=False))).attached():
            parent = await ended(orchestra, (await start(orchestra, workflow, '{"x":10}')).id)
        written, taken = JournalQueue._take_beginning, list[str]()

        def dies(self: JournalQueue) -> Any:
            [t] = written(self)
            taken.append(str(t.run_id))
            if len(taken) > 2:
                raise OutcomeUnknownError
            return [t]

        monkeypatch.setattr(JournalQueue, "_take_beginning", dies)
        asked = RetryQuarantinedRequest(execution_id=parent.id)
        code, reason, _ = await refusal(reruns(orchestra).RetryQuarantined(asked))
        assert ("UNAVAILABLE", "ENGINE_RECOVERING") == (code, reason)
        failed = await ended(orchestra, taken[0])
        assert (FAILED, "engine_error") == (failed.status, failed.error.error_type)
        assert "retry that run again" in failed.error.message
        monkeypatch.setattr(JournalQueue, "_take_beginning", written)
        seen.clear()
        again = await reruns(orchestra).RetryQuarantined(asked)
        async with (await orchestra.runner(add_one(seen, mended=True))).attached():
            assert COMPLETED == (await ended(orchestra, again.execution.id)).status
    assert seen[:-1] in ([-2, -4], [1, -2, -4])


async def test_a_rerun_keeps_what_was_put_aside_and_has_it_run_again(
    orchestra: Orchestra, mapped: tuple[int, str]
) -> None:
    """As the run does that it was made of; also a rerun of that, and over a restart."""
    depth, workflow = mapped
    seen: list[Any] = []
    async with adding(orchestra, seen, mended=False):
        first = await ended(orchestra, (await start(orchestra, workflow, '{"x":10}')).id)
        parent = first
        for _ in range(2):
            seen.clear()
            made = await reruns(orchestra).RerunExecution(rerun(parent.id, node("after")))
            parent = await ended(orchestra, made.execution.id)
            assert 1 == len(seen)
            assert parent.output_json == first.output_json
            assert await nodes_of(orchestra, parent.id) == await nodes_of(orchestra, first.id)
    async with adding(orchestra, seen, mended=True):
        seen.clear()
        asked = RetryQuarantinedRequest(execution_id=parent.id)
        again = await reruns(orchestra).RetryQuarantined(asked)
        mended = await ended(orchestra, again.execution.id)
    good = [2, -1, 4, -3, 6] if depth == 1 else [[2, -1], [], [4], [-3], [6, 7]]
    assert {"m": good, "after": 5} == json.loads(mended.output_json)
    assert ([-2, -4] if depth == 1 else [1, -2, -4]) == seen[:-1]


async def test_more_than_can_be_copied_is_kept_without_its_elements(
    orchestra: Orchestra, mapped: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rerun is not refused for them: its map's own row has the list."""
    monkeypatch.setattr(kept_results, "_PARTS_MAX", 3)
    _, workflow = mapped
    async with orchestra.running():
        async with (await orchestra.runner(add_one([], mended=False))).attached():
            first = await ended(orchestra, (await start(orchestra, workflow, '{"x":10}')).id)
            made = await reruns(orchestra).RerunExecution(rerun(first.id, node("after")))
            again = await ended(orchestra, made.execution.id)
        call = reruns(orchestra).RetryQuarantined(RetryQuarantinedRequest(execution_id=again.id))
        told = await refusal(call)
    assert (3, first.output_json) == (made.kept_results, again.output_json)
    assert ("FAILED_PRECONDITION", "NOTHING_QUARANTINED") == told[:2]


async def test_a_map_that_broke_its_tolerance_is_retried_too(orchestra: Orchestra) -> None:
    """With what it had not begun, and what hangs on it."""
    node = factories.node(orchestra.sql, orchestra.owner)
    rule = {"input": "x", "max_in_flight": 1, "max_failed": 1}
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes=dict.fromkeys(("before", "m", "after"), node),
        edges=[("", "x", "before", "x"), ("m", "result", "after", "x")],
        links=[{"source": "before", "target": "m", "kind": "order"}],
        node_settings={"m": {"map": rule, "parameters": {"x": "[1,-2,3,-4,5]"}}},
        outputs=[("m", "m"), ("after", "after")],
    )
    seen: list[Any] = []
    async with orchestra.running():
        runner = await orchestra.runner(add_one(seen, mended=False))
        async with runner.attached():
            parent = await ended(orchestra, (await start(orchestra, workflow)).id)
        before = await nodes_of(orchestra, parent.id)
        asked = RetryQuarantinedRequest(execution_id=parent.id)
        made = await reruns(orchestra).RetryQuarantined(asked)
        seen.clear()
        runner = await orchestra.runner(add_one(seen, mended=True))
        async with runner.attached():
            again = await ended(orchestra, made.execution.id)
    assert ("FAILED", "QUARANTINED", "FAILED") == tuple(
        before[name] for name in ("m", "m[1]", "m[3]")
    )
    assert [-2, -4, 5] == seen[:-1]
    assert 3 == made.kept_results  # before, m[0] and m[2]
    assert {"m": [2, -1, 4, -3, 6], "after": 5} == json.loads(again.output_json)


async def test_a_run_without_quarantined_elements_is_refused(orchestra: Orchestra) -> None:
    workflow = chain(orchestra, "a")
    async with orchestra.running():
        async with (await orchestra.runner(add_one([], mended=True))).attached():
            run = await start(orchestra, workflow)
            await orchestra.stub.WaitExecution(pb.WaitExecutionRequest(execution_id=run.id))
        call = reruns(orchestra).RetryQuarantined(RetryQuarantinedRequest(execution_id=run.id))
        code, reason, _ = await refusal(call)
    assert ("FAILED_PRECONDITION", "NOTHING_QUARANTINED") == (code, reason)


def over(orchestra: Orchestra, inner: object, **settings: Any) -> str:
    """A workflow whose one node `s` is a sub-workflow."""
    part = {"kind": "workflow", "node_id": str(inner), "version": 1, **settings}
    edges = [] if settings else [("", "x", "s", "x")]
    return str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"s": part},
            edges=edges,
            outputs=[("result", "s")],
        )
    )


async def test_elements_that_are_sub_workflows_run_again_and_the_others_are_kept(
    orchestra: Orchestra,
) -> None:
    rule = {"input": "x", "max_failed": 1}
    numbers = factories.node(orchestra.sql, orchestra.owner)
    inner = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": numbers, "b": numbers},
        edges=[("", "x", "a", "x"), ("a", "result", "b", "x")],
        outputs=[("result", "b")],
    )
    workflow = over(orchestra, inner, map=rule, parameters={"x": "[1,-2,3]"})
    seen: list[Any] = []
    async with adding(orchestra, seen, mended=False):
        first = await ended(orchestra, (await start(orchestra, workflow)).id)
    seen.clear()
    async with adding(orchestra, seen, mended=True):
        asked = RetryQuarantinedRequest(execution_id=first.id)
        made = await reruns(orchestra).RetryQuarantined(asked)
        again = await ended(orchestra, made.execution.id)
    assert {"result": [3, None, 5]} == json.loads(first.output_json)
    assert {"result": [3, 0, 5]} == json.loads(again.output_json)
    assert (2, [-2, -1]) == (made.kept_results, seen)
    # Of what ran in it: the sub-workflow's two attempts, and not those of the kept ones.
    assert 200 == again.resource_usage.cpu_time.ToMicroseconds()


@pytest.mark.parametrize("levels", [1, 2])
async def test_what_a_sub_workflow_put_aside_is_refused_with_the_ways_to_it(
    orchestra: Orchestra, levels: int
) -> None:
    rule = {"input": "x", "max_failed": 1}
    workflow: object = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"m": factories.node(orchestra.sql, orchestra.owner)},
        edges=[],
        node_settings={"m": {"map": rule, "parameters": {"x": "[1,-2,3]"}}},
        outputs=[("result", "m")],
    )
    for _ in range(levels):
        workflow = over(orchestra, workflow)
    seen: list[Any] = []
    async with adding(orchestra, seen, mended=False):
        first = await ended(orchestra, (await start(orchestra, workflow, '{"x":10}')).id)
    assert COMPLETED == first.status
    seen.clear()
    async with adding(orchestra, seen, mended=True):
        asked = RetryQuarantinedRequest(execution_id=first.id)
        code, reason, facts = await refusal(reruns(orchestra).RetryQuarantined(asked))
        assert ("FAILED_PRECONDITION", "NOTHING_QUARANTINED", "s") == (
            code,
            reason,
            facts["node_id"],
        )
        asked.execution_id = facts["sub_workflow_execution_id"]
        part = (await reruns(orchestra).RetryQuarantined(asked)).execution
        done = await ended(orchestra, part.id)
        assert (COMPLETED, {"result": [2, -1, 4]}) == (done.status, json.loads(done.output_json))
        whole = (await reruns(orchestra).RerunExecution(rerun(first.id, node("s")))).execution
        done = await ended(orchestra, whole.id)
        assert (COMPLETED, {"result": [2, -1, 4]}) == (done.status, json.loads(done.output_json))
