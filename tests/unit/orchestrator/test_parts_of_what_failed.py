"""What is a part of something that failed begins nothing more, at every level."""

from __future__ import annotations

from typing import Any

from services.orchestrator.domain.core import Core
from services.orchestrator.domain.explain import (
    Cause,
    NodeState,
    RunState,
    Situation,
    explain,
)
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus, RunStatus
from tests.unit.orchestrator.test_found_by_worlds import _started, _stored, answer, plan_of
from tests.unit.orchestrator.test_holding_what_closes import FAILS, a_core, statuses
from tests.unit.orchestrator.test_paused_before_it_began import LATER

WORD: dict[str, Any] = {"kind": "signal", "signal": {"name": "go"}, "parameters": {}}
SUB: dict[str, Any] = {"kind": "workflow", "parameters": {}}


def child_of(core: Core, run: Run, slot: int) -> Run:
    record = run.records[slot]
    assert record is not None
    assert record.child is not None
    return core.runs[record.child]


def waits_then_runs() -> Plan:
    return plan_of(WORD, {}, edges=((0, 1, ""),))


def test_a_run_that_fails_does_not_wait_for_the_word_of_a_sub_workflow() -> None:
    core = a_core()
    run, written = _started(core, plan_of({}, SUB, inner=waits_then_runs()))
    child = child_of(core, run, 1)
    written += answer(core, run, 0, FAILS)
    assert ["failed", "cancelled"] == statuses(run)
    assert [RunStatus.FAILED, RunStatus.FAILED] == [run.status, child.status]
    assert child.failure is not None
    assert ("parent_failed", True) == (
        child.failure[1].error_type,
        "node n0" in child.failure[1].message,
    )
    assert ("n0", FAILS) == run.failure


def test_what_runs_in_a_sub_workflow_of_a_failed_run_ends_and_is_undone() -> None:
    core = a_core()
    inner = plan_of(
        {}, {}, {}, {"phase": "compensation", "compensates": "n0"},
        edges=((0, 1, "x"), (1, 2, "x"), (0, 3, "x")),
    )  # fmt: skip
    run, written = _started(core, plan_of({}, SUB, inner=inner))
    child = child_of(core, run, 1)
    written += answer(core, child, 0)
    written += answer(core, run, 0, FAILS)
    assert RunStatus.RUNNING == run.status
    written += answer(core, child, 1)
    assert ["completed", "completed", None, "running"] == statuses(child)
    answer(core, child, 3)
    assert [RunStatus.FAILED, RunStatus.FAILED] == [run.status, child.status]


def test_a_sub_workflow_that_completes_beside_what_failed_has_completed() -> None:
    core = a_core()
    run, _ = _started(core, plan_of({}, SUB, inner=plan_of({})))
    child = child_of(core, run, 1)
    child_record = child.records[0]
    assert child_record is not None
    answer(core, child, 0)
    answer(core, run, 0, FAILS)
    assert ["failed", "completed"] == statuses(run)


def test_no_level_below_a_failed_run_begins_anything() -> None:
    core = a_core()
    middle = plan_of(SUB, inner=waits_then_runs())
    run, _ = _started(core, plan_of({}, SUB, inner=middle))
    child = child_of(core, run, 1)
    lowest = child_of(core, child, 0)
    answer(core, run, 0, FAILS)
    assert [RunStatus.FAILED] * 3 == [each.status for each in (run, child, lowest)]


def test_the_other_elements_of_a_map_that_failed_begin_nothing_more() -> None:
    """Its run goes on: it is told to continue after that failure."""
    core = a_core()
    mapped = {
        "kind": "workflow",
        "on_failure": "continue",
        "map": {"input": "list"},
        "parameters": {"list": "[1,2]"},
    }
    run, written = _started(core, plan_of(mapped, {}, inner=plan_of({}, WORD)))
    first, second = child_of(core, run, 2), child_of(core, run, 3)
    written += answer(core, second, 0)
    written += answer(core, first, 0, FAILS)
    assert ["failed", "running"] == statuses(run)[:2]
    assert run.failure is None
    assert [RunStatus.FAILED] * 2 == [first.status, second.status]
    assert ["failed", "cancelled"] == statuses(run)[2:]


def test_a_sub_workflow_that_was_left_going_ends_when_its_run_is_read_again() -> None:
    core = a_core()
    run, written = _started(core, plan_of({}, SUB, inner=waits_then_runs()))
    child = child_of(core, run, 1)
    written += answer(core, run, 0, FAILS)[:1]  # as an earlier release wrote no more than that
    again, part = (_stored(written).restore(each.id, each.plan) for each in (run, child))
    taker = a_core()
    for each in (again, part):
        taker.adopt(each, now=0.0, due_s={}, deadline_s=None)
    assert "waiting" == statuses(part)[0]
    taker.redispatch()
    assert [RunStatus.FAILED] * 2 == [again.status, part.status]


def test_a_run_that_fails_says_so_and_only_what_it_still_waits_for() -> None:
    state = RunState(
        status=RunStatus.RUNNING, error_type="user_error", error_message="no", failed_node_id="b"
    )
    nodes = [
        NodeState(node_id="w", status=NodeStatus.WAITING, waits_for="SendSignal with the name go"),
        NodeState(node_id="s", status=NodeStatus.WAITING, waits_for="execution 1", is_child=True),
        NodeState(node_id="r", status=NodeStatus.RETRYING),
    ]
    told = explain(state, nodes, Situation(ready=[], offers=[]), now=LATER)
    assert [(Cause.FAILED, ("b",)), (Cause.NODES_WAITING, ("s",))] == [
        (each.cause, each.nodes) for each in told
    ]
