"""The end of a run: the rest of its main phase, compensations, finally nodes, final status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from services.orchestrator.domain import waits
from services.orchestrator.domain.commands import Finished
from services.orchestrator.domain.effects import Effects
from services.orchestrator.domain.ends import End, place_over
from services.orchestrator.domain.ledger import BUDGET_EXCEEDED, QUOTA_EXCEEDED
from services.orchestrator.domain.output_texts import partial_output, run_output
from services.orchestrator.domain.records import Failure
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NODE_FINAL, RUN_FINAL, NodeStatus, RunStatus
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.values import UnreadableError
from services.orchestrator.domain.writes import change_row, move, touch, write_run

OUTPUT_BYTES_MAX: Final = 1024 * 1024
# Failures that are not the run's fault: outputs that are complete are returned.
_PARTIAL: Final = frozenset({BUDGET_EXCEEDED, QUOTA_EXCEEDED})


def advance(run: Run, t: Transition, fx: Effects) -> bool:
    """Continue to end a run of which nothing is running; returns whether places have to begin."""
    if run.running or run.status in RUN_FINAL:
        return False
    if not run.closing:
        if not is_main_over(run):
            return False
        _end_leftovers(run, t, fx)
        _prove_output(run)
        begin_closing(run)
        if run.failure is not None and (run.undo or run.plan.finals):
            run.revision += 1
            write_run(run, t)
    if not run.abandoned and (run.undo or run.plan.finals):
        if run.status is RunStatus.PAUSED:
            return False
        begun, waits_on = _next(run)
        if begun:
            fx.todo.extend(begun)
            return True
        if waits_on:
            return False
    _finish_by_outcome(run, t, fx)
    return False


def is_main_over(run: Run) -> bool:
    """Return whether the main phase is over, given that nothing of it is running."""
    stopped = run.cancelling or run.expired or run.failure is not None
    return stopped or run.done == run.plan.main_size


def begin_closing(run: Run) -> None:
    """Determine the compensations to run, in reverse order of completion."""
    run.closing = True
    if run.cancelling or run.failure is not None:
        run.undo = compensations_of(run)


def compensations_of(run: Run) -> tuple[int, ...]:
    """Return the compensations of completed nodes, in the order in which they run.

    Results taken over from another run are older than all others; their rows are in the order of
    completion.
    """
    found = []
    for place in run.plan.compensations:
        target = run.plan.places[place].compensates
        record = run.records[target] if target is not None else None
        if record is not None and record.status is NodeStatus.COMPLETED:
            found.append((record.revision, record.order, place))
    return tuple(place for *_, place in sorted(found, reverse=True))


def _next(run: Run) -> tuple[list[int], bool]:
    """Return the places of later phases that begin now, and whether any is running."""
    for place in run.undo:  # sequentially
        if is_over(run, place):
            continue
        if place in run.seeded:
            return [], True
        run.seeded.add(place)
        return [place], True
    begun = [
        place for place in run.plan.finals if run.remaining[place] == 0 and place not in run.seeded
    ]
    run.seeded.update(begun)
    return begun, any(not is_over(run, place) for place in run.plan.finals)


def is_over(run: Run, slot: int) -> bool:
    """Return whether a slot has a final status."""
    record = run.records[slot]
    return record is not None and record.status in NODE_FINAL


def _end_leftovers(run: Run, t: Transition, fx: Effects) -> None:
    """End what waits and will not continue: as failed after a failed attempt, else as cancelled."""
    for slot, record in enumerate(run.records):
        if record is None or record.status in NODE_FINAL:
            continue
        if record.status is NodeStatus.RETRYING and record.failure is not None:
            run.revision += 1  # after the failure that ended the run
            change_row(run, slot, t, NodeStatus.FAILED)
            touch(run, slot, t)
            if slot < len(run.plan.places) and run.plan.places[slot].handled:
                place_over(run, slot, fx, End.FAILED)
        else:
            waits.stop_waiting(run, slot, t, NodeStatus.CANCELLED)
    run.groups.clear()
    run.waiting.clear()
    fx.todo.clear()  # nothing of the main phase begins from now on


def _finish_by_outcome(run: Run, t: Transition, fx: Effects) -> None:
    if run.cancelling:
        _finish(run, t, fx, RunStatus.CANCELLED)
    elif run.failure is not None:
        if run.failure[1].error_type in _PARTIAL and run.parent is None:
            run.output_data = _partial_output(run)
        _finish(run, t, fx, RunStatus.FAILED)
    else:
        failure = _take_output(run)
        if failure is not None:
            run.failure = ("", failure)
        _finish(run, t, fx, RunStatus.FAILED if failure else RunStatus.COMPLETED)


def _prove_output(run: Run) -> None:
    """Fail a run whose outputs cannot be written, while its compensations can still run."""
    if run.plan.compensations and not run.cancelling and run.failure is None:
        failure = _written(run, partial_output)[1]  # outputs of finally nodes come later
        if failure is not None:
            run.failure = ("", failure)


def _take_output(run: Run) -> Failure | None:
    text, failure = _written(run, run_output)
    if failure is None:
        run.output_data = text
    return failure


def _written(run: Run, write: Callable[[Run], str]) -> tuple[str, Failure | None]:
    """Return the outputs of a run as text, and the failure if that is not possible."""
    try:
        text = write(run)
    except UnreadableError as error:
        return "", Failure(error_type="output_too_large", message=str(error))
    size = len(text.encode())
    return text, _too_large(size) if size > OUTPUT_BYTES_MAX else None


def _partial_output(run: Run) -> str | None:
    text, failure = _written(run, partial_output)
    return text if failure is None else None


def _too_large(size: int) -> Failure:
    return Failure(
        error_type="output_too_large",
        message=f"the outputs have {size} bytes, the maximum is {OUTPUT_BYTES_MAX}; declare fewer "
        "outputs, or let a node return one large value, which becomes a file",
    )


def _finish(run: Run, t: Transition, fx: Effects, status: RunStatus) -> None:
    run.revision += 1
    move(run, status)
    write_run(run, t, final=True, cancels=run.cancelling)
    t.commands.append(Finished(run.id))
    if run.parent is not None:
        fx.ended.append(run)
