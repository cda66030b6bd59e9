"""The rows that a change of a run writes: what the planner decided, laid out for the flush."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from copy import copy
from functools import lru_cache
from typing import Final, TypeAlias
from uuid import UUID

from services.orchestrator.domain.plan import Kind, RunOutput
from services.orchestrator.domain.records import ENGINE_ERROR, NO_USAGE, Failure, NodeRecord, Usage
from services.orchestrator.domain.rows import (
    AttemptInsert,
    ErrorInsert,
    FlowInsert,
    NodeChange,
    NodeComplete,
    NodePlaced,
    RunChange,
)
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NODE_NEXT, RUN_NEXT, NodeStatus, RunStatus
from services.orchestrator.domain.transition import Transition, View, more
from services.orchestrator.domain.values import (
    FileValue,
    ListOutput,
    NodeOutput,
    UnreadableError,
    text_of,
)

_REFERENCE: Final = re.compile(
    rb'\{"\$file":"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"\}'
)
_REFERENCE_BYTES: Final = 48

NewId: TypeAlias = Callable[[], UUID]

# Of lists that elements gave: longer ones stand in the elements' rows alone.
INLINE_CHARS_MAX: Final = 64 * 1024
_STARTED: Final = frozenset({NodeStatus.WAITING, NodeStatus.COMPLETED})
_DUE: Final = frozenset({NodeStatus.RETRYING, NodeStatus.WAITING})


# The names of outputs: the same few, again and again.
_quoted: Final = lru_cache(maxsize=4096)(json.dumps)


def object_text(run: Run, slot: int, output: NodeOutput) -> str:
    """Write a slot's outputs as one JSON object, each value exactly as it was produced."""
    names = run.place(slot).outputs
    if len(names) == 1 and isinstance(output, tuple):  # as with most
        return f"{{{_quoted(names[0])}:{output[0].decode()}}}"
    parts = [f"{_quoted(name)}:{text_of(output, at).decode()}" for at, name in enumerate(names)]
    return "{" + ",".join(parts) + "}"


def run_output(run: Run) -> str:
    """Write the run's outputs as one JSON object; a value in a file stands as its reference."""
    return _outputs_text(run, run.plan.outputs)


def partial_output(run: Run) -> str:
    """Write those of the run's outputs whose nodes were completed, as `run_output` does."""
    return _outputs_text(run, [each for each in run.plan.outputs if each.source in run.outputs])


def _outputs_text(run: Run, outputs: Iterable[RunOutput]) -> str:
    parts = []
    for output in outputs:
        value = run.outputs.get(output.source)
        if isinstance(value, FileValue):
            field = run.plan.places[output.source].outputs[output.output]
            text = json.dumps(
                {"$file": str(value.file_id), "field": field, "size_bytes": value.size_bytes}
            )
        else:
            text = text_of(value, output.output).decode()
        parts.append(f"{_quoted(output.name)}:{text}")
    return "{" + ",".join(parts) + "}"


def set_status(record: NodeRecord, status: NodeStatus) -> None:
    """Move a node on; only along the table of what may follow what."""
    assert status in NODE_NEXT[record.status], (record.status, status)
    record.status = status


def touch(run: Run, slot: int, t: Transition) -> None:
    """Show watchers what changed."""
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
    """Write a node that no runner has: its first row, or the one that it has already."""
    record = run.records[slot]
    run.revision += 1
    if record is not None:
        record.failure, record.due_ms, record.due_s = failure, due_ms, None
        record.child = child or record.child  # as its row keeps it
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
    """Write the first row of a node that no runner has, as its record stands."""
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
    """Give what the last attempt consumed of a node that is ended by hand."""
    return Usage(
        cpu_us=record.cpu_us,
        memory_peak_bytes=record.memory_peak_bytes,
        io_read_bytes=record.io_read_bytes,
        io_write_bytes=record.io_write_bytes,
    )


def inline_text(run: Run, slot: int, output: NodeOutput) -> str | None:
    """Give what a row holds of an output; None where a file or elements' rows hold it."""
    if isinstance(output, FileValue):
        return None
    if isinstance(output, ListOutput):
        try:
            text = object_text(run, slot, output)
        except UnreadableError:
            return None
        return text if len(text) <= INLINE_CHARS_MAX else None
    return object_text(run, slot, output)


def complete_row(
    run: Run, slot: int, t: Transition, output: NodeOutput | None, usage: Usage = NO_USAGE
) -> None:
    """Write a record as completed, with what it gave."""
    record = run.records[slot]
    assert record is not None
    set_status(record, NodeStatus.COMPLETED)
    record.failure = None
    record.revision = run.revision
    text = None if output is None else inline_text(run, slot, output)
    placed = t.placed.get(record.id)
    if placed is not None:  # its first row goes out with this very change
        t.placed[record.id] = placed._replace(
            status=NodeStatus.COMPLETED,
            token=record.token,
            revision=run.revision,
            starts=True,
            due_ms=None,
            output_data=text,
        )
        return
    earlier = t.changes.pop(record.id, None)  # no statement changes a row twice
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
    """Write the record as it now is. Two changes of one row within a transition merge."""
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
    """Move a run on from pending: something of it has begun.

    What is ended by hand in a run that was to start later, or waits for a limit, begins nothing.
    """
    if run.status is RunStatus.PENDING and not run.asleep:
        run.begun = True
        move(run, RunStatus.RUNNING)
        if not t.run_inserts:
            write_run(run, t, starts=True)


