"""Reruns of graphs with branches: what a choice, a condition or somebody skipped stays so."""

from __future__ import annotations

from typing import Any

import pytest
from qflow.orchestrator.v1 import control_service_pb2 as control
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.control_service_pb2_grpc import ControlServiceStub

from services.orchestrator.domain import compatibility
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import COMPLETED, FAILED, ended, refusal, reruns, start
from tests.integration.orchestrator.test_constructs import nodes_of
from tests.integration.orchestrator.test_reruns import Worker, fork, hold_invariants, node, rerun

CHOICE = {
    "kind": "choice",
    "choice": {"branches": [{"name": "big", "condition": "x > 5"}], "default": "small"},
}


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take workflows with constructs as they are: who stores them holds them to their types."""
    monkeypatch.setattr(compatibility, "check", lambda *_: None)


def link(source: str, target: str, kind: str = "order", **what: str) -> dict[str, str]:
    return {"source": source, "target": target, "kind": kind, **what}


def made(
    orchestra: Orchestra,
    links: list[dict[str, str]],
    settings: dict[str, dict[str, Any]] | None = None,
    *,
    names: str = "pick large small pay ship",
) -> str:
    """Make a workflow whose places all read the run's input; pick is a choice."""
    one = factories.node(orchestra.sql, orchestra.owner)
    return str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={name: CHOICE if name == "pick" else one for name in names.split()},
            edges=[("", "x", name, "x") for name in names.split()],
            links=links,
            node_settings=settings,
            outputs=[("out", "ship")],
        )
    )


@pytest.fixture(params=["all", "any", "all_done"])
def order(orchestra: Orchestra, request: pytest.FixtureRequest) -> str:
    """pick → large | small → pay → ship."""
    return made(
        orchestra,
        [
            link("pick", "large", "branch", branch="big"),
            link("pick", "small", "branch", branch="small"),
            link("large", "pay"),
            link("small", "pay"),
            link("pay", "ship"),
        ],
        {"pay": {"join": {"policy": request.param}}},
    )


async def copies(orchestra: Orchestra, execution_id: str) -> set[str]:
    listed = await orchestra.stub.ListNodeExecutions(
        pb.ListNodeExecutionsRequest(execution_id=execution_id)
    )
    return {each.node_id for each in listed.node_executions if each.copied_from}


async def test_behind_a_branch_that_was_not_taken_nothing_runs_again(
    orchestra: Orchestra, order: str
) -> None:
    """It paid once: in a rerun, in one that names a node, in one of a rerun, over a restart."""
    worker = Worker("ship")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await ended(orchestra, (await start(orchestra, order)).id)
            plain = await reruns(orchestra).RerunExecution(rerun(first.id))
            again = await ended(orchestra, plain.execution.id)
            assert {"small": 1, "pay": 1, "ship": 2} == worker.ran
            named = await reruns(orchestra).RerunExecution(rerun(again.id, node("ship")))
            await ended(orchestra, named.execution.id)
        last = await reruns(orchestra).RerunExecution(rerun(named.execution.id))
    worker.failing.clear()
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            done = await ended(orchestra, last.execution.id)
            nodes = await nodes_of(orchestra, done.id)
            taken = await copies(orchestra, done.id)
            nothing = await refusal(reruns(orchestra).RerunExecution(rerun(done.id)))
    assert (FAILED, COMPLETED, '{"out":2}') == (again.status, done.status, done.output_json)
    assert {"small": 1, "pay": 1, "ship": 4} == worker.ran
    assert [3, 3, 3] == [each.kept_results for each in (plain, named, last)]  # a skip is no result
    assert "SKIPPED" == nodes.pop("large")
    assert {"COMPLETED"} == set(nodes.values())
    assert {"pick", "large", "small", "pay"} == taken
    assert ("FAILED_PRECONDITION", "NOTHING_TO_RERUN") == nothing[:2]
    assert [(None, True)] * 4 == orchestra.rows(
        "SELECT started_at, completed_at IS NOT NULL FROM node_executions WHERE node_id = 'large'"
    )
    hold_invariants(orchestra)


