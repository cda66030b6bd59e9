"""What holds a run up, told apart and with the moment that counts: by its rows and the engine."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from services.orchestrator.domain.explain import (
    Cause,
    NodeState,
    Ready,
    Reason,
    RunState,
    Situation,
    explain,
)
from services.orchestrator.domain.explain_kept import Kept
from services.orchestrator.domain.explain_limits import Holder, Limited
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.usecases.explain import _kept
from tests.unit.orchestrator.graphs import plan_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EARLIER, LATER, LAST = (NOW + timedelta(seconds=at) for at in (-1, 1, 2))
RUN, OTHER = UUID(int=1), UUID(int=2)
OFFER = Offer(pythons=frozenset({"3.11"}))
RUNNING = RunState(status=RunStatus.RUNNING)


def node(name: str, status: NodeStatus = NodeStatus.RUNNING, **more: Any) -> NodeState:
    return NodeState(node_id=name, status=status, **more)


def ready(*names: str, locked: bool = False) -> list[Ready]:
    return [Ready(node_id=each, wanted="3.11", locked=locked) for each in names]


def told(
    run: RunState = RUNNING,
    nodes: Sequence[NodeState] = (),
    *,
    waits: Sequence[Ready] | None = (),
    **more: Any,
) -> list[Reason]:
    situation = Situation(ready=waits, **{"offers": [OFFER], **more})
    return explain(run, nodes, situation, now=NOW)


def causes(reasons: list[Reason]) -> list[Cause]:
    return [each.cause for each in reasons]


def test_a_run_whose_time_has_come_waits_for_no_time() -> None:
    for start_at, wanted in ((LATER, [Cause.SCHEDULED]), (NOW, []), (EARLIER, [])):
        assert wanted == causes(told(RunState(status=RunStatus.PENDING, start_at=start_at)))


@pytest.mark.parametrize("status", [RunStatus.RUNNING, RunStatus.PAUSED])
def test_a_run_that_is_not_here_says_so_whether_it_is_paused_or_not(status: RunStatus) -> None:
    paused = [Cause.PAUSED] if status is RunStatus.PAUSED else []
    assert [*paused, Cause.NOT_HERE] == causes(told(RunState(status=status), waits=None))


def test_of_a_run_that_is_stopped_those_are_killed_that_do_not_close_it() -> None:
    run = RunState(status=RunStatus.PAUSED, cancel_requested_at=NOW)
    reasons = told(run, [node("a"), node("undo", closes=True)])
    assert [Cause.PAUSED, Cause.CANCELLING, Cause.NODES_RUNNING] == causes(reasons)
    assert [(), ("a",), ("undo",)] == [each.nodes for each in reasons]


def test_nodes_whose_runner_is_silent_are_told_apart_from_those_that_run() -> None:
    nodes = [node("a", started_at=LATER), node("b", started_at=NOW), node("c", silent=True)]
    silent, runs = told(nodes=nodes)
    assert (Cause.RUNNER_SILENT, ("c",)) == (silent.cause, silent.nodes)
    assert (Cause.NODES_RUNNING, ("a", "b"), NOW) == (runs.cause, runs.nodes, runs.time)


@pytest.mark.parametrize(
    ("status", "cause"),
    [(NodeStatus.RETRYING, Cause.RETRY_DUE), (NodeStatus.WAITING, Cause.NODES_WAITING)],
)
def test_the_first_moment_at_which_any_node_goes_on_is_told(
    status: NodeStatus, cause: Cause
) -> None:
    waits_for = "its time" if status is NodeStatus.WAITING else ""
    nodes = [node(f"n{at.second}", status, due_at=at, waits_for=waits_for) for at in (LAST, LATER)]
    [reason] = told(nodes=nodes)
    assert (cause, LATER) == (reason.cause, reason.time)


def test_some_of_many_nodes_are_named_and_all_are_counted() -> None:
    [reason] = told(nodes=[node(f"n{at}") for at in range(12)])
    assert (10, 12) == (len(reason.nodes), reason.node_count)


def test_what_waits_for_its_environment_waits_for_no_runner_yet() -> None:
    waits = [*ready("a", locked=True), *ready("b")]
    pending, none = told(waits=waits, offers=[])
    assert (Cause.ENVIRONMENT_PENDING, ("a",)) == (pending.cause, pending.nodes)
    assert (Cause.NO_RUNNER, ("b",)) == (none.cause, none.nodes)


def test_what_is_to_run_alone_is_told_apart_from_what_waits_behind_it() -> None:
    """F30."""
    kept = Kept(suspects=frozenset({"a"}), executions=[OTHER])
    alone, full = told(waits=ready("a", "b"), kept=kept)
    assert (Cause.RUNNERS_KEPT, ("a",)) == (alone.cause, alone.nodes)
    assert alone.message.startswith("they were on a runner that was lost")
    assert (Cause.RUNNERS_FULL, ("b",)) == (full.cause, full.nodes)
    [both] = told(waits=ready("a", "b"), kept=Kept(offers=[OFFER], suspects=frozenset({"a"})))
    assert (Cause.RUNNERS_KEPT, ("a", "b")) == (both.cause, both.nodes)
    assert both.message.startswith("a runner that could take them takes nothing else")


@pytest.mark.parametrize(
    ("taken", "time", "action"),
    [
        (1, LATER, "wait, or UpdateLimit"),
        (2, None, f"wait until one of them ends; CancelExecution of {OTHER} frees"),
    ],
)
def test_a_limit_that_is_full_is_waited_for_and_not_its_rate(
    taken: int, time: datetime | None, action: str
) -> None:
    """Nor is it the run itself that is to be cancelled, whatever it has of the places."""
    holders = [Holder(RUN, is_paused=True), Holder(OTHER)][:taken]
    limited = Limited(
        limit="few",
        nodes=["a"],
        own_id=RUN,
        max_running=2,
        taken=taken,
        holders=holders,
        holder_count=taken,
        free_at=LATER,
    )
    [reason] = told(limited=[limited])
    assert (Cause.LIMITED, ("a",), time) == (reason.cause, reason.nodes, reason.time)
    assert reason.action.startswith(action)


def test_whose_runs_keep_runners_is_told_of_the_same_tenant_alone() -> None:
    """B62i, F30: of what waits for one as well, its own runs aside; those of others hold it up."""
    plan, tenants = plan_of([], 2), (UUID(int=7), UUID(int=8))
    mine, another, foreign = (
        Run(
            id=UUID(int=at),
            plan=plan,
            tenant_id=tenant_id,
            created_by=tenant_id,
            status=RunStatus.RUNNING,
            input_values={},
        )
        for at, tenant_id in enumerate((tenants[0], *tenants))
    )
    core = SimpleNamespace(
        ready=SimpleNamespace(alone=lambda: [(mine.id, 1, "3.11"), (foreign.id, 0, "3.11")]),
        runs_alone=lambda: [foreign, mine, another],
        kept=lambda: [SimpleNamespace(offer=OFFER)],
    )
    kept = _kept(cast("Any", SimpleNamespace(core=core)), mine)
    assert ([OFFER], {"n1"}, [another.id]) == (kept.offers, kept.suspects, kept.executions)
