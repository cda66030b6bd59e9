"""Turns decisions of the planner into row changes for the flush."""

from __future__ import annotations

from copy import copy
from typing import Final
from uuid import UUID

from services.orchestrator.domain.output_texts import inline_text
from services.orchestrator.domain.plan import Kind
from services.orchestrator.domain.records import ENGINE_ERROR, NO_USAGE, Failure, NodeRecord, Usage
from services.orchestrator.domain.rows import NewId, NodeChange, NodeComplete, NodePlaced, RunChange
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NODE_NEXT, RUN_NEXT, NodeStatus, RunStatus
from services.orchestrator.domain.transition import Transition, View, more
from services.orchestrator.domain.values import FileValue, NodeOutput

_STARTED: Final = frozenset({NodeStatus.WAITING, NodeStatus.COMPLETED})
_DUE: Final = frozenset({NodeStatus.RETRYING, NodeStatus.WAITING})


def set_status(record: NodeRecord, status: NodeStatus) -> None:
    """Set the status of a node; asserts that the transition is allowed."""
    assert status in NODE_NEXT[record.status], (record.status, status)
    record.status = status


def touch(run: Run, slot: int, t: Transition) -> None:
    """Add a view of the node for watchers."""
    record = run.records[slot]
    assert record is not None
    if run.watchers:
        t.views = more(t.views, View(run.node_id(slot), run.place_of(slot), copy(record)))
    else:
        t.complete_views = False
    t.revision = run.revision


def place_row(
    run: Run,
    slot: int,
    t: Transition,
    status: NodeStatus,
    *,
    new_id: NewId,
    token: int,
    due_ms: int | None = None,
    child: UUID | None = None,
    output: NodeOutput | None = None,
    failure: Failure | None = None,
) -> NodeRecord:
    """Write a node without a runner: its first row, or a change of its row."""
    record = run.records[slot]
    run.revision += 1
    if record is not None:
        record.failure, record.due_ms, record.due_s = failure, due_ms, None
        record.child = child or record.child  # as in its row
        if status in _STARTED:
            set_running(run, t)
        if status is NodeStatus.COMPLETED:
            complete_row(run, slot, t, output, _consumed(record))
        elif status is NodeStatus.WAITING:
            guard, record.token = record.token, token
            record.forget_usage()
            change_row(run, slot, t, status, guard=guard, starts=True)
        else:
            change_row(run, slot, t, status)
        touch(run, slot, t)
        return record
    run.order += 1
    record = run.records[slot] = NodeRecord(
        id=new_id(),
        order=run.order,
        status=status,
        token=token,
        child=child,
        failure=failure,
        due_ms=due_ms,
        revision=run.revision,
    )
    write_placed(run, slot, t, output)
    if status in _STARTED:
        set_running(run, t)
        t.begun = more(t.begun, record)
    touch(run, slot, t)
    return record


def write_placed(run: Run, slot: int, t: Transition, output: NodeOutput | None = None) -> None:
    """Write the first row of a node without a runner, from its record."""
    record, place = run.records[slot], run.place(slot)
    assert record is not None
    failure = record.failure
    t.placed[record.id] = NodePlaced(
        id=record.id,
        run_id=run.id,
        node_id=run.node_id(slot),
        definition_node_id=place.id,
        node_type="python" if place.kind is Kind.PYTHON else "builtin",
        node_version_id=place.node_version_id,
        status=record.status,
        execution_order=record.order,
        max_retries=place.retry.max_retries,
        token=record.token,
        revision=record.revision,
        retry_count=0,
        first=bool(t.run_inserts),
        starts=record.status in _STARTED,
        due_ms=record.due_ms,
        child_id=record.child,
        output_data=None if output is None else inline_text(run, slot, output),
        error_type=failure.error_type if failure else None,
        error_message=failure.message if failure else None,
        error_detail=failure.detail if failure else None,
    )


def _consumed(record: NodeRecord) -> Usage:
    """Return the usage of the last attempt of a node."""
    return Usage(
        cpu_us=record.cpu_us,
        memory_peak_bytes=record.memory_peak_bytes,
        io_read_bytes=record.io_read_bytes,
        io_write_bytes=record.io_write_bytes,
    )


