"""The rows that changes of runs write, in the form that the flush takes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple, TypeAlias
from uuid import UUID

NewId: TypeAlias = Callable[[], UUID]  # of a row


class RunInsert(NamedTuple):
    """A new row of workflow_executions."""

    id: UUID
    workflow_id: UUID | None  # None for a run of a single node
    tenant_id: UUID
    created_by: UUID
    workflow_version: int | None
    current_version: int | None  # refuse unless this is the workflow's current version
    pins_id: UUID
    shard: int
    status: str
    input_data: str
    request_id: UUID | None
    request_digest: str | None
    python_version: str | None
    timeout_ms: int | None
    revision: int
    alias: str | None = None  # refuse unless it refers to workflow_version
    business_key: str | None = None
    key_reuse: str = "allow"  # refuse if earlier runs with the key exclude it
    labels: str = "{}"
    priority: int = 0
    start_at: datetime | None = None
    parent_execution_id: UUID | None = None
    relation: str | None = None
    node_version_id: UUID | None = None  # refuse unless its node exists and is readable
    parent_node_id: str | None = None  # of a sub-workflow, which is inserted without checks
    ignores_cache: bool = False
    traceparent: str | None = None  # kept only if traces are exported
    undoes_parent: bool = False  # refuse if another run took over the parent's compensations
    budget: str | None = None  # as requested: a JSON object of amounts


class Follows(NamedTuple):
    """A precondition of a start: the current version of a node without a fixed version."""

    pins_id: UUID
    tenant_id: UUID  # must be able to read the node
    node_id: UUID
    version_id: UUID


class NodeInsert(NamedTuple):
    """A new row of node_executions that is running."""

    id: UUID
    run_id: UUID
    node_id: str
    definition_node_id: str
    node_version_id: UUID
    execution_order: int
    max_retries: int
    runner: UUID
    token: int
    revision: int
    first: bool  # of a run inserted by the same flush: written only if that was


class NodePlaced(NamedTuple):
    """A new row of node_executions without a runner: it waits or has ended."""

    id: UUID
    run_id: UUID
    node_id: str
    definition_node_id: str
    node_type: str
    node_version_id: UUID
    status: str
    execution_order: int
    max_retries: int
    token: int
    revision: int
    retry_count: int
    first: bool  # of a run that the same flush inserts
    starts: bool  # set started_at
    due_ms: int | None
    child_id: UUID | None
    output_data: str | None
    error_type: str | None
    error_message: str | None
    error_detail: str | None  # JSON text


class NodeCopy(NamedTuple):
    """A new row of node_executions that copies one of another run.

    A result in a file is not copied: the file is kept for as long as any row refers to it.
    """

    id: UUID
    run_id: UUID
    source_id: UUID  # the row that it copies
    node_id: str
    definition_node_id: str
    node_version_id: UUID
    execution_order: int
    first: bool  # of a run that the same flush inserts
    file_id: UUID | None = None
    revision: int = 1
    cache_hit: bool = False


class FileUse(NamedTuple):
    """A row of file_uses: a node's result is a file of another node."""

    id: UUID  # the node's row
    run_id: UUID
    file_id: UUID
    first: bool  # of a run that the same flush inserts


class SignalWrite(NamedTuple):
    """A row of execution_signals, with the node that took the signal, if any."""

    id: UUID
    run_id: UUID
    tenant_id: UUID
    name: str
    payload: str
    sent_by: UUID
    node_id: str | None


class NodeComplete(NamedTuple):
    """A row that is not final becomes completed."""

    id: UUID
    token: int
    output_data: str | None
    revision: int
    cpu_us: int
    memory_peak_bytes: int
    container_id: UUID | None
    output_file_id: UUID | None = None
    stdout_tail: str = ""
    stderr_tail: str = ""
    io_read_bytes: int = 0
    io_write_bytes: int = 0


class NodeChange(NamedTuple):
    """Any other change of a row that is not final."""

    id: UUID
    token: int  # the token the row must still have
    status: str
    new_token: int
    runner: UUID | None
    starts: bool  # set started_at: an attempt begins
    final: bool  # set completed_at
    due_ms: int | None  # set due_at to so many milliseconds from now
    retry_count: int
    delivery_count: int
    error_type: str | None
    error_message: str | None
    stack_trace: str | None
    revision: int
    cpu_us: int
    memory_peak_bytes: int
    stdout_tail: str
    stderr_tail: str
    container_id: UUID | None
    child_id: UUID | None = None  # None: unchanged
    error_detail: str | None = None  # JSON text
    io_read_bytes: int = 0
    io_write_bytes: int = 0


class AttemptInsert(NamedTuple):
    """A new row of node_attempts: an attempt that failed or was lost."""

    node_execution_id: UUID
    attempt: int
    token: int
    outcome: str
    error_type: str
    error_message: str
    stack_trace: str
    stdout_tail: str
    stderr_tail: str
    runner: UUID | None
    cpu_us: int
    memory_peak_bytes: int
    error_detail: str | None = None
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    progress: str | None = None  # JSON text


class ErrorInsert(NamedTuple):
    """A new row of error_logs: a failed attempt, or a place that could not begin."""

    id: UUID
    run_id: UUID
    node_execution_id: UUID | None
    tenant_id: UUID
    container_id: UUID | None
    error_type: str
    error_message: str
    stack_trace: str
    stdout_tail: str
    stderr_tail: str
    error_detail: str | None = None


class FlowInsert(NamedTuple):
    """A row of node_data_flow."""

    id: UUID
    run_id: UUID
    source_node_id: str
    target_node_id: str
    data_size_bytes: int
    serialization_us: int
    transfer_us: int
    data_type: str = "json"
    conversion: str | None = None
    file_id: UUID | None = None


class SlotUse(NamedTuple):
    """A row of limit_slots acquired by this member: what uses it."""

    id: UUID
    run_id: UUID
    node_execution_id: UUID | None  # None: the run itself


class SlotFree(NamedTuple):
    """A row of limit_slots to delete: what used it has ended."""

    id: UUID
    limit_id: UUID
    key: str


class Charge(NamedTuple):
    """Usage of an attempt, added to its tenant's of today."""

    tenant_id: UUID
    cpu_us: int
    gb_us: int
    moved_bytes: int


class Spend(NamedTuple):
    """Usage of an attempt, added to its run's budget, or the end of the run."""

    execution_id: UUID
    nodes: int
    cpu_us: int
    gb_us: int
    moved_bytes: int
    over: bool


class RunChange(NamedTuple):
    """A change of a row of workflow_executions that is not final."""

    id: UUID
    status: str
    starts: bool  # set started_at
    final: bool  # set completed_at
    output_data: str | None
    revision: int
    cpu_us: int
    memory_peak_bytes: int
    container_id: UUID | None
    cancels: bool = False  # set cancel_requested_at
    error_type: str | None = None
    error_message: str | None = None
    stack_trace: str | None = None
    failed_node_id: str | None = None
    io_read_bytes: int = 0
    io_write_bytes: int = 0
