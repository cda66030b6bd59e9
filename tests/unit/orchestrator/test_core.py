"""The core's rules one by one; their interplay is the simulation's."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from uuid import UUID

import pytest
from qflow.orchestrator.v1 import attach_service_pb2 as pb

from services.orchestrator.domain.commands import (
    AckCommand,
    AssignCommand,
    KillCommand,
    SupersededCommand,
)
from services.orchestrator.domain.core import Core
from services.orchestrator.domain.ledger import Budget
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.plan import Kind, Plan
from services.orchestrator.domain.records import ENGINE_ERROR, NO_USAGE, Failure
from services.orchestrator.domain.rows import Follows, RunInsert
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RUN_FINAL, NodeStatus, RunStatus
from services.orchestrator.domain.steps.attempts import Outcome
from services.orchestrator.domain.transition import Transition
from services.orchestrator.rpc.attach import _outcome
from services.orchestrator.storage import flush
from tests.unit.orchestrator.graphs import StrictCore, plan_of

TENANT, ONE, OTHER = UUID(int=7), UUID(int=100), UUID(int=101)
PYTHONS = frozenset({"3.11"})
_IDS = count(1000)


def new_core(*runners: tuple[UUID, int], unlocked: bool = True, epoch: int = 1) -> Core:
    core = StrictCore(epoch=epoch, new_id=lambda: UUID(int=next(_IDS)), draw=lambda: 0.5)
    if unlocked:
        core.unlocked = {UUID(int=at) for at in range(3)}
    for runner, credits_ in runners:
        core.attached(runner, Offer(pythons=PYTHONS, tier="T2"), {})
        core.granted(runner, credits_, 1)
    return core


def start(
    core: Core, plan: Plan, *, timeout_ms: int | None = None, budget: Budget | None = None
) -> Run:
    run = Run(
        id=UUID(int=next(_IDS)),
        plan=plan,
        tenant_id=TENANT,
        created_by=TENANT,
        status=RunStatus.PENDING,
        input_values={"x": b"1"},
    )
    row = RunInsert(
        run.id, plan.workflow_id, TENANT, TENANT, 1, None, plan.pins_id, 0, "pending", "{}",
        None, None, "3.11", timeout_ms, 1,
    )  # fmt: skip
    core.start(run, row, now=0.0, budget=budget)
    return run


def holder(run: Run) -> UUID | None:
    record = run.records[0]
    return record.runner if record and record.status is NodeStatus.RUNNING else None


def suspected(core: Core, plan: Plan) -> Run:
    """A run whose one place took a runner with it."""
    doomed = UUID(int=next(_IDS))
    core.attached(doomed, Offer(pythons=PYTHONS, tier="T2"), {})
    core.granted(doomed, 9, 1)  # the freest of all
    run = start(core, plan)
    assert holder(run) == doomed
    core.detached(doomed)
    core.lost(doomed)
    return run


def test_a_suspect_empties_one_runner_and_no_other() -> None:
    """F30, I36: the others take work meanwhile, and the one takes it again afterwards."""
    plan = plan_of([], 1)
    core = new_core((ONE, 2), (OTHER, 2))
    assert {ONE, OTHER} == {holder(start(core, plan)) for _ in range(2)}
    suspect = suspected(core, plan)
    assert holder(suspect) is None  # both have something: one is being emptied
    taken = [holder(start(core, plan)) for _ in range(2)]
    assert 1 == taken.count(None)
    core.cancel(suspect.id)
    core.forget(suspect.id)
    core.redispatch()
    assert None not in [holder(run) for run in core.runs.values()]


def test_what_crosses_with_a_runner_that_leaves_was_never_given() -> None:
    """F8: neither attempt nor delivery, and nothing to be run alone for."""
    plan = plan_of([], 1)
    core = new_core((OTHER, 1))
    core.attached(ONE, Offer(pythons=PYTHONS, tier="T2"), {})
    core.granted(ONE, 9, 1)
    run = start(core, plan)
    assert ONE == holder(run)
    core.detached(ONE)
    core.lost(ONE, in_order=True)
    record = run.records[0]
    assert record is not None
    assert (OTHER, 0, False) == (holder(run), record.delivery_count, record.alone)


def test_a_suspect_that_is_handed_back_still_runs_alone() -> None:
    plan = plan_of([], 1)
    core = new_core()
    suspect = suspected(core, plan)
    core.attached(ONE, Offer(pythons=PYTHONS, tier="T2"), {})
    core.granted(ONE, 4, 1)
    record = suspect.records[0]
    assert record is not None
    assert (ONE, True) == (record.runner, record.alone)
    core.granted(ONE, 0, 2)
    core.declined(ONE, record.id, record.token)
    core.granted(ONE, 4, 3)
    assert (ONE, True) == (record.runner, record.alone)
    assert holder(start(core, plan)) is None  # it has the runner for itself


def test_a_suspect_found_in_the_rows_keeps_its_runner_for_itself() -> None:
    plan = plan_of([], 1)
    before = new_core()
    suspect = suspected(before, plan)
    before.attached(ONE, Offer(pythons=PYTHONS, tier="T2"), {})
    before.granted(ONE, 4, 1)
    after = new_core()
    after.adopt(suspect, now=0.0, due_s={}, deadline_s=None)
    record = suspect.records[0]
    assert record is not None
    after.attached(ONE, Offer(pythons=PYTHONS, tier="T2"), {record.id: record.token})
    after.granted(ONE, 4, 1)
    assert holder(start(after, plan)) is None


def test_a_suspect_found_in_the_rows_runs_again_alone() -> None:
    """F30, I36: what waits for a runner says only by its count that it was on one that was lost."""
    suspect = suspected(new_core(), plan_of([], 1))
    after = new_core((ONE, 4))
    after.adopt(suspect, now=0.0, due_s={}, deadline_s=None)
    after.redispatch()
    record = suspect.records[0]
    assert record is not None
    assert (ONE, True) == (holder(suspect), record.alone)


def test_tokens_go_on_above_those_of_whoever_had_a_run_before() -> None:
    """I10: a shard may come from a member of a higher epoch, which gave it away."""
    before = new_core((ONE, 1), epoch=2)
    run = start(before, plan_of([], 1))
    record = run.records[0]
    assert record is not None
    given = record.token
    after = new_core((OTHER, 1))
    after.adopt(run, now=0.0, due_s={}, deadline_s=None)
    after.lost(ONE)
    assert OTHER == holder(run)
    assert record.token > given


def test_timers_of_runs_that_are_over_do_not_pile_up() -> None:
    plan = plan_of([], 1)
    core = new_core()
    for _ in range(5000):
        run = start(core, plan, timeout_ms=86_400_000)
        core.cancel(run.id)
        core.forget(run.id)
    assert len(core.timers) <= 1025


def test_what_waited_for_a_lock_is_forgotten_with_its_run() -> None:
    core = new_core(unlocked=False)
    run = start(core, plan_of([], 3))
    assert core.locks_pending
    core.cancel(run.id)
    core.forget(run.id)
    assert {} == core.locks_pending


@pytest.mark.parametrize("result", [(), (b"1", b"2"), (b"\xff",), (b'"\0"',), (b"",)])
def test_a_result_that_cannot_be_stored_fails_its_attempt(result: tuple[bytes, ...]) -> None:
    """R25: a runner's mistake ends one run, with a reason."""
    core = new_core((ONE, 1))
    run = start(core, plan_of([], 1))
    record = run.records[0]
    assert record is not None
    [t] = core.outcomes(ONE, [Outcome(record.id, record.token, result, NO_USAGE)], now=0.0)
    assert RunStatus.FAILED == run.status
    assert ["exited"] == [error.error_type for error in t.errors]


