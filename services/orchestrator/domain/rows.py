"""What a change of a run writes, and what follows once that is committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias, TypeVar
from uuid import UUID

from services.orchestrator.domain.state import NodeRecord


class RunInsert(NamedTuple):
    """A new row of workflow_executions."""

    id: UUID
    workflow_id: UUID | None  # none of a run of one node
    tenant_id: UUID
    created_by: UUID
    workflow_version: int | None
    current_version: int | None  # refuse unless the workflow still stands at this version
    pins_id: UUID
    shard: int
    status: str
    input_data: str
    request_id: UUID | None
    request_digest: str | None
    python_version: str | None
    timeout_ms: int | None
    revision: int
    alias: str | None = None  # refuse unless it stands for workflow_version
    business_key: str | None = None
    key_reuse: str = "allow"  # refuse where earlier runs with the key forbid it
    labels: str = "{}"
    priority: int = 0
    start_at: datetime | None = None
    parent_execution_id: UUID | None = None
    relation: str | None = None
    node_version_id: UUID | None = None  # refuse unless its node is there and may be read
    parent_node_id: str | None = None  # of a sub-workflow: whatever became of it, it is inserted
    ignores_cache: bool = False
    traceparent: str | None = None  # of what it is a part; kept only where traces are told
    undoes_parent: bool = False  # refuse where another run has what its parent left to undo


class Follows(NamedTuple):
    """What a started run takes for true: the version that a node which it follows stands at."""

    pins_id: UUID
    tenant_id: UUID  # that must be able to read the node
    node_id: UUID
    version_id: UUID


class NodeInsert(NamedTuple):
    """A new row of node_executions, born running."""

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
    first: bool  # of a run that the same flush inserts: written only if that row was


class NodePlaced(NamedTuple):
    """A new row of node_executions that no runner has: it waits, or is over at once."""

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
    """A new row of node_executions that its run takes over: it stands as its source does.

    A result that is a file stays one file, which is kept for as long as any of its rows is.
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
    """A row of file_uses: a node's row has a result that is another one's file."""

    id: UUID  # the node's row
    run_id: UUID
    file_id: UUID
    first: bool  # of a run that the same flush inserts


class SignalWrite(NamedTuple):
    """A row of execution_signals: a word from outside, and the node that took it, once one did."""

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
    due_ms: int | None  # set due_at this far ahead
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
    child_id: UUID | None = None  # kept as it was where it is None
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
    """A row of limit_slots that its member has taken: whom the place is for."""

    id: UUID
    run_id: UUID
    node_execution_id: UUID | None  # none for the run itself


class SlotFree(NamedTuple):
    """A row of limit_slots that goes: what had the place is over."""

    id: UUID
    limit_id: UUID
    key: str


class Charge(NamedTuple):
    """What an attempt adds to what its tenant used today."""

    tenant_id: UUID
    cpu_us: int
    gb_us: int
    moved_bytes: int


class Spend(NamedTuple):
    """What an attempt takes from the budget of its run, or that the run is over."""

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


class AssignCommand(NamedTuple):
    """Send an attempt to the runner that holds its row."""

    runner: UUID
    run_id: UUID
    slot: int
    token: int


class AckCommand(NamedTuple):
    """Tell a runner that a result is committed."""

    runner: UUID
    attempt_ref: UUID
    token: int


class SupersededCommand(NamedTuple):
    """Tell a runner to kill and forget an attempt."""

    runner: UUID
    attempt_ref: UUID
    token: int


class KillCommand(NamedTuple):
    """Tell a runner to kill an attempt and say so."""

    runner: UUID
    attempt_ref: UUID
    token: int


class Finished(NamedTuple):
    """A run is over: forget it."""

    run_id: UUID


class View(NamedTuple):
    """A node as a watcher is shown it."""

    node_id: str
    place: int
    record: NodeRecord


class CacheCommand(NamedTuple):
    """Keep a result, which is committed, for runs that would give its node the same inputs."""

    node_execution_id: UUID
    node_version_id: UUID
    tenant_id: UUID
    digest: str
    ttl_ms: int


