"""The end of a run: what is left of its main phase, compensations, finally nodes, the last word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from services.orchestrator.domain import waits
from services.orchestrator.domain.effects import Effects
from services.orchestrator.domain.ends import End, place_over
from services.orchestrator.domain.ledger import BUDGET_EXCEEDED, QUOTA_EXCEEDED
from services.orchestrator.domain.rows import Finished, Transition
from services.orchestrator.domain.state import Failure, Run, UnreadableError
from services.orchestrator.domain.status import (
    NODE_FINAL,
    RUN_FINAL,
    NodeStatus,
    RunStatus,
)
from services.orchestrator.domain.writes import (
    change_row,
    move,
    partial_output,
    run_output,
    touch,
    write_run,
)

OUTPUT_BYTES_MAX: Final = 1024 * 1024
# Ends of runs that were well: what they have by then is given.
_PARTIAL: Final = frozenset({BUDGET_EXCEEDED, QUOTA_EXCEEDED})


def advance(run: Run, t: Transition, fx: Effects) -> bool:
    """Go on with ending a run of which nothing runs; returns whether places have to begin."""
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
    """Say whether nothing more can happen in the main phase, once nothing of it runs."""
    stopped = run.cancelling or run.expired or run.failure is not None
    return stopped or run.done == run.plan.main_size


def begin_closing(run: Run) -> None:
    """Fix what has to be undone: what was completed last comes first."""
    run.closing = True
    if run.cancelling or run.failure is not None:
        run.undo = compensations_of(run)


def compensations_of(run: Run) -> tuple[int, ...]:
    """Give the compensations of completed nodes, in the order in which they run.

    What was taken over is older than all else, and its rows were laid out as it was completed.
    """
    found = []
    for place in run.plan.compensations:
        target = run.plan.places[place].compensates
        record = run.records[target] if target is not None else None
        if record is not None and record.status is NodeStatus.COMPLETED:
            found.append((record.revision, record.order, place))
    return tuple(place for *_, place in sorted(found, reverse=True))


def _next(run: Run) -> tuple[list[int], bool]:
    """Give the places of later phases that begin now, and whether any is under way."""
    for place in run.undo:  # one after the other
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
    """Say whether a slot has reached a final status."""
    record = run.records[slot]
    return record is not None and record.status in NODE_FINAL


def _end_leftovers(run: Run, t: Transition, fx: Effects) -> None:
    """End what waits and will not go on: what had failed stays failed, the rest is cancelled."""
    for slot, record in enumerate(run.records):
        if record is None or record.status in NODE_FINAL:
            continue
        if record.status is NodeStatus.RETRYING and record.failure is not None:
            run.revision += 1  # behind the failure that ended the run
            change_row(run, slot, t, NodeStatus.FAILED)
            touch(run, slot, t)
            if slot < len(run.plan.places) and run.plan.places[slot].handled:
                place_over(run, slot, fx, End.FAILED)
        else:
            waits.stop_waiting(run, slot, t, NodeStatus.CANCELLED)
    run.groups.clear()
    run.waiting.clear()
    fx.todo.clear()  # nothing of the main phase begins any more


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
    """Fail a run now whose outputs cannot be given, where that has to be undone."""
    if run.plan.compensations and not run.cancelling and run.failure is None:
        failure = _written(run, partial_output)[1]  # what closes it may have outputs, too
        if failure is not None:
            run.failure = ("", failure)


def _take_output(run: Run) -> Failure | None:
    text, failure = _written(run, run_output)
    if failure is None:
        run.output_data = text
    return failure


def _written(run: Run, write: Callable[[Run], str]) -> tuple[str, Failure | None]:
    """Write the outputs of a run, and say why that cannot be."""
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
        message=f"the outputs take {size} bytes, and {OUTPUT_BYTES_MAX} are allowed; declare fewer "
        "outputs, or let a node return one large value, which becomes a file",
    )


def _finish(run: Run, t: Transition, fx: Effects, status: RunStatus) -> None:
    run.revision += 1
    move(run, status)
    write_run(run, t, final=True, cancels=run.cancelling)
    t.commands.append(Finished(run.id))
    if run.parent is not None:
        fx.ended.append(run)
