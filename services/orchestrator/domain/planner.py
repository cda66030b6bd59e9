"""The planner: what one event changes in one run.

Every function changes the run in place and adds the rows and commands of that change to a
transition. An event costs the number of the node's edges, never the size of the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Final
from uuid import UUID

from services.orchestrator.domain import retry
from services.orchestrator.domain.rows import (
    AckCommand,
    AssignCommand,
    Finished,
    KillCommand,
    NodeComplete,
    NodeInsert,
    Transition,
)
from services.orchestrator.domain.state import (
    NO_USAGE,
    Failure,
    FileValue,
    NodeOutput,
    NodeRecord,
    Run,
    Usage,
)
from services.orchestrator.domain.status import RUN_NEXT, NodeStatus, RunStatus
from services.orchestrator.domain.writes import (
    NewId,
    attempt_row,
    change_row,
    error_row,
    flow_rows,
    object_text,
    outcome_of,
    run_output,
    run_row,
    set_status,
)

DELIVERIES_MAX: Final = 3
OUTPUT_BYTES_MAX: Final = 1024 * 1024
LOST: Final = Failure(error_type="runner_lost", message="the runner of the attempt was lost")
EXPIRED: Final = Failure(
    error_type="deadline_exceeded", message="the run took longer than its workflow allows"
)
CANCELLED: Final = Failure(error_type="cancelled", message="the run was cancelled", killed=True)


def assign(
    run: Run, place: int, t: Transition, *, runner: UUID, token: int, new_id: NewId, alone: bool
) -> NodeRecord:
    """Give a ready place to a runner: its row is written running before anything is sent."""
    record = run.records[place]
    run.revision += 1
    run.running += 1
    starts = run.status is RunStatus.PENDING
    if record is None:
        run.order += 1
        record = NodeRecord(
            id=new_id(), order=run.order, status=NodeStatus.RUNNING, token=token, runner=runner
        )
        run.records[place] = record
        definition = run.plan.places[place]
        t.node_inserts.append(
            NodeInsert(
                id=record.id,
                run_id=run.id,
                node_id=definition.id,
                node_version_id=definition.node_version_id,
                execution_order=record.order,
                max_retries=definition.retry.max_retries,
                runner=runner,
                token=token,
                revision=run.revision,
                first=bool(t.run_inserts),
            )
        )
        record.revision = run.revision
    else:
        guard, record.token, record.runner = record.token, token, runner
        record.cpu_us = record.memory_peak_bytes = 0
        record.container_id = None
        change_row(run, place, t, NodeStatus.RUNNING, guard=guard, starts=True)
    record.alone = alone
    record.due_ms = None
    if starts:
        _to(run, RunStatus.RUNNING)
        if not t.run_inserts:
            t.run_changes.append(run_row(run, starts=True))
    t.begun.append(record)
    t.commands.append(AssignCommand(runner, run.id, place, token))
    _touch(run, place, t)
    return record


def complete(
    run: Run, place: int, t: Transition, *, output: NodeOutput, usage: Usage, new_id: NewId
) -> list[int]:
    """Take a result; returns the places that it made ready."""
    record = _over(run, place, usage, t)
    run.revision += 1
    set_status(record, NodeStatus.COMPLETED)
    record.failure = None
    run.done += 1
    inline = None if isinstance(output, FileValue) else object_text(run, place, output)
    t.completes.append(
        NodeComplete(
            id=record.id,
            token=record.token,
            output_data=inline,
            output_file_id=output.file_id if isinstance(output, FileValue) else None,
            revision=run.revision,
            cpu_us=usage.cpu_us,
            memory_peak_bytes=usage.memory_peak_bytes,
            stdout_tail=usage.stdout_tail,
            stderr_tail=usage.stderr_tail,
            container_id=usage.container_id,
        )
    )
    record.revision = run.revision
    flow_rows(run, place, t, usage, new_id)
    if run.keep[place]:
        run.outputs[place] = output
    _release_inputs(run, place)
    _touch(run, place, t)
    ready = []
    for child in run.plan.children[place]:
        run.remaining[child] -= 1
        if run.remaining[child] == 0 and run.accepting:
            ready.append(child)
    settle(run, t)
    return ready


def fail(
    run: Run,
    place: int,
    t: Transition,
    *,
    failure: Failure,
    usage: Usage,
    draw: float,
    new_id: NewId,
) -> int | None:
    """Take a failed attempt; returns in how many milliseconds the next one is due, if any."""
    record = _over(run, place, usage, t)
    run.revision += 1
    policy = run.plan.places[place].retry
    record.failure = failure
    attempt_row(run, record, t, failure, usage, outcome=outcome_of(failure), new_id=new_id)
    if failure.retryable and record.retry_count < policy.max_retries and run.accepting:
        record.retry_count += 1
        record.due_ms = retry.delay_ms(policy, failures=record.retry_count, draw=draw)
        change_row(run, place, t, NodeStatus.RETRYING, usage=usage)
    else:
        change_row(run, place, t, NodeStatus.FAILED, usage=usage)
        if run.failure is None:
            run.failure = (run.plan.places[place].id, failure)
    _touch(run, place, t)
    settle(run, t)
    return record.due_ms if record.status is NodeStatus.RETRYING else None


def lose(run: Run, place: int, t: Transition, *, new_id: NewId) -> bool:
    """Take the loss of the runner that had an attempt; returns whether the place may begin again.

    A loss is no failure of user code. A place that took its runner with it while it ran alone, and
    for the third time, is quarantined.
    """
    record = _over(run, place, NO_USAGE, None)
    run.revision += 1
    record.delivery_count += 1
    record.failure = LOST
    attempt_row(run, record, t, LOST, NO_USAGE, outcome="lost", new_id=new_id)
    if not run.accepting:
        stopped = NodeStatus.CANCELLED if run.cancelling or run.expired else NodeStatus.FAILED
        change_row(run, place, t, stopped)
    elif record.delivery_count >= DELIVERIES_MAX and record.alone:
        change_row(run, place, t, NodeStatus.QUARANTINED)
        run.failure = (run.plan.places[place].id, LOST)
    else:
        record.due_ms = 0
        change_row(run, place, t, NodeStatus.RETRYING)
    _touch(run, place, t)
    settle(run, t)
    return record.status is NodeStatus.RETRYING


def hand_back(run: Run, place: int, t: Transition) -> bool:
    """Take back an attempt that its runner declined; returns whether the place may begin again.

    It counts as neither attempt nor delivery.
    """
    record = _over(run, place, NO_USAGE, None)
    run.revision += 1
    if run.accepting:
        record.due_ms = 0
        change_row(run, place, t, NodeStatus.RETRYING)
    else:
        change_row(run, place, t, NodeStatus.CANCELLED)
    _touch(run, place, t)
    settle(run, t)
    return record.status is NodeStatus.RETRYING


def refuse(run: Run, place: int, t: Transition, failure: Failure, *, new_id: NewId) -> None:
    """Take the fault of a place that can never begin: the run stops as for a node that failed."""
    error_row(run, t, failure, new_id=new_id)
    if run.failure is None:
        run.failure = (run.plan.places[place].id, failure)
    settle(run, t)


def confirm_stopped(run: Run, place: int, t: Transition, *, usage: Usage) -> None:
    """Take a runner's word that an attempt it was told to kill is over."""
    record = _over(run, place, usage, t)
    run.revision += 1
    record.failure = CANCELLED if run.cancelling else EXPIRED
    change_row(run, place, t, NodeStatus.CANCELLED, usage=usage)
    _touch(run, place, t)
    settle(run, t)