def test_a_late_word_is_answered_behind_what_made_it_late() -> None:
    """Rule 6: the retry may not be durable yet, and then the word was not late."""
    core = new_core((ONE, 1))
    run = start(core, plan_of([], 1, max_retries=1))
    record = run.records[0]
    assert record is not None
    first = Outcome(record.id, record.token, Failure(error_type="user_error", message=""), NO_USAGE)
    core.outcomes(ONE, [first], now=0.0)
    [again] = core.due(now=10.0)
    assert any(isinstance(each, AssignCommand) for each in again.commands)
    [late] = core.outcomes(ONE, [first], now=10.0)
    assert [SupersededCommand(ONE, record.id, first.token)] == late.commands
    assert (0, 0) == late.cost()


def test_what_the_results_of_one_message_do_to_a_run_is_one_change() -> None:
    core = new_core((ONE, 4))
    run = start(core, plan_of([(0, 2), (1, 2), (0, 3)], 4))
    first, second = run.records[0], run.records[1]
    assert first is not None
    assert second is not None
    outcomes = [Outcome(each.id, each.token, (b"1",), NO_USAGE) for each in (first, second)]
    [change] = core.outcomes(ONE, outcomes, now=1.0)
    assert [first.id, second.id] == [each.id for each in change.completes]
    assert {"n2", "n3"} == {each.node_id for each in change.node_inserts}
    acks = [each.attempt_ref for each in change.commands if isinstance(each, AckCommand)]
    assert [first.id, second.id] == acks