def complete_row(
    run: Run, slot: int, t: Transition, output: NodeOutput | None, usage: Usage = NO_USAGE
) -> None:
    """Write a node as completed, with its output."""
    record = run.records[slot]
    assert record is not None
    set_status(record, NodeStatus.COMPLETED)
    record.failure = None
    record.revision = run.revision
    text = None if output is None else inline_text(run, slot, output)
    placed = t.placed.get(record.id)
    if placed is not None:  # its first row is part of this transition
        t.placed[record.id] = placed._replace(
            status=NodeStatus.COMPLETED,
            token=record.token,
            revision=run.revision,
            starts=True,
            due_ms=None,
            output_data=text,
        )
        return
    earlier = t.changes.pop(record.id, None)  # a flush changes a row only once
    if earlier is not None:
        record.token = earlier.token
    t.completes = more(
        t.completes,
        NodeComplete(
            id=record.id,
            token=record.token,
            output_data=text,
            revision=run.revision,
            cpu_us=usage.cpu_us,
            memory_peak_bytes=usage.memory_peak_bytes,
            container_id=usage.container_id,
            output_file_id=output.file_id if isinstance(output, FileValue) else None,
            stdout_tail=usage.stdout_tail,
            stderr_tail=usage.stderr_tail,
            io_read_bytes=usage.io_read_bytes,
            io_write_bytes=usage.io_write_bytes,
        ),
    )


def change_row(
    run: Run,
    place: int,
    t: Transition,
    status: NodeStatus,
    *,
    guard: int | None = None,
    starts: bool = False,
    usage: Usage = NO_USAGE,
) -> None:
    """Write a node's record. Changes of one row within a transition are merged."""
    record = run.records[place]
    assert record is not None
    set_status(record, status)
    record.revision = run.revision
    final = not NODE_NEXT[status]
    failure = record.failure
    placed = t.placed.get(record.id)
    if placed is not None:
        t.placed[record.id] = placed._replace(
            status=status,
            token=record.token,
            revision=run.revision,
            starts=starts or placed.starts,
            child_id=record.child or placed.child_id,
            due_ms=record.due_ms if status in _DUE else None,
            retry_count=record.retry_count,
            error_type=failure.error_type if failure else None,
            error_message=failure.message if failure else None,
            error_detail=failure.detail if failure else None,
        )
        return
    earlier = t.changes.get(record.id)
    if earlier is not None:
        guard, starts = earlier.token, starts or earlier.starts
    t.changes[record.id] = NodeChange(
        id=record.id,
        token=record.token if guard is None else guard,
        status=status,
        new_token=record.token,
        runner=record.runner,
        starts=starts,
        final=final,
        due_ms=record.due_ms if status in _DUE else None,
        retry_count=record.retry_count,
        delivery_count=record.delivery_count,
        error_type=failure.error_type if failure else None,
        error_message=failure.message if failure else None,
        stack_trace=failure.stack_trace if failure else None,
        revision=run.revision,
        cpu_us=record.cpu_us,
        memory_peak_bytes=record.memory_peak_bytes,
        stdout_tail=usage.stdout_tail,
        stderr_tail=usage.stderr_tail,
        container_id=record.container_id,
        child_id=record.child,
        error_detail=failure.detail if failure else None,
        io_read_bytes=record.io_read_bytes,
        io_write_bytes=record.io_write_bytes,
    )


def set_running(run: Run, t: Transition) -> None:
    """Set a pending run to running, because something of it has begun.

    Not while it waits for its start time or a limit, when only a skipped node can get here.
    """
    if run.status is RunStatus.PENDING and not run.asleep:
        run.begun = True
        move(run, RunStatus.RUNNING)
        if not t.run_inserts:
            write_run(run, t, starts=True)


def move(run: Run, status: RunStatus) -> None:
    """Set the status of a run; asserts that the transition is allowed."""
    assert status in RUN_NEXT[run.status], (run.status, status)
    run.status = status


def write_run(
    run: Run, t: Transition, *, starts: bool = False, final: bool = False, cancels: bool = False
) -> None:
    """Write the run's row. Changes of it within a transition are merged.

    While a run closes, its row already has the failure, which may be in no other row. The failure
    of a run that the engine broke off is kept even if it is cancelled later.
    """
    place, failure = run.failure or ("", None)
    broken_off = failure is not None and failure.error_type == ENGINE_ERROR
    failing = run.status is RunStatus.FAILED or (not final and (broken_off or not run.cancelling))
    told = failure if failing else None
    told_place = run.plan.index.get(place)
    failed = run.records[told_place] if told_place is not None else None
    for earlier in t.run_changes:
        starts, cancels = starts or earlier.starts, cancels or earlier.cancels
    change = RunChange(
        id=run.id,
        status=run.status,
        starts=starts,
        final=final,
        output_data=run.output_data,
        revision=run.revision,
        cpu_us=run.cpu_us,
        memory_peak_bytes=run.memory_peak_bytes,
        container_id=(failed and failed.container_id) or run.container_id,
        cancels=cancels,
        error_type=told.error_type if told else None,
        error_message=told.message if told else None,
        stack_trace=told.stack_trace if told else None,
        failed_node_id=(place or None) if told else None,
        io_read_bytes=run.io_read_bytes,
        io_write_bytes=run.io_write_bytes,
    )
    t.run_changes = [change]
    t.revision = run.revision
