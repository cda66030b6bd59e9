"""Steering the places that close a run: they begin in their turn, if at all."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from services.orchestrator.domain.core import Core
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.planner import LOST
from services.orchestrator.domain.records import NO_USAGE, Failure
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.steps.attempts import Outcome
from services.orchestrator.domain.timers import DEADLINE
from tests.unit.orchestrator.graphs import StrictCore
from tests.unit.orchestrator.test_core import ONE, PYTHONS, new_core, start
from tests.unit.orchestrator.test_found_by_worlds import _started, _stored, answer, plan_of

FAILS = Failure(error_type="user_error", message="no")
KILLED = Failure(error_type="cancelled", message="", killed=True)
# A node, one after it and one after that, and what undoes the first two.
UNDONE: tuple[dict[str, Any], ...] = (
    {},
    {},
    {},
    {"phase": "compensation", "compensates": "n0"},
    {"phase": "compensation", "compensates": "n1"},
)
UNDONE_EDGES = ((0, 1, "x"), (1, 2, "x"), (0, 3, "x"), (1, 4, "x"))


def a_core() -> Core:
    core = new_core((ONE, 8))
    core.unlocked = {UUID(int=at) for at in range(20)}
    return core


def statuses(run: Run) -> list[str | None]:
    return [None if each is None else each.status.value for each in run.records]


def test_a_compensation_that_is_let_go_waits_for_its_turn() -> None:
    core = a_core()
    run = start(core, plan_of(*UNDONE, edges=UNDONE_EDGES))
    answer(core, run, 0)
    answer(core, run, 1)
    answer(core, run, 2, FAILS)
    core.pause_node(run.id, 3)
    core.resume_node(run.id, 3)
    assert ["completed", "completed", "failed", "pending", "running"] == statuses(run)
    answer(core, run, 4)
    assert "running" == statuses(run)[3]
    answer(core, run, 3)
    assert RunStatus.FAILED == run.status


def test_a_compensation_of_what_did_not_complete_never_begins_and_cannot_be_held() -> None:
    core = a_core()
    run = start(core, plan_of(*UNDONE, edges=UNDONE_EDGES))
    answer(core, run, 0)
    answer(core, run, 1, FAILS)
    assert [True, False] == [run.is_open(3), run.is_open(4)]


def test_a_compensation_that_is_held_in_its_turn_goes_on_when_it_is_let_go() -> None:
    core = a_core()
    run = start(core, plan_of(*UNDONE, edges=UNDONE_EDGES))
    answer(core, run, 0)
    answer(core, run, 1)
    answer(core, run, 2, FAILS)
    core.pause_node(run.id, 3)
    answer(core, run, 4)
    assert ["paused", "completed"] == statuses(run)[3:]
    core.resume_node(run.id, 3)
    answer(core, run, 3)
    assert RunStatus.FAILED == run.status


def test_a_finally_node_that_was_held_before_its_turn_begins_in_it_after_a_crash() -> None:
    core = a_core()
    plan = plan_of({}, {"phase": "finally"}, {"phase": "finally"}, edges=((1, 2, ""),))
    run, written = _started(core, plan)
    written += answer(core, run, 0)
    written += core.pause_node(run.id, 2)
    written += core.resume_node(run.id, 2)
    taker, again = taken_over(_stored(written).restore(run.id, plan))
    answer(taker, again, 1)
    assert ["completed", "completed", "running"] == statuses(again)
    answer(taker, again, 2)
    assert RunStatus.COMPLETED == again.status


def test_a_finally_node_that_was_held_and_let_go_in_its_turn_begins_once_after_a_crash() -> None:
    core = a_core()
    core.lost(ONE)  # nobody takes anything
    plan = plan_of({}, {"phase": "finally"})
    run, written = _started(core, plan)
    written += core.skip_node(run.id, 0, (b"1",))
    written += core.pause_node(run.id, 1)
    written += core.resume_node(run.id, 1)
    taker, again = taken_over(_stored(written).restore(run.id, plan))
    assert "running" == statuses(again)[1]
    assert 0 == taker.ready.size
    answer(taker, again, 1)
    assert RunStatus.COMPLETED == again.status


def taken_over(run: Run) -> tuple[Core, Run]:
    """Give a run to another core, whose runner has what the former one's had."""
    core = a_core()
    core.adopt(run, now=0.0, due_s={}, deadline_s=None)
    known = {
        each.id: each.token
        for each in run.records
        if each is not None and each.status is NodeStatus.RUNNING
    }
    core.attached(ONE, Offer(pythons=PYTHONS, tier="T2"), known)
    core.granted(ONE, 8, 2)
    core.redispatch()
    return core, run