def test_an_attempt_is_its_runners_alone() -> None:
    """G2, F6: who knows its token and is another has nothing to say of it."""
    core = new_core((ONE, 1))
    run = start(core, plan_of([], 1))
    record = run.records[0]
    assert record is not None
    core.attached(OTHER, Offer(pythons=PYTHONS, tier="T2"), {})
    core.granted(OTHER, 1, 1)
    assert [] == core.declined(OTHER, record.id, record.token)
    [late] = core.outcomes(OTHER, [Outcome(record.id, record.token, (b"2",), NO_USAGE)], now=0.0)
    assert [SupersededCommand(OTHER, record.id, record.token)] == late.commands
    assert ONE == holder(run)
    core.outcomes(ONE, [Outcome(record.id, record.token, (b"1",), NO_USAGE)], now=0.0)
    assert RunStatus.COMPLETED == run.status


def test_a_window_is_taken_once_and_of_nobody_who_was_fenced() -> None:
    """F6, G4: one that does not know yet that it was fenced is given nothing more."""
    core = new_core((ONE, 1))
    first = start(core, plan_of([], 1))
    core.granted(ONE, 2, 1)  # an epoch says one thing
    second = start(core, plan_of([], 1))
    assert [ONE, None] == [holder(first), holder(second)]
    core.lost(ONE)
    core.granted(ONE, 9, 2)
    assert [None, None] == [holder(first), holder(second)]


def test_an_attempt_that_was_to_end_and_is_not_there_any_more_has_ended() -> None:
    """I4: the runner's word of that was lost with its stream."""
    core = new_core((ONE, 1))
    run = start(core, plan_of([], 1))
    record = run.records[0]
    assert record is not None
    core.cancel(run.id)
    assert run.status not in RUN_FINAL  # it waits for what runs
    core.detached(ONE)
    core.attached(ONE, Offer(pythons=PYTHONS, tier="T2"), {})
    assert RunStatus.CANCELLED == run.status


def test_what_a_run_may_answer_is_counted_in_bytes() -> None:
    """R24: an answer of fewer characters than bytes must still fit a message."""
    core = new_core((ONE, 1))
    run = start(core, plan_of([], 1))
    record = run.records[0]
    assert record is not None
    text = ('"' + "é" * 600_000 + '"').encode()
    core.outcomes(ONE, [Outcome(record.id, record.token, (text,), NO_USAGE)], now=0.0)
    assert run.failure is not None
    assert "output_too_large" == run.failure[1].error_type


def test_texts_of_a_result_lose_what_no_column_takes() -> None:
    """R25, B99."""
    outcome = _outcome(
        pb.AttemptResult(
            attempt_ref=bytes(16),
            token=1,
            stdout_tail="a\0b",
            failure=pb.AttemptFailure(error_type="user_error", message="\0", stack_trace="\0"),
        )
    )
    assert isinstance(outcome.result, Failure)
    assert ("a\ufffdb", "\ufffd", "\ufffd") == (
        outcome.usage.stdout_tail,
        outcome.result.message,
        outcome.result.stack_trace,
    )


