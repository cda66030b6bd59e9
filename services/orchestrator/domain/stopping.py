"""How a run ends early: failed, cancelled, or out of budget."""

from __future__ import annotations

from typing import Final

from services.orchestrator.domain import closing, routes, waits
from services.orchestrator.domain.commands import KillCommand
from services.orchestrator.domain.effects import Effects, Stop
from services.orchestrator.domain.history import error_row
from services.orchestrator.domain.plan import Phase
from services.orchestrator.domain.records import Failure
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NODE_FINAL, NodeStatus, RunStatus
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.writes import change_row, move, touch, write_run

EXPIRED: Final = Failure(
    error_type="deadline_exceeded",
    message="the run took longer than its timeout allows: its workflow's, or that of its start",
)
CANCELLED: Final = Failure(error_type="cancelled", message="the run was cancelled", killed=True)


def exhaust(run: Run, t: Transition, fx: Effects, failure: Failure) -> None:
    """End a run that used up what it may, or whose parent failed: what runs ends by itself."""
    run.revision += 1
    run.asleep = False
    run.failure = ("", failure)
    waits.fail_children(run, fx)
    error_row(run, t, failure, new_id=fx.new_id)
    write_run(run, t)
    routes.settle(run, t, fx)


def stop(run: Run, t: Transition, fx: Effects, *, cancel: bool, resumes: bool = False) -> None:
    """Stop a run for good, on a caller's word or because its time is up.

    A caller's word lets a paused run go on (`resumes`): nobody else can any more. Where a time is
    up, what closes a paused run and its sub-workflows waits as all that is new does.

    The tokens of running attempts advance in the same flush, so whatever they still give is late.
    Where what closes the run has begun already, it closes no further.
    """
    run.revision += 1
    run.asleep = False  # what closes it waits for nothing
    run.abandoned = run.abandoned or (run.closing and bool(run.seeded))
    if cancel:
        run.cancelling = True
    else:
        run.expired = True
        run.failure = run.failure or ("", EXPIRED)
    for slot, record in enumerate(run.records):
        if record is None or record.status in NODE_FINAL:
            continue
        if run.abandoned or run.place(slot).phase is Phase.MAIN:
            _stop_slot(run, slot, t, fx, resumes=resumes)
    run.groups.clear()
    run.waiting.clear()
    run.revision += 1  # younger than what it stops, older than what begins after it
    if run.closing and not run.abandoned:
        _close_anew(run, t)
    if resumes and run.status is RunStatus.PAUSED:
        move(run, RunStatus.RUNNING if run.begun else RunStatus.PENDING)
    write_run(run, t, cancels=cancel)
    routes.settle(run, t, fx)


def _stop_slot(run: Run, slot: int, t: Transition, fx: Effects, *, resumes: bool) -> None:
    """End what waits at a slot, and have killed what runs there."""
    record = run.records[slot]
    assert record is not None
    if record.status is NodeStatus.RUNNING:
        if record.killing is None:
            kill(run, slot, t, fx)
    elif record.status is NodeStatus.WAITING and record.child is not None:
        fx.stops.append(Stop(record.child, resumes))
    else:
        record.failure = why_stopped(run)
        waits.stop_waiting(run, slot, t, NodeStatus.CANCELLED)


def kill(run: Run, slot: int, t: Transition, fx: Effects) -> None:
    """Have a running attempt killed; its token advances, so whatever it still gives is late."""
    record = run.records[slot]
    assert record is not None
    guard, record.killing, record.token = record.token, record.token, fx.next_token()
    change_row(run, slot, t, NodeStatus.RUNNING, guard=guard)
    if record.runner is not None:
        t.commands.append(KillCommand(record.runner, record.id, record.killing))


def _close_anew(run: Run, t: Transition) -> None:
    """Let a run close that was paused before anything that closes it had begun.

    A cancel undoes more than an end that was well, and lets go what was held up before its turn.
    """
    closing.begin_closing(run)
    for slot, record in enumerate(run.records):
        if record is not None and record.status is NodeStatus.PAUSED:
            change_row(run, slot, t, NodeStatus.PENDING)
            touch(run, slot, t)


def break_off(run: Run, t: Transition, fx: Effects, failure: Failure) -> None:
    """End a run that cannot go on for a fault of the engine's: say why, stop what runs."""
    run.failure = ("", failure)
    run.closing = run.abandoned = True  # and nothing of what closes it begins
    stop(run, t, fx, cancel=False, resumes=True)


def is_expiry(failure: Failure | None) -> bool:
    """Whether it says that a run's time was up, in whatever words: rows keep those of their day."""
    return failure is not None and failure.error_type == EXPIRED.error_type


def why_stopped(run: Run) -> Failure:
    """Give what is told of that which ends because its run was stopped."""
    return CANCELLED if run.cancelling else EXPIRED
