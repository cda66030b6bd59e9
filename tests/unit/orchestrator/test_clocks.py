"""When an attempt is due, and when all together have taken too long: no sooner, no later."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from services.orchestrator.domain.children import EndedChild
from services.orchestrator.domain.core import Core
from services.orchestrator.domain.limits import Limit
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.planner import NOT_TAKEN, OVERDUE
from services.orchestrator.domain.records import NO_USAGE
from services.orchestrator.domain.state import Run, Signal
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.domain.steps.attempts import Outcome
from tests.unit.orchestrator.test_core import ONE, OTHER, PYTHONS, TENANT, start
from tests.unit.orchestrator.test_found_by_worlds import _started, _stored, answer, plan_of
from tests.unit.orchestrator.test_holding_what_closes import FAILS, KILLED, a_core, statuses

RETRY: dict[str, Any] = {"retry": {"max_retries": 3, "initial_delay_ms": 6000, "jitter": 0}}
WORDS: tuple[dict[str, Any], ...] = tuple(
    {"kind": "signal", "signal": {"name": f"w{at}"}, "parameters": {}} for at in range(3)
)
JOINED = {**RETRY, "join": {"policy": "any"}}
FROM_ALL = ((0, 3, ""), (1, 3, ""), (2, 3, ""))


def retries(run: Run, slot: int = 0) -> int:
    record = run.records[slot]
    return 0 if record is None else record.retry_count


def say_all(core: Core, run: Run) -> None:
    for at in range(3):
        core.signal(run.id, f"w{at}", Signal(UUID(int=at + 1), TENANT, (b"1",)))


def test_a_place_that_several_ends_begin_waits_for_a_runner_once() -> None:
    core = a_core()
    core.granted(ONE, 0, 2)
    run = start(core, plan_of(*WORDS, JOINED, edges=FROM_ALL))
    say_all(core, run)
    assert 1 == core.ready.size
    core.granted(ONE, 1, 3)
    answer(core, run, 3, FAILS)
    assert ["retrying", 1] == [statuses(run)[3], retries(run, 3)]


def test_a_place_that_several_ends_begin_waits_for_a_limit_once() -> None:
    core = a_core()
    core.limits_known([Limit(id=UUID(int=1), tenant_id=TENANT, name="few", revision=1)], now=0.0)
    run = start(core, plan_of(*WORDS, JOINED, edges=FROM_ALL))
    say_all(core, run)
    assert 1 == core.limited.size


def test_a_place_that_is_held_and_let_go_while_it_waits_for_a_runner_waits_once() -> None:
    core = a_core()
    core.granted(ONE, 0, 2)
    run = start(core, plan_of(RETRY))
    core.pause_node(run.id, 0)
    core.resume_node(run.id, 0)
    assert 1 == core.ready.size


# --- a pause and the backoff ----------------------------------------------------------------------


def test_a_run_that_is_resumed_after_its_retry_was_due_tries_again_at_once() -> None:
    core = a_core()
    run = start(core, plan_of(RETRY))
    answer(core, run, 0, FAILS)
    core.pause(run.id)
    core.due(now=6.0)
    assert ["retrying"] == statuses(run)
    core.resume(run.id, now=7.0)
    assert ["running"] == statuses(run)


def test_a_run_that_is_resumed_in_time_tries_again_when_it_was_due_and_later_on_when_it_is() -> (
    None
):
    core = a_core()
    run = start(core, plan_of(RETRY))
    answer(core, run, 0, FAILS)
    core.pause(run.id)
    core.resume(run.id, now=3.0)
    core.due(now=5.9)
    assert ["retrying"] == statuses(run)
    core.due(now=6.0)
    assert ["running"] == statuses(run)
    fails_at(core, run, 6.0)
    core.due(now=9.0)  # when a backoff from the resume on would be over
    assert ["retrying"] == statuses(run)
    assert 18.0 == core.next_timer


def test_a_node_that_was_let_go_has_no_timer_of_its_backoff_left() -> None:
    core = a_core()
    run = start(core, plan_of(RETRY))
    answer(core, run, 0, FAILS)
    core.pause_node(run.id, 0)
    core.resume_node(run.id, 0)
    core.due(now=1.0)
    assert ["running"] == statuses(run)
    fails_at(core, run, 1.0)
    core.due(now=6.0)
    assert ["retrying", 2] == [*statuses(run), retries(run)]


def test_an_attempt_that_was_lost_while_its_run_was_paused_begins_as_it_is_resumed() -> None:
    core = a_core()
    run = start(core, plan_of(RETRY))
    core.pause(run.id)
    core.detached(ONE)
    core.lost(ONE)
    core.attached(OTHER, Offer(pythons=PYTHONS, tier="T2"), {})
    core.granted(OTHER, 8, 1)
    core.resume(run.id, now=1.0)
    assert ["running"] == statuses(run)


def fails_at(core: Core, run: Run, now_s: float) -> None:
    record = run.records[0]
    assert record is not None
    core.outcomes(ONE, [Outcome(record.id, record.token, FAILS, NO_USAGE)], now=now_s)


# --- all attempts together ------------------------------------------------------------------------


def test_a_node_that_is_held_up_for_longer_than_all_its_attempts_may_take_fails() -> None:
    core = a_core()
    run = start(core, plan_of({**RETRY, "total_timeout_ms": 3000}))
    answer(core, run, 0, FAILS)
    core.pause_node(run.id, 0)
    core.due(now=2.9)
    assert ["paused"] == statuses(run)
    core.due(now=3.0)
    assert ("n0", OVERDUE) == run.failure
    assert ["failed"] == statuses(run)


def test_the_time_of_all_attempts_counts_from_the_first_one_also_of_a_node_that_was_held_up() -> (
    None
):
    core = a_core()
    core.granted(ONE, 0, 2)
    run, written = _started(core, plan_of({**RETRY, "total_timeout_ms": 3000}))
    written += core.pause_node(run.id, 0)
    written += core.resume_node(run.id, 0)
    core.due(now=60.0)
    assert ["pending"] == statuses(run)
    taker = a_core()
    for each, known in ((core, run), (taker, _stored(written).restore(run.id, run.plan))):
        if each is taker:
            each.granted(ONE, 0, 2)
            # No time of its attempts runs from here: that would be up before 72.9.
            each.adopt(known, now=69.0, due_s={}, deadline_s=None)
            each.redispatch()
        each.due(now=70.0)
        each.granted(ONE, 1, 3)
        assert ["running"] == statuses(known)
        each.due(now=72.9)
        record = known.records[0]
        assert record is not None
        assert not record.overdue
        each.due(now=73.0)
        assert record.overdue


def test_an_attempt_whose_time_is_up_fails_its_node_also_as_its_runner_is_lost() -> None:
    """F3: it was being killed, and is not tried again elsewhere."""
    core = a_core()
    run = start(core, plan_of({**RETRY, "total_timeout_ms": 3000}))
    core.due(now=3.0)
    core.lost(ONE)
    assert ("n0", OVERDUE) == run.failure
    assert ["failed"] == statuses(run)


def test_an_attempt_whose_time_was_up_is_cancelled_with_its_run_while_it_is_killed() -> None:
    """What was said last is what it ends of: a failure would be undone, or begin what rescues."""
    core = a_core()
    run = start(core, plan_of({**RETRY, "total_timeout_ms": 3000}))
    core.due(now=3.0)
    core.cancel(run.id)
    confirms(core, run, 0)
    assert ["cancelled"] == statuses(run)
    assert (RunStatus.CANCELLED, None) == (run.status, run.failure)


def test_a_sub_workflow_that_failed_by_itself_says_so_also_where_its_time_would_be_up() -> None:
    """F2: its run failed elsewhere before that, and nobody looks at the times of what is in it."""
    core, taker = a_core(), a_core()
    within = {"kind": "workflow", "parameters": {}, "total_timeout_ms": 5000}
    run = start(core, plan_of(within, {}, inner=plan_of({})))
    answer(core, run, 1, FAILS)
    record = run.records[0]
    assert record is not None
    assert record.child is not None
    record.age_s = 9.0
    taker.adopt(run, now=9.0, due_s={}, deadline_s=None)
    taker.child_ended(
        EndedChild(record.child, RunStatus.FAILED, None, "oom", "", "n0", None, 0, 0, 0, 0)
    )
    taker.redispatch()
    assert ["failed", "oom"] == [statuses(run)[0], record.failure and record.failure.error_type]


def test_a_node_whose_next_attempt_no_runner_takes_in_time_fails() -> None:
    core = a_core()
    run = start(core, plan_of({**RETRY, "queue_timeout_ms": 1000}))
    core.granted(ONE, 0, 2)
    answer(core, run, 0, FAILS)
    core.due(now=6.0)
    core.due(now=6.9)
    assert ["retrying"] == statuses(run)
    core.due(now=7.0)
    assert ("n0", NOT_TAKEN) == run.failure
    assert ["failed"] == statuses(run)


# --- the end of a time in a paused family ---------------------------------------------------------

UNDOING: tuple[dict[str, Any], ...] = ({}, {}, {"phase": "compensation", "compensates": "n0"})


def family(core: Core, **outer: Any) -> tuple[Run, Run]:
    """Give a run with a sub-workflow of which the first of two nodes is completed, both paused."""
    inner = plan_of(*UNDOING, edges=((0, 1, "x"), (0, 2, "x")))
    plan = plan_of({"kind": "workflow", **outer}, inner=inner)
    run = start(core, plan, timeout_ms=10_000)
    record = run.records[0]
    assert record is not None
    assert record.child is not None
    child = core.runs[record.child]
    answer(core, child, 0)
    core.pause(run.id)
    return run, child


def confirms(core: Core, run: Run, slot: int) -> None:
    """Have the runner say that it has killed an attempt."""
    record = run.records[slot]
    assert record is not None
    assert record.killing is not None
    core.outcomes(ONE, [Outcome(record.id, record.killing, KILLED, NO_USAGE)], now=10.0)


def test_nothing_is_undone_in_a_paused_family_whose_time_is_up_until_it_is_resumed() -> None:
    core = a_core()
    run, child = family(core)
    core.due(now=10.0)
    confirms(core, child, 1)
    assert [None, RunStatus.PAUSED] == [statuses(child)[2], child.status]
    core.resume(run.id, now=11.0)
    assert "running" == statuses(child)[2]
    answer(core, child, 2)
    assert [RunStatus.FAILED, RunStatus.CANCELLED] == [run.status, child.status]


def test_nothing_is_undone_of_a_paused_sub_workflow_that_took_too_long() -> None:
    core = a_core()
    run, child = family(core, total_timeout_ms=5000)
    core.due(now=5.0)
    confirms(core, child, 1)
    assert [None, RunStatus.PAUSED] == [statuses(child)[2], child.status]
    core.resume(run.id, now=6.0)
    answer(core, child, 2)
    assert ("n0", OVERDUE) == run.failure


def test_a_paused_family_whose_time_was_up_is_undone_when_it_is_cancelled() -> None:
    core = a_core()
    run, child = family(core)
    core.due(now=10.0)
    confirms(core, child, 1)
    core.cancel(run.id)
    assert "running" == statuses(child)[2]
    answer(core, child, 2)
    assert [RunStatus.CANCELLED, RunStatus.CANCELLED] == [run.status, child.status]


def test_a_paused_family_whose_time_was_up_stays_paused_when_it_is_taken_over() -> None:
    core = a_core()
    run, child = family(core)
    core.due(now=10.0)
    confirms(core, child, 1)
    taker = a_core()
    for each in (run, child):
        taker.adopt(each, now=10.0, due_s={}, deadline_s=None)
    taker.redispatch()
    assert [None, RunStatus.PAUSED] == [statuses(child)[2], child.status]