def test_what_starts_of_one_plan_follow_is_given_to_the_database_once() -> None:
    follows = tuple(Follows(ONE, TENANT, UUID(int=at), OTHER) for at in range(1000))
    batch = [Transition(UUID(int=at), follows=follows) for at in range(300)]
    columns = flush.prepare(batch).arguments
    assert [1000] * 4 == [len(each) for each in columns]


def limited(plan: Plan, **limits: int) -> Plan:
    """A plan whose first place has limits."""
    place = replace(plan.places[0], **limits)  # type: ignore[arg-type]
    return replace(plan, places=(place, *plan.places[1:]))


def test_the_row_of_a_run_that_was_broken_off_says_so_also_when_it_is_cancelled_then() -> None:
    """Who loads it again must begin nothing of what would close it."""
    core = new_core((ONE, 1))
    run = start(core, plan_of([], 1))
    [broken] = core.break_off(run.id, Failure(error_type=ENGINE_ERROR, message="it cannot"))
    [cancelled] = core.cancel(run.id)
    for t in (broken, cancelled):
        assert [ENGINE_ERROR] == [each.error_type for each in t.run_changes]


def test_what_no_runner_takes_in_its_time_fails() -> None:
    core = new_core()
    run = start(core, limited(plan_of([], 1), queue_timeout_ms=500))
    assert [] == core.due(now=0.4)
    core.due(now=0.6)
    assert run.failure is not None
    assert ("queue_timeout", RunStatus.FAILED) == (run.failure[1].error_type, run.status)


def test_what_a_runner_took_in_its_time_does_not() -> None:
    core = new_core((ONE, 1))
    run = start(core, limited(plan_of([], 1), queue_timeout_ms=500))
    core.due(now=0.6)
    assert RunStatus.RUNNING == run.status


def test_a_node_is_killed_once_all_its_attempts_together_took_too_long() -> None:
    core = new_core((ONE, 1))
    run = start(core, limited(plan_of([], 1, max_retries=9), total_timeout_ms=900))
    record = run.records[0]
    assert record is not None
    fault = Failure(error_type="user_error", message="")
    core.outcomes(ONE, [Outcome(record.id, record.token, fault, NO_USAGE)], now=0.5)
    core.due(now=0.8)
    assert NodeStatus.RUNNING == record.status
    [t] = core.due(now=1.0)
    [kill] = [each for each in t.commands if isinstance(each, KillCommand)]
    killed = Failure(error_type="cancelled", message="", killed=True)
    core.outcomes(ONE, [Outcome(record.id, kill.token, killed, NO_USAGE)], now=1.1)
    assert run.failure is not None
    assert ("total_timeout", RunStatus.FAILED) == (run.failure[1].error_type, run.status)


def test_a_sub_workflow_that_takes_too_long_is_cancelled_and_fails_its_node() -> None:
    core = new_core((ONE, 2))
    inner = plan_of([], 1)
    place = replace(plan_of([], 1).places[0], kind=Kind.WORKFLOW, sub=inner, total_timeout_ms=900)
    outer = replace(plan_of([], 1), places=(place,), direct=(False,))
    run = start(core, outer)
    [child] = [each for each in core.runs.values() if each is not run]
    record = child.records[0]
    assert record is not None
    commands = [each for t in core.due(now=1.0) for each in t.commands]
    [kill] = [each for each in commands if isinstance(each, KillCommand)]
    killed = Failure(error_type="cancelled", message="", killed=True)
    core.outcomes(ONE, [Outcome(record.id, kill.token, killed, NO_USAGE)], now=1.1)
    assert RunStatus.CANCELLED == child.status
    assert run.failure is not None
    assert ("total_timeout", RunStatus.FAILED) == (run.failure[1].error_type, run.status)
