"""Append-only rows: failed attempts, errors, and data flow along edges."""

from __future__ import annotations

import re
from typing import Final
from uuid import UUID

from services.orchestrator.domain.records import NO_USAGE, Failure, NodeRecord, Usage
from services.orchestrator.domain.rows import AttemptInsert, ErrorInsert, FlowInsert, NewId
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.transition import Transition, more
from services.orchestrator.domain.values import FileValue, NodeOutput

_REFERENCE: Final = re.compile(
    rb'\{"\$file":"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"\}'
)
_REFERENCE_BYTES: Final = 48


def outcome_of(failure: Failure) -> str:
    """Return the outcome of a failed attempt for node_attempts."""
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
    """Add the rows of a failed attempt and its error."""
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
    """Add the row of an error; without a record, of a place that never ran."""
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
    """Add a row for each edge that carried an input of a completed node.

    The edges of a map or loop are recorded once, not for each element or turn.
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
        if isinstance(output, tuple):  # the usual case
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
    """Return the file id if an output is just a reference to a file.

    Whether there is such a file is checked by the statement that writes the row.
    """
    found = _REFERENCE.fullmatch(text) if len(text) == _REFERENCE_BYTES else None
    return UUID(found[1].decode()) if found is not None else None


def _size_of(output: NodeOutput | None, index: int) -> tuple[int, FileValue | None]:
    """Return the size of an output in bytes, and the file that holds it, if any."""
    if isinstance(output, tuple):
        return len(output[index]), None
    if isinstance(output, FileValue):
        return output.size_bytes, output
    if output is None:
        return len(b"null"), None
    return 2 + sum(_size_of(each, index)[0] + 1 for each in output.items), None