def stop(run: Run, t: Transition, *, cancel: bool, next_token: Callable[[], int]) -> None:
    """Stop a run for good, on a caller's word or because its time is up.

    The tokens of running attempts advance in the same flush, so whatever they still give is late.
    """
    run.revision += 1
    if cancel:
        run.cancelling = True
    else:
        run.expired = True
        run.failure = run.failure or ("", EXPIRED)
    for place, record in enumerate(run.records):
        if record is None:
            continue
        if record.status is NodeStatus.RUNNING and record.killing is None:
            guard, record.killing, record.token = record.token, record.token, next_token()
            change_row(run, place, t, NodeStatus.RUNNING, guard=guard)
            if record.runner is not None:
                t.commands.append(KillCommand(record.runner, record.id, record.killing))
        elif record.status in (NodeStatus.RETRYING, NodeStatus.WAITING, NodeStatus.PAUSED):
            change_row(run, place, t, NodeStatus.CANCELLED)
            _touch(run, place, t)
    if run.running:
        t.run_changes.append(run_row(run, cancels=cancel))
    t.revision = run.revision
    settle(run, t)


def break_off(run: Run, t: Transition, failure: Failure, *, next_token: Callable[[], int]) -> None:
    """End a run that cannot go on for a fault of the engine's: say why, stop what runs."""
    run.failure = ("", failure)
    stop(run, t, cancel=False, next_token=next_token)