def test_a_run_whose_main_part_ended_while_it_was_paused_is_undone_by_a_cancel() -> None:
    core = a_core()
    run, written = _started(core, plan_of(*UNDONE, {"phase": "finally"}, edges=UNDONE_EDGES))
    written += answer(core, run, 0)
    written += core.pause(run.id)
    written += answer(core, run, 1, FAILS)
    assert run.closing
    written += core.pause_node(run.id, 5)  # which nobody else could let go of any more
    written += core.cancel(run.id)
    again = _stored(written).restore(run.id, run.plan)
    assert (again.undo, again.abandoned) == (run.undo, run.abandoned) == ((3,), False)
    answer(core, run, 3)
    answer(core, run, 5)
    assert ["completed", None, "completed"] == statuses(run)[3:]
    assert RunStatus.CANCELLED == run.status


def test_a_run_that_completed_while_it_was_paused_is_undone_by_a_cancel() -> None:
    core = a_core()
    run, written = _started(
        core,
        plan_of(
            {},
            {"phase": "compensation", "compensates": "n0"},
            {"phase": "finally"},
            edges=((0, 1, "x"),),
        ),
    )
    written += core.pause(run.id)
    written += answer(core, run, 0)
    written += core.cancel(run.id)
    assert (1,) == run.undo == _stored(written).restore(run.id, run.plan).undo
    answer(core, run, 1)
    answer(core, run, 2)
    assert RunStatus.CANCELLED == run.status


def test_a_finally_node_that_was_held_up_as_its_environment_failed_fails_once_it_is_let_go() -> (
    None
):
    """World 3546."""
    core = new_core((ONE, 8))
    core.unlocked = {UUID(int=0)}
    run = start(core, plan_of({}, {"phase": "finally"}))
    answer(core, run, 0)
    core.pause_node(run.id, 1)
    fault = Failure(error_type="dependency_error", message="no such package")
    core.lock_known(UUID(int=1), fault)
    core.resume_node(run.id, 1)
    assert {UUID(int=1)} == core.locks_pending.keys()
    core.lock_known(UUID(int=1), fault)
    assert ["completed", "failed"] == statuses(run)
    assert RunStatus.FAILED == run.status


def test_a_retry_that_was_held_up_begins_once_a_runner_has_room() -> None:
    core = a_core()
    retry = {"max_retries": 1, "initial_delay_ms": 60_000}
    run, written = _started(core, plan_of({"retry": retry}))
    written += answer(core, run, 0, FAILS)
    written += core.pause_node(run.id, 0)
    core.granted(ONE, 0, 2)  # no runner has room
    written += core.resume_node(run.id, 0)
    written += core.due(now=0.0)
    assert ["retrying"] == statuses(run)
    assert ["retrying"] == statuses(_stored(written).restore(run.id, run.plan))
    core.granted(ONE, 1, 3)
    answer(core, run, 0)
    assert RunStatus.COMPLETED == run.status


def test_the_branch_of_a_failure_is_told_of_a_node_that_was_put_aside() -> None:
    """A node that took three runners with it failed for good, as whoever handles that sees it."""
    core = a_core()
    run = start(core, plan_of({}, {}))
    record = run.records[0]
    assert record is not None
    record.status, record.failure = NodeStatus.QUARANTINED, LOST
    assert b"runner_lost" in run._error(0)


def test_a_sub_workflow_that_is_being_undone_in_a_paused_family_goes_on_with_a_cancel() -> None:
    core, run, child = undoing_child()
    core.pause(run.id)
    answer(core, child, 4)
    assert [RunStatus.PAUSED, RunStatus.PAUSED] == [run.status, child.status]
    core.cancel(run.id)
    assert "running" == statuses(child)[3]
    answer(core, child, 3)
    assert [RunStatus.CANCELLED, RunStatus.CANCELLED] == [run.status, child.status]