async def test_behind_another_input_a_choice_is_made_anew(orchestra: Orchestra, order: str) -> None:
    """What stood on the other branch is skipped now, and what was skipped runs."""
    worker = Worker("ship")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            first = await ended(orchestra, (await start(orchestra, order)).id)
            worker.failing.clear()
            edited = rerun(first.id, node("pick", input_json='{"x":9}'))
            answer = await reruns(orchestra).RerunExecution(edited)
            done = await ended(orchestra, answer.execution.id)
            other = await reruns(orchestra).ForkExecution(fork(first.id, input_json='{"x":9}'))
            forked = await ended(orchestra, other.execution.id)
            nodes = [await nodes_of(orchestra, each.id) for each in (done, forked)]
    assert [0, 0] == [answer.kept_results, other.kept_results]
    assert {"small": 1, "large": 2, "pay": 3, "ship": 3} == worker.ran
    assert [("COMPLETED", "SKIPPED")] * 2 == [(each["large"], each["small"]) for each in nodes]
    hold_invariants(orchestra)


async def test_a_branch_of_failure_that_was_not_taken_stays_so(orchestra: Orchestra) -> None:
    """check → pay → bill, or amend instead where check fails; where it did, all runs again."""
    workflow = made(
        orchestra,
        [
            link("check", "pay"),
            link("check", "amend", "failure"),
            link("pay", "bill"),
            link("amend", "bill"),
            link("bill", "ship"),
        ],
        names="check pay amend bill ship",
    )
    worker = Worker("ship")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            well = await ended(orchestra, (await start(orchestra, workflow)).id)
            answer = await reruns(orchestra).RerunExecution(rerun(well.id))
            await ended(orchestra, answer.execution.id)
            assert {"check": 1, "pay": 1, "bill": 1, "ship": 2} == worker.ran
            worker.failing.add("check")
            ill = await ended(orchestra, (await start(orchestra, workflow)).id)
            assert {"check": 2, "pay": 1, "amend": 1, "bill": 2, "ship": 3} == worker.ran
            worker.failing.clear()
            mended = await reruns(orchestra).RerunExecution(rerun(ill.id))
            done = await ended(orchestra, mended.execution.id)
            nodes = await nodes_of(orchestra, done.id)
    assert [3, 0] == [answer.kept_results, mended.kept_results]
    assert {"check": 3, "pay": 2, "amend": 1, "bill": 3, "ship": 4} == worker.ran
    assert (COMPLETED, "SKIPPED") == (done.status, nodes["amend"])
    hold_invariants(orchestra)


async def test_a_condition_that_did_not_hold_and_a_skip_by_hand_stand(orchestra: Orchestra) -> None:
    """The word of a person is kept as an approval is; who names the node has it run."""
    workflow = made(
        orchestra,
        [link(name, "pay") for name in ("first", "extra", "held")] + [link("pay", "ship")],
        {"extra": {"condition": "x > 5"}},
        names="first extra held pay ship",
    )
    worker = Worker("ship")
    async with orchestra.running():
        run = await start(orchestra, workflow)
        skip = control.SkipNodeRequest(execution_id=run.id, node="held")
        await ControlServiceStub(orchestra.channel(orchestra.owner.token)).SkipNode(skip)
        async with (await orchestra.runner(worker)).attached():
            first = await ended(orchestra, run.id)
            answer = await reruns(orchestra).RerunExecution(rerun(first.id))
            await ended(orchestra, answer.execution.id)
            assert {"first": 1, "pay": 1, "ship": 2} == worker.ran
            worker.failing.clear()
            named = await reruns(orchestra).RerunExecution(rerun(first.id, node("held")))
            done = await ended(orchestra, named.execution.id)
            nodes = await nodes_of(orchestra, done.id)
    assert [2, 1] == [answer.kept_results, named.kept_results]
    assert {"first": 1, "held": 1, "pay": 2, "ship": 3} == worker.ran
    assert ("SKIPPED", "COMPLETED") == (nodes["extra"], nodes["held"])
    hold_invariants(orchestra)
