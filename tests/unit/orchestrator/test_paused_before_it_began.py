"""A run that is paused before anything of it has begun waits for its beginning again after that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from services.orchestrator.domain.core import Core
from services.orchestrator.domain.explain import Cause, RunState, Situation, explain
from services.orchestrator.domain.limits import Limit
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.rows import RunInsert
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.domain.transition import Transition
from tests.unit.orchestrator.test_core import _IDS, ONE, TENANT, new_core
from tests.unit.orchestrator.test_found_by_worlds import _stored, answer, plan_of
from tests.unit.orchestrator.test_holding_what_closes import a_core, statuses

LATER = datetime(2030, 1, 1, tzinfo=UTC)


def begin(
    core: Core, plan: Plan, *, start_at: datetime | None = None
) -> tuple[Run, list[Transition]]:
    run = Run(
        id=UUID(int=next(_IDS)),
        plan=plan,
        tenant_id=TENANT,
        created_by=TENANT,
        status=RunStatus.PENDING,
        input_values={},
    )
    row = RunInsert(
        run.id, plan.workflow_id, TENANT, TENANT, 1, None, plan.pins_id, 0, "pending", "{}",
        None, None, "3.11", None, 1, start_at=start_at,
    )  # fmt: skip
    written = core.start(run, row, now=0.0)
    if start_at is not None:
        core.begin_in(run, 10.0, now=0.0, timeout_ms=None)
    return run, written


def limited(core: Core) -> Plan:
    plan = plan_of({})
    limit = Limit(
        id=UUID(int=1), tenant_id=TENANT, name="one", revision=1, workflow_id=plan.workflow_id
    )
    core.limits_known([limit], now=0.0)
    return plan


def grant(core: Core, most: int = 1) -> None:
    """Have a limit grant what is asked for."""
    core.slots_taken(core.limited.ask(most, lambda: UUID(int=next(_IDS))), now=0.0)


def test_a_run_that_is_resumed_before_its_time_waits_for_it() -> None:
    core = a_core()
    run, written = begin(core, plan_of({}), start_at=LATER)
    written += core.pause(run.id)
    written += core.resume(run.id, now=1.0)
    assert [RunStatus.PENDING] == [run.status]
    _stored(written)
    core.due(now=10.0)
    assert ["running"] == statuses(run)
    assert RunStatus.RUNNING == run.status


def test_a_run_whose_time_came_while_it_was_paused_begins_when_it_is_resumed() -> None:
    core = a_core()
    run, written = begin(core, plan_of({}), start_at=LATER)
    written += core.pause(run.id)
    written += core.due(now=10.0)
    assert [None] == statuses(run)
    written += core.resume(run.id, now=11.0)
    assert RunStatus.RUNNING == run.status
    assert _stored(written).restore(run.id, run.plan).begun


def test_a_run_that_is_resumed_while_a_limit_is_full_waits_for_its_place() -> None:
    core = a_core()
    plan = limited(core)
    run, written = begin(core, plan)
    written += core.pause(run.id)
    written += core.resume(run.id, now=0.0)
    assert (RunStatus.PENDING, [None], 1) == (run.status, statuses(run), core.limited.size)
    _stored(written)
    grant(core)
    assert ["running"] == statuses(run)


def test_a_run_that_is_paused_before_it_began_lets_others_have_the_place() -> None:
    core = a_core()
    plan = limited(core)
    first, _ = begin(core, plan)
    other, _ = begin(core, plan)
    core.pause(first.id)
    grant(core)
    assert [None, "running"] == [*statuses(first), *statuses(other)]
    assert not first.asleep


def test_a_place_that_nothing_was_begun_with_is_given_back_by_a_pause() -> None:
    core = a_core()
    core.unlocked.clear()  # its environment is not there yet
    run, _ = begin(core, limited(core))
    grant(core)
    assert run.id in core.held
    [paused] = core.pause(run.id)
    assert 1 == len(paused.frees)
    assert 0 == core.limited.size
    core.resume(run.id, now=0.0)
    assert 1 == core.limited.size


@pytest.mark.parametrize("crashes", [False, True])
def test_a_run_that_is_resumed_has_its_place_in_line_again(*, crashes: bool) -> None:
    """The first and the third are paused, and resumed the other way round."""
    core = a_core()
    plan = limited(core)
    runs, written = [], []
    for _ in range(4):
        run, said = begin(core, plan)
        runs.append(run)
        written += said
    for at in (0, 2):
        written += core.pause(runs[at].id)
    if crashes:
        store, limits = _stored(written), list(core.limits.by_id.values())
        core = a_core()
        core.limits_known(limits, now=0.0)
        runs = [store.restore(run.id, plan) for run in runs]
        for run in runs:
            core.adopt(run, now=0.0, due_s={}, deadline_s=None)
        core.redispatch()
    for at in (2, 0):
        core.resume(runs[at].id, now=0.0)
    ahead = [[each.ahead for each in core.limited.positions_of(run.id)] for run in runs]
    assert [[0], [1], [2], [3]] == ahead
    order = []
    for _ in runs:
        grant(core)
        order += [run for run in runs if run.id in core.held and run not in order]
    assert runs == order


@pytest.mark.parametrize("crashes", [False, True])
def test_attempts_of_a_run_that_is_resumed_have_their_place_in_line_again(*, crashes: bool) -> None:
    """Of two each: one has a place, so its run is the last; the second is paused, and the last."""
    core = a_core()
    core.limits_known([Limit(id=UUID(int=1), tenant_id=TENANT, name="all", revision=1)], now=0.0)
    plan = plan_of({}, {})
    runs, written = [], []
    for _ in range(3):
        run, said = begin(core, plan)
        runs.append(run)
        written += said
    written += core.slots_taken(core.limited.ask(1, lambda: UUID(int=next(_IDS))), now=0.0)
    for at in (1, 0):
        written += core.pause(runs[at].id)
    if crashes:  # then all lines are made anew, of runs as they were read
        store, limits = _stored(written), list(core.limits.by_id.values())
        core = a_core()
        core.limits_known(limits, now=0.0)
        runs = [store.restore(run.id, plan) for run in runs]
        for run in runs:
            core.adopt(run, now=0.0, due_s={}, deadline_s=None)
        core.redispatch()
    for at in (0, 1):
        core.resume(runs[at].id, now=0.0)
    ahead = [[each.ahead for each in core.limited.positions_of(run.id)] for run in runs]
    assert ([[0], [1], [2]] if crashes else [[2], [0], [1]]) == ahead
    assert 5 == core.limited.size


def test_an_attempt_that_had_a_place_already_is_the_first_once_its_run_is_resumed() -> None:
    core = new_core((ONE, 0))  # no runner takes it yet
    core.unlocked = {UUID(int=0)}
    core.limits_known([Limit(id=UUID(int=1), tenant_id=TENANT, name="all", revision=1)], now=0.0)
    runs = [begin(core, plan_of({}))[0] for _ in range(3)]
    grant(core)
    assert [False, True, True] == [core.limited.waits(run.id) for run in runs]
    core.pause(runs[0].id)
    core.resume(runs[0].id, now=0.0)
    assert [[0], [1], [2]] == [
        [each.ahead for each in core.limited.positions_of(run.id)] for run in runs
    ]


def test_a_run_that_came_late_is_behind_those_that_asked_before_it() -> None:
    """Whenever it was made: a run with a time asks when that has come."""
    core = a_core()
    plan = limited(core)
    late, _ = begin(core, plan, start_at=LATER)
    first, _ = begin(core, plan)
    core.due(now=10.0)
    assert [[1], [0]] == [
        [each.ahead for each in core.limited.positions_of(run.id)] for run in (late, first)
    ]


def test_a_run_that_has_begun_keeps_its_place_while_it_is_paused() -> None:
    core = a_core()
    run, _ = begin(core, limited(core))
    grant(core)
    core.pause(run.id)
    assert run.id in core.held


def test_a_run_whose_time_comes_while_it_is_paused_waits_for_no_limit() -> None:
    core = a_core()
    run, _ = begin(core, limited(core), start_at=LATER)
    core.pause(run.id)
    core.due(now=10.0)
    assert 0 == core.limited.size
    core.resume(run.id, now=11.0)
    assert (1, RunStatus.PENDING) == (core.limited.size, run.status)


def test_a_paused_run_that_nothing_has_begun_of_waits_for_no_limit_after_a_crash() -> None:
    core = a_core()
    run, written = begin(core, limited(core))
    written += core.pause(run.id)
    taker = a_core()
    taker.limits_known(list(core.limits.by_id.values()), now=0.0)
    again = _stored(written).restore(run.id, run.plan)
    taker.adopt(again, now=0.0, due_s={}, deadline_s=None)
    taker.redispatch()
    assert 0 == taker.limited.size
    taker.resume(run.id, now=0.0)
    assert (1, RunStatus.PENDING) == (taker.limited.size, again.status)


def test_a_run_that_is_cancelled_before_it_began_and_while_it_was_paused_never_started() -> None:
    core = a_core()
    run, written = begin(core, plan_of({}, {"phase": "finally"}), start_at=LATER)
    written += core.pause(run.id)
    written += core.cancel(run.id)
    written += answer(core, run, 1)
    assert RunStatus.CANCELLED == run.status
    _stored(written)


def test_what_is_ended_by_hand_in_a_run_whose_time_has_not_come_does_not_start_it() -> None:
    core = a_core()
    run, written = begin(core, plan_of({}, {"phase": "finally"}), start_at=LATER)
    written += core.skip_node(run.id, 0, (b"1",))
    assert (RunStatus.PENDING, False) == (run.status, run.begun)
    written += core.due(now=10.0)
    assert ["completed", "running"] == statuses(run)
    assert _stored(written).restore(run.id, run.plan).begun


def test_a_run_whose_time_has_not_come_says_so_paused_or_not() -> None:
    now = LATER - timedelta(seconds=5)
    situation = Situation(ready=[], offers=[])
    told = [
        [
            each.cause
            for each in explain(RunState(status=each, start_at=LATER), [], situation, now=now)
        ]
        for each in (RunStatus.PENDING, RunStatus.PAUSED)
    ]
    assert [[Cause.SCHEDULED], [Cause.PAUSED, Cause.SCHEDULED]] == told