def test_a_sub_workflow_that_was_left_paused_goes_on_when_its_family_is_taken_over() -> None:
    core, run, child = undoing_child()
    core.pause(run.id)
    answer(core, child, 4)
    core.cancel(run.id)
    child.status = RunStatus.PAUSED  # as an earlier release left it
    taker = a_core()
    for each in (run, child):
        taker.adopt(each, now=0.0, due_s={}, deadline_s=None)
    taker.redispatch()
    assert RunStatus.RUNNING == child.status


@pytest.mark.parametrize("on_a_word", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_what_a_pause_held_up_as_a_time_was_up_is_held_up_after_a_crash(
    order: tuple[int, ...], *, on_a_word: bool
) -> None:
    """Three levels: the first is over time, or cancelled; the last is paused, and has to undo."""
    core, family = three_levels()
    top, middle, last = family
    core.pause(last.id)
    answer(core, last, 1)
    if on_a_word:  # a crash came before the last heard of it
        core.cancel(top.id)
        last.status = RunStatus.PAUSED
    else:
        core.timers.set(1.0, top.id, DEADLINE)
        core.due(now=1.0)
    assert (RunStatus.RUNNING, RunStatus.PAUSED) == (middle.status, last.status)
    assert (True, True) == (middle.cancelling, last.cancelling)
    taker = a_core()
    for at in order:
        family[at].parent = None
        taker.adopt(family[at], now=2.0, due_s={}, deadline_s=None)
    taker.redispatch()
    assert (RunStatus.RUNNING if on_a_word else RunStatus.PAUSED) == last.status


def test_what_a_pause_held_up_as_a_nodes_time_was_up_is_held_up_after_a_crash() -> None:
    core, family = three_levels(total_timeout_ms=5000)
    _, middle, last = family
    core.pause(last.id)
    answer(core, last, 1)
    core.due(now=5.0)
    assert (True, RunStatus.PAUSED) == (last.cancelling, last.status)
    taker = a_core()
    for run in family:
        for record in run.records:
            if record is not None:
                record.age_s, record.overdue = 5.5, False  # as they are read
        taker.adopt(run, now=0.0, due_s={}, deadline_s=None)
    taker.redispatch()
    assert (True, RunStatus.PAUSED) == (last.cancelling, last.status)
    taker.resume(last.id, now=1.0)
    answer(taker, last, 4)
    answer(taker, last, 3)
    assert [RunStatus.CANCELLED] * 2 == [middle.status, last.status]
    failure = family[0].failure
    assert failure is not None
    assert "total_timeout" == failure[1].error_type


def three_levels(*, total_timeout_ms: int | None = None) -> tuple[Core, list[Run]]:
    """Give a run, its sub-workflow and that one's, which has completed a node and runs another."""
    core = a_core()
    last = plan_of(*UNDONE, edges=UNDONE_EDGES)
    middle = plan_of({"kind": "workflow"}, inner=last)
    place: dict[str, Any] = {"kind": "workflow"}
    if total_timeout_ms is not None:
        place["total_timeout_ms"] = total_timeout_ms
    family = [start(core, plan_of(place, inner=middle))]
    for _ in range(2):
        record = family[-1].records[0]
        assert record is not None
        assert record.child is not None
        family.append(core.runs[record.child])
    answer(core, family[2], 0)
    return core, family


def undoing_child() -> tuple[Core, Run, Run]:
    """Give a run whose sub-workflow was cancelled, and undoes the second of its two nodes."""
    core = a_core()
    assert isinstance(core, StrictCore)
    inner = plan_of(*UNDONE, edges=UNDONE_EDGES)
    run = start(core, plan_of({"kind": "workflow"}, inner=inner))
    record = run.records[0]
    assert record is not None
    assert record.child is not None
    child = core.runs[record.child]
    answer(core, child, 0)
    answer(core, child, 1)
    core.cancel(child.id)
    running = child.records[2]
    assert running is not None
    assert running.killing is not None
    core.outcomes(ONE, [Outcome(running.id, running.killing, KILLED, NO_USAGE)], now=0.0)
    assert "running" == statuses(child)[4]
    return core, run, child