def settle(run: Run, t: Transition) -> None:
    """End the run if nothing of it is left to do."""
    if run.running or run.status not in (RunStatus.PENDING, RunStatus.RUNNING, RunStatus.PAUSED):
        return
    if run.cancelling:
        _finish(run, t, RunStatus.CANCELLED)
    elif run.failure is not None:
        for place, record in enumerate(run.records):
            if record is not None and record.status is NodeStatus.RETRYING:
                change_row(run, place, t, NodeStatus.FAILED)
                _touch(run, place, t)
        _finish(run, t, RunStatus.FAILED)
    elif run.done == len(run.plan.places):
        text = run_output(run)
        size = len(text.encode())
        if size > OUTPUT_BYTES_MAX:
            run.failure = ("", _too_large(size))
            _finish(run, t, RunStatus.FAILED)
        else:
            run.output_data = text
            _finish(run, t, RunStatus.COMPLETED)


def _too_large(size: int) -> Failure:
    return Failure(
        error_type="output_too_large",
        message=f"the outputs take {size} bytes, and {OUTPUT_BYTES_MAX} are allowed; declare fewer "
        "outputs, or let a node return one large value, which becomes a file",
    )


def _finish(run: Run, t: Transition, status: RunStatus) -> None:
    run.revision += 1
    _to(run, status)
    t.run_changes[:] = [each for each in t.run_changes if each.id != run.id]
    t.run_changes.append(run_row(run, final=True, cancels=run.cancelling))
    t.revision = run.revision
    t.commands.append(Finished(run.id))


def _over(run: Run, place: int, usage: Usage, t: Transition | None) -> NodeRecord:
    """Take an attempt off its runner and count what it consumed; `t` gets the runner's Ack."""
    record = run.records[place]
    assert record is not None, "only what has begun can end"
    assert record.status is NodeStatus.RUNNING, record.status
    run.running -= 1
    record.cpu_us = usage.cpu_us
    record.memory_peak_bytes = usage.memory_peak_bytes
    record.container_id = usage.container_id
    run.container_id = usage.container_id or run.container_id
    record.serialization_us = usage.serialization_us
    run.cpu_us += usage.cpu_us
    run.memory_peak_bytes = max(run.memory_peak_bytes, usage.memory_peak_bytes)
    if t is not None and record.runner is not None:
        known = record.token if record.killing is None else record.killing
        t.commands.append(AckCommand(record.runner, record.id, known))
    record.killing = None
    return record


def _to(run: Run, status: RunStatus) -> None:
    assert status in RUN_NEXT[run.status], (run.status, status)
    run.status = status


def _touch(run: Run, place: int, t: Transition) -> None:
    record = run.records[place]
    assert record is not None
    if run.watchers:
        t.views.append((place, copy(record)))
    else:
        t.complete_views = False
    t.revision = run.revision


def _release_inputs(run: Run, place: int) -> None:
    """Forget outputs that nothing will read again."""
    for source in {binding.source for binding in run.plan.places[place].inputs}:
        if source >= 0:
            run.keep[source] -= 1
            if run.keep[source] == 0:
                run.outputs.pop(source, None)
