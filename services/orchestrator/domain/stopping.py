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
    message="the run exceeded its timeout, set by its workflow or when it was started",
)
CANCELLED: Final = Failure(error_type="cancelled", message="the run was cancelled", killed=True)


def exhaust(run: Run, t: Transition, fx: Effects, failure: Failure) -> None:
    """End a run that used up its budget or quota, or whose parent failed; attempts may end."""
    run.revision += 1
    run.asleep = False
    run.failure = ("", failure)
    waits.fail_children(run, fx)
    error_row(run, t, failure, new_id=fx.new_id)
    write_run(run, t)
    routes.settle(run, t, fx)


def stop(run: Run, t: Transition, fx: Effects, *, cancel: bool, resumes: bool = False) -> None:
    """Stop a run for good, because a caller cancels it or its timeout expired.

    A caller's cancel resumes a paused run (`resumes`), which nobody else can do any more. After a
    timeout, the compensations and finally nodes of a paused run wait until it is resumed.

    The tokens of running attempts advance in the same flush, so that later results are stale. If
    compensations or finally nodes have begun already, no others begin.
    """
    run.revision += 1
    run.asleep = False  # closing waits for no start time and no limit
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
    run.revision += 1  # above that of what it stops, below that of what begins after it
    if run.closing and not run.abandoned:
        _close_anew(run, t)
    if resumes and run.status is RunStatus.PAUSED:
        move(run, RunStatus.RUNNING if run.begun else RunStatus.PENDING)
    write_run(run, t, cancels=cancel)
    routes.settle(run, t, fx)


def _stop_slot(run: Run, slot: int, t: Transition, fx: Effects, *, resumes: bool) -> None:
    """End what waits at a slot, or have its attempt killed."""
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
    """Have a running attempt killed; its token advances, so that a later result is stale."""
    record = run.records[slot]
    assert record is not None
    guard, record.killing, record.token = record.token, record.token, fx.next_token()
    change_row(run, slot, t, NodeStatus.RUNNING, guard=guard)
    if record.runner is not None:
        t.commands.append(KillCommand(record.runner, record.id, record.killing))


def _close_anew(run: Run, t: Transition) -> None:
    """Restart the closing of a run that was paused before it began.

    A cancel compensates more than a successful end, and resumes places paused before their phase.
    """
    closing.begin_closing(run)
    for slot, record in enumerate(run.records):
        if record is not None and record.status is NodeStatus.PAUSED:
            change_row(run, slot, t, NodeStatus.PENDING)
            touch(run, slot, t)


def break_off(run: Run, t: Transition, fx: Effects, failure: Failure) -> None:
    """End a run that cannot continue because of a fault of the engine."""
    run.failure = ("", failure)
    run.closing = run.abandoned = True  # no compensation or finally node begins
    stop(run, t, fx, cancel=False, resumes=True)


def is_expiry(failure: Failure | None) -> bool:
    """Return whether a failure is a run's timeout; messages in older rows may differ."""
    return failure is not None and failure.error_type == EXPIRED.error_type


def why_stopped(run: Run) -> Failure:
    """Return the failure of nodes that end because their run was stopped."""
    return CANCELLED if run.cancelling else EXPIRED
