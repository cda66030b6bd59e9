"""The rows that a change of a run writes: what the planner decided, laid out for the flush."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeAlias
from uuid import UUID

from services.orchestrator.domain.rows import (
    AttemptInsert,
    ErrorInsert,
    FlowInsert,
    NodeChange,
    RunChange,
    Transition,
)
from services.orchestrator.domain.state import NO_USAGE, Failure, FileValue, NodeRecord, Run, Usage
from services.orchestrator.domain.status import NODE_NEXT, NodeStatus, RunStatus

NewId: TypeAlias = Callable[[], UUID]


def object_text(run: Run, place: int, output: tuple[bytes, ...]) -> str:
    """Write a place's outputs as one JSON object, each value exactly as it was produced."""
    names = run.plan.places[place].outputs
    parts = (
        f"{json.dumps(name)}:{value.decode()}" for name, value in zip(names, output, strict=True)
    )
    return "{" + ",".join(parts) + "}"


def run_output(run: Run) -> str:
    """Write the run's outputs as one JSON object; a value in a file stands as its reference."""
    parts = []
    for output in run.plan.outputs:
        value = run.outputs[output.source]
        if isinstance(value, FileValue):
            field = run.plan.places[output.source].outputs[output.output]
            text = json.dumps(
                {"$file": str(value.file_id), "field": field, "size_bytes": value.size_bytes}
            )
        else:
            text = value[output.output].decode()
        parts.append(f"{json.dumps(output.name)}:{text}")
    return "{" + ",".join(parts) + "}"


def set_status(record: NodeRecord, status: NodeStatus) -> None:
    """Move a node on; only along the table of what may follow what."""
    assert status in NODE_NEXT[record.status], (record.status, status)
    record.status = status


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
        due_ms=record.due_ms if status is NodeStatus.RETRYING else None,
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
    )


def run_row(
    run: Run, *, starts: bool = False, final: bool = False, cancels: bool = False
) -> RunChange:
    """Lay out the run's row as it now is."""
    place, failure = run.failure or (None, None)
    told_place = run.plan.index.get(place or "")
    failed = run.records[told_place] if told_place is not None else None
    told = final and run.status is RunStatus.FAILED and failure is not None
    return RunChange(
        id=run.id,
        status=run.status,
        starts=starts,
        final=final,
        cancels=cancels,
        output_data=run.output_data,
        error_type=failure.error_type if told and failure else None,
        error_message=failure.message if told and failure else None,
        stack_trace=failure.stack_trace if told and failure else None,
        failed_node_id=(place or None) if told else None,
        revision=run.revision,
        cpu_us=run.cpu_us,
        memory_peak_bytes=run.memory_peak_bytes,
        container_id=(failed and failed.container_id) or run.container_id,
    )


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
    t.attempts.append(
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
        )
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
    t.errors.append(
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
        )
    )


def flow_rows(run: Run, place: int, t: Transition, usage: Usage, new_id: NewId) -> None:
    """Add a row for each edge that brought a completed node its input."""
    places = run.plan.places
    for at, binding in enumerate(places[place].inputs):
        if binding.source < 0:
            continue
        source = run.records[binding.source]
        value = run.value(place, at)
        file = value[0] if isinstance(value, tuple) else None
        t.flows.append(
            FlowInsert(
                id=new_id(),
                run_id=run.id,
                source_node_id=places[binding.source].id,
                target_node_id=places[place].id,
                data_type="file" if file else "json",
                data_size_bytes=file.size_bytes if file else len(value or b""),
                serialization_us=source.serialization_us if source else 0,
                transfer_us=usage.transfer_us,
                conversion=binding.conversion or None,
                file_id=file.file_id if file else None,
            )
        )
