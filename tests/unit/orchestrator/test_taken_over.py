"""Runs that another has had: what was due is due as late, what was not written is made up for."""

from __future__ import annotations

from services.orchestrator.domain.amounts import Amounts
from services.orchestrator.domain.ledger import Budget
from services.orchestrator.domain.records import NO_USAGE
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.domain.steps.attempts import Outcome
from tests.unit.orchestrator.test_core import ONE, new_core, start
from tests.unit.orchestrator.test_found_by_worlds import answer, plan_of
from tests.unit.orchestrator.test_holding_what_closes import FAILS, a_core, statuses

RETRY = {"retry": {"max_retries": 1, "initial_delay_ms": 9_000}}


def test_a_backoff_lasts_no_shorter_and_no_longer_for_a_restart() -> None:
    """CP18, F2."""
    before, taker = a_core(), a_core()
    run = start(before, plan_of(RETRY))
    answer(before, run, 0, FAILS)
    taker.adopt(run, now=100.0, due_s={0: 5.0}, deadline_s=None)
    taker.redispatch()
    taker.due(now=104.9)
    assert ["retrying"] == statuses(run)
    taker.due(now=105.0)
    assert ["running"] == statuses(run)


def test_a_run_has_no_more_time_for_a_restart() -> None:
    """F2."""
    run = start(a_core(), plan_of({}), timeout_ms=60_000)
    taker = a_core()
    taker.adopt(run, now=100.0, due_s={}, deadline_s=7.0)
    taker.redispatch()
    taker.due(now=106.9)
    assert not run.expired
    taker.due(now=107.0)
    assert run.expired


def test_a_budget_that_was_used_up_ends_its_run_also_after_a_crash() -> None:
    """CP12: what the last attempt consumed was written, what follows from it was not."""
    run = start(new_core(), plan_of({}))
    taker = a_core()
    taker.ledger.budgets[run.id] = Budget(Amounts(nodes=1), nodes=1)
    taker.adopt(run, now=0.0, due_s={}, deadline_s=None)
    taker.redispatch()
    assert "budget_exceeded" == (run.failure and run.failure[1].error_type)
    assert RunStatus.FAILED == run.status


def test_a_sub_workflow_that_was_never_written_begins_under_the_id_that_its_place_has() -> None:
    """CP3: its row comes in a statement of its own, behind that of the place."""
    run = start(a_core(), plan_of({"kind": "workflow", "parameters": {}}, inner=plan_of({})))
    [record] = run.records
    assert record is not None
    assert record.child is not None
    taker = a_core()
    taker.adopt(run, now=0.0, due_s={}, deadline_s=None)
    taker.redispatch()
    child = taker.runs[record.child]
    begun = child.records[0]
    assert begun is not None
    taker.outcomes(ONE, [Outcome(begun.id, begun.token, (b"1",), NO_USAGE)], now=1.0)
    assert [RunStatus.COMPLETED] * 2 == [run.status, child.status]