def move(run: Run, status: RunStatus) -> None:
    """Move a run on; only along the table of what may follow what."""
    assert status in RUN_NEXT[run.status], (run.status, status)
    run.status = status


def write_run(
    run: Run, t: Transition, *, starts: bool = False, final: bool = False, cancels: bool = False
) -> None:
    """Write the run's row as it now is. Two changes of it within a transition merge.

    While a run closes, its row says already why it will fail: no other row may say so. One that the
    engine broke off is known by that, even if it is cancelled then.
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


def outcome_of(failure: Failure) -> str:
    """Name how a failed attempt ended, in the words of node_attempts."""
    return failure.error_type if failure.error_type in ("timeout", "oom") else "failed"


def attempt_row(
    run: Run,
    record: NodeRecord,
    t: Transition,
    failure: Failure,
    usage: Usage,
    *,
    outcome: str,
    new_id: NewId,
) -> None:
    """Add the row of a failed attempt, and the error's log."""
    error_row(run, t, failure, new_id=new_id, record=record, usage=usage)
    t.attempts = more(
        t.attempts,
        AttemptInsert(
            node_execution_id=record.id,
            attempt=record.retry_count + record.delivery_count + (outcome != "lost"),
            token=record.token,
            outcome=outcome,
            error_type=failure.error_type,
            error_message=failure.message,
            stack_trace=failure.stack_trace,
            stdout_tail=usage.stdout_tail,
            stderr_tail=usage.stderr_tail,
            runner=record.runner,
            cpu_us=usage.cpu_us,
            memory_peak_bytes=usage.memory_peak_bytes,
            error_detail=failure.detail,
            io_read_bytes=usage.io_read_bytes,
            io_write_bytes=usage.io_write_bytes,
            progress=failure.progress,
        ),
    )


def error_row(
    run: Run,
    t: Transition,
    failure: Failure,
    *,
    new_id: NewId,
    record: NodeRecord | None = None,
    usage: Usage = NO_USAGE,
) -> None:
    """Add an error's log; without a record, of a place of which nothing ever ran."""
    t.errors = more(
        t.errors,
        ErrorInsert(
            id=new_id(),
            run_id=run.id,
            node_execution_id=record.id if record else None,
            tenant_id=run.tenant_id,
            container_id=usage.container_id,
            error_type=failure.error_type,
            error_message=failure.message,
            stack_trace=failure.stack_trace,
            stdout_tail=usage.stdout_tail,
            stderr_tail=usage.stderr_tail,
            error_detail=failure.detail,
        ),
    )


def flow_rows(run: Run, place: int, t: Transition, usage: Usage, new_id: NewId) -> None:
    """Add a row for each edge that brought a completed node its input.

    A map or loop has its edges once, not for each element or turn: those are no places.
    """
    places = run.plan.places
    if place >= len(places):
        return
    for binding in places[place].inputs:
        if binding.source < 0:
            continue
        source = run.records[binding.source]
        output = run.outputs.get(binding.source)
        if output is None or binding.output < 0:
            continue
        if isinstance(output, tuple):  # as with most
            text = output[binding.output]
            size, file_id = len(text), _referred(text)
        else:
            size, file = _size_of(output, binding.output)
            file_id = file.file_id if file else None
        t.flows = more(
            t.flows,
            FlowInsert(
                id=new_id(),
                run_id=run.id,
                source_node_id=places[binding.source].id,
                target_node_id=places[place].id,
                data_size_bytes=size,
                serialization_us=source.serialization_us if source else 0,
                transfer_us=usage.transfer_us,
                data_type="file" if file_id else "json",
                conversion=binding.conversion or None,
                file_id=file_id,
            ),
        )


def _referred(text: bytes) -> UUID | None:
    """Give the id of the file that is the value, where an output is nothing but its reference.

    Whether there is such a file, what it holds and how large it is, the database says.
    """
    found = _REFERENCE.fullmatch(text) if len(text) == _REFERENCE_BYTES else None
    return UUID(found[1].decode()) if found is not None else None


def _size_of(output: NodeOutput | None, index: int) -> tuple[int, FileValue | None]:
    """Give how many bytes an output has, and the file that it is in."""
    if isinstance(output, tuple):
        return len(output[index]), None
    if isinstance(output, FileValue):
        return output.size_bytes, output
    if output is None:
        return len(b"null"), None
    return 2 + sum(_size_of(each, index)[0] + 1 for each in output.items), None