Command: TypeAlias = (
    AssignCommand | AckCommand | SupersededCommand | KillCommand | Finished | CacheCommand
)


Row = TypeVar("Row")


def more(rows: Sequence[Row], row: Row) -> list[Row]:
    """Add a row to those of its kind, of which most transitions have none."""
    if isinstance(rows, list):
        rows.append(row)
        return rows
    return [*rows, row]


@dataclass(slots=True)
class Transition:
    """One change of one run: its rows are written together or not at all, then its commands go.

    Most have rows of two or three kinds. Of the others none has a list of its own, which would cost
    more than to decide the change does: `more` makes one for the first row.
    """

    run_id: UUID
    follows: tuple[Follows, ...] = ()  # of what is inserted: refused where one is not so
    run_inserts: Sequence[RunInsert] = ()
    node_inserts: Sequence[NodeInsert] = ()
    placed: dict[UUID, NodePlaced] = field(default_factory=dict)  # by row
    copies: Sequence[NodeCopy] = ()
    file_uses: Sequence[FileUse] = ()
    completes: Sequence[NodeComplete] = ()
    changes: dict[UUID, NodeChange] = field(default_factory=dict)  # by row, each once
    attempts: Sequence[AttemptInsert] = ()
    errors: Sequence[ErrorInsert] = ()
    flows: Sequence[FlowInsert] = ()
    signals: Sequence[SignalWrite] = ()
    uses: Sequence[SlotUse] = ()
    frees: Sequence[SlotFree] = ()
    run_changes: Sequence[RunChange] = ()
    charges: Sequence[Charge] = ()
    spends: Sequence[Spend] = ()
    commands: list[Command] = field(default_factory=list)
    begun: Sequence[NodeRecord] = ()  # attempts that it starts
    views: Sequence[View] = ()  # nodes as they then stood
    complete_views: bool = True  # whether `views` holds every node that it changed
    revision: int = 0
    # Of a beginning that takes many flushes: others go between, and it is over with the last.
    begins: bool = False
    begun_whole: bool = False

    def copy(self, row: NodeCopy) -> None:
        """Add a result that is taken over, and whose file it is where it is one."""
        self.copies = more(self.copies, row)
        if row.file_id is not None:
            use = FileUse(row.id, row.run_id, row.file_id, row.first)
            self.file_uses = more(self.file_uses, use)

    @property
    def writes(self) -> bool:
        """Whether it has any row."""
        return any(_counted(self))

    def cost(self) -> tuple[int, int]:
        """Count the rows it writes, and about how many bytes they carry."""
        rows = sum(map(len, _counted(self)))
        size = 200 * rows
        for inserted in self.run_inserts:
            size += len(inserted.input_data) + len(inserted.labels)
        for completed in self.completes:
            size += len(completed.output_data or "")
            size += len(completed.stdout_tail) + len(completed.stderr_tail)
        for placed in self.placed.values():
            size += len(placed.output_data or "") + len(placed.error_message or "")
        for signal in self.signals:
            size += len(signal.payload)
        for moved in self.run_changes:
            size += len(moved.output_data or "") + len(moved.error_message or "")
            size += len(moved.stack_trace or "")
        for changed in self.changes.values():
            size += len(changed.error_message or "") + len(changed.stack_trace or "")
            size += len(changed.error_detail or "")
            size += len(changed.stdout_tail) + len(changed.stderr_tail)
        for told in self.errors:  # a failed attempt says the same once more
            copies = 1 + (told.node_execution_id is not None)
            size += copies * (len(told.error_message) + len(told.stack_trace))
            size += copies * len(told.error_detail or "")
            size += copies * (len(told.stdout_tail) + len(told.stderr_tail))
        return rows, size


_counted: Final = attrgetter(
    "run_inserts",
    "node_inserts",
    "placed",
    "signals",
    "uses",
    "frees",
    "copies",
    "file_uses",
    "completes",
    "changes",
    "attempts",
    "errors",
    "flows",
    "run_changes",
)
