"""Controls of open runs by callers, and the ends of waits."""

from __future__ import annotations

import json
from collections import deque

from services.orchestrator.domain import routes, waits
from services.orchestrator.domain.effects import Effects, Timer
from services.orchestrator.domain.ends import branch_of
from services.orchestrator.domain.history import flow_rows
from services.orchestrator.domain.plan import Kind
from services.orchestrator.domain.records import NO_USAGE, Failure
from services.orchestrator.domain.state import Run, Signal
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.writes import (
    change_row,
    complete_row,
    move,
    place_row,
    touch,
    write_run,
)


def pause(run: Run, t: Transition) -> None:
    """Pause a run: nothing new begins, running attempts end, timers go on."""
    if run.status is RunStatus.PAUSED:
        return
    run.revision += 1
    move(run, RunStatus.PAUSED)
    write_run(run, t)


def resume(run: Run, t: Transition, fx: Effects) -> None:
    """Resume a paused run, or return it to waiting for its start."""
    if run.status is not RunStatus.PAUSED:
        return
    run.revision += 1
    move(run, RunStatus.RUNNING if run.begun else RunStatus.PENDING)
    write_run(run, t)
    routes.revive(run, t, fx)


def pause_node(run: Run, place: int, t: Transition, fx: Effects) -> None:
    """Pause a place that has not begun or waits for a retry."""
    record = run.records[place]
    place_row(
        run,
        place,
        t,
        NodeStatus.PAUSED,
        new_id=fx.new_id,
        token=fx.next_token(),
        failure=record.failure if record is not None else None,
    )


def resume_node(run: Run, place: int, t: Transition, fx: Effects) -> None:
    """Resume a place: it begins if it is ready, or is retried at once."""
    record = run.records[place]
    assert record is not None
    run.revision += 1
    if record.begun:
        record.due_ms = 0
        change_row(run, place, t, NodeStatus.RETRYING)
        fx.timers.append(Timer(run, place, 0))
    else:
        change_row(run, place, t, NodeStatus.PENDING)
        fx.todo.append(place)
    touch(run, place, t)
    routes.settle(run, t, fx)


def skip_node(
    run: Run, place: int, t: Transition, fx: Effects, output: tuple[bytes, ...] | None
) -> None:
    """End a place that is not running: as completed with an output, or as skipped."""
    waits.forget_waiting(run, place)
    if output is None:
        routes.skip(run, place, t, fx)
    else:
        record = place_row(
            run,
            place,
            t,
            NodeStatus.COMPLETED,
            new_id=fx.new_id,
            token=fx.next_token(),
            output=output,
        )
        record.branch = branch_of(run.place(place), output)
        routes.slot_done(run, place, t, fx, output)
    routes.settle(run, t, fx)


def take_signal(run: Run, name: str, t: Transition, fx: Effects, signal: Signal) -> None:
    """Deliver a signal to the slot that has waited for it longest, or keep it for a later wait.

    A kept signal does not change the revision of the run, since no row shows one for it.
    """
    slots = run.waiting.get((signal.kind, name))
    if not slots:
        assert signal.kind is Kind.SIGNAL  # an approval was checked to be waiting
        waits.write_signal(run, None, t, signal, name)
        run.signals.setdefault(name, deque()).append(signal)
        return
    run.revision += 1
    t.revision = run.revision
    slot = slots[0]
    waits.forget_waiting(run, slot)
    waits.write_signal(run, slot, t, signal, name)
    complete_row(run, slot, t, signal.outputs)
    flow_rows(run, slot, t, NO_USAGE, fx.new_id)
    touch(run, slot, t)
    routes.slot_done(run, slot, t, fx, signal.outputs)
    routes.settle(run, t, fx)


def wait_over(run: Run, slot: int, t: Transition, fx: Effects) -> None:
    """Handle the timer of a wait: a sleep is over, or a signal timed out."""
    record, place = run.records[slot], run.place(slot)
    assert record is not None
    run.revision += 1
    waits.forget_waiting(run, slot)
    output: tuple[bytes, ...] | None = None
    if place.kind is Kind.SLEEP:
        output = (json.dumps(fx.wall().isoformat()).encode(),)
    elif place.wait is not None and place.wait.default is not None:
        output = (place.wait.default,)
    if output is not None:
        complete_row(run, slot, t, output)
        flow_rows(run, slot, t, NO_USAGE, fx.new_id)
        touch(run, slot, t)
        routes.slot_done(run, slot, t, fx, output)
    else:
        name = place.wait.name if place.wait is not None else place.id
        failure = Failure(
            error_type=f"{place.kind}_timeout", message=f"{name} did not arrive in time"
        )
        routes.fail_for_good(run, slot, t, fx, failure)
    routes.settle(run, t, fx)
