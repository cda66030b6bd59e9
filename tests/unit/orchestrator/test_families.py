"""What goes wrong in a step of one run is that run's alone."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from services.orchestrator.domain import controls, planner
from services.orchestrator.domain.core import Core
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.records import NO_USAGE
from services.orchestrator.domain.state import Run, Signal
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.domain.steps.attempts import Outcome
from tests.unit.orchestrator.test_core import ONE, PYTHONS, TENANT, start
from tests.unit.orchestrator.test_found_by_worlds import plan_of

SLEEP = {"kind": "sleep", "parameters": {"seconds": "1"}}


def new_core() -> Core:
    ids = (UUID(int=number) for number in range(70_000, 80_000))
    core = Core(epoch=1, new_id=lambda: next(ids), draw=lambda: 0.5)
    core.unlocked = {UUID(int=at) for at in range(3)}
    core.attached(ONE, Offer(pythons=PYTHONS, tier="T2"), {})
    core.granted(ONE, 9, 1)
    return core


def break_for(monkeypatch: pytest.MonkeyPatch, module: Any, step: str, bad: Run) -> None:
    """Have a step go wrong half-way for one run."""
    original = getattr(module, step)

    def broken(run: Run, *given: Any, **named: Any) -> Any:
        taken = original(run, *given, **named)
        if run.id == bad.id:
            raise IndexError(step)
        return taken

    monkeypatch.setattr(module, step, broken)


def test_timers_of_other_runs_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    core = new_core()
    before, bad, after = (start(core, plan_of(SLEEP)) for _ in range(3))
    later = start(core, plan_of({**SLEEP, "parameters": {"seconds": "9"}}))
    break_for(monkeypatch, controls, "wait_over", bad)
    written = core.due(now=1.0)
    assert [before.id, after.id] == [t.run_id for t in written]
    assert [RunStatus.COMPLETED] * 2 == [before.status, after.status]
    assert bad.id not in core.runs
    assert 9.0 == core.next_timer
    assert later.id in core.runs
    [fault] = core.faults
    assert ((bad.id,), False, "wait_over") == (fault.run_ids, fault.asked, str(fault.error))


def test_what_a_runner_says_of_other_runs_counts_and_nothing_of_this_one_is_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A runner that is told to forget a result has it no more when the run is loaded again."""
    core = new_core()
    bad, good = start(core, plan_of({}, {})), start(core, plan_of({}))
    break_for(monkeypatch, planner, "complete", bad)
    said = [
        Outcome(record.id, record.token, (b"1",), NO_USAGE)
        for run in (bad, good)
        for record in run.records
        if record is not None
    ]
    written = core.outcomes(ONE, said, now=0.0)
    assert {good.id} == {t.run_id for t in written}
    assert RunStatus.COMPLETED == good.status
    assert not core.runners[ONE].in_flight


def test_a_run_is_forgotten_with_its_sub_workflows(monkeypatch: pytest.MonkeyPatch) -> None:
    core = new_core()
    good = start(core, plan_of(SLEEP))
    parent = start(core, plan_of({"kind": "workflow", "parameters": {}}, inner=plan_of(SLEEP)))
    [child] = [run for run in core.runs.values() if run.parent is not None]
    break_for(monkeypatch, controls, "wait_over", child)
    assert {good.id} == {t.run_id for t in core.due(now=1.0)}
    assert [(parent.id, child.id)] == [fault.run_ids for fault in core.faults]


def test_a_start_that_goes_wrong_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    core = new_core()

    def broken(*_: Any, **__: Any) -> Any:
        raise IndexError

    monkeypatch.setattr(planner, "assign", broken)
    run = start(core, plan_of({}))
    assert {} == core.runs
    assert core.fault_of(run.id) is not None
    assert [] == core.granted(ONE, 9, 2)


def test_a_word_that_cannot_be_taken_is_told_as_what_a_caller_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = new_core()
    run = start(core, plan_of({"kind": "signal", "signal": {"name": "s"}, "parameters": {}}))
    break_for(monkeypatch, controls, "take_signal", run)
    assert [] == core.signal(run.id, "s", Signal(UUID(int=1), TENANT, (b"1",)))
    assert [True] == [fault.asked for fault in core.faults]
