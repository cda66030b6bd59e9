"""The state of one run in memory: a cache of committed rows, changed in place by the planner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, TypeAlias
from uuid import UUID

from services.orchestrator.domain.options import NO_OPTIONS, RunOptions
from services.orchestrator.domain.plan import FROM_RUN, Plan
from services.orchestrator.domain.status import RUN_FINAL, NodeStatus, RunStatus


@dataclass(frozen=True, slots=True)
class FileValue:
    """All outputs of a node as one JSON object in a committed file."""

    file_id: UUID
    size_bytes: int
    sha256: bytes


NodeOutput: TypeAlias = tuple[bytes, ...] | FileValue


class Usage(NamedTuple):
    """What an attempt consumed and printed."""

    cpu_us: int = 0
    memory_peak_bytes: int = 0
    serialization_us: int = 0
    transfer_us: int = 0
    stdout_tail: str = ""
    stderr_tail: str = ""
    container_id: UUID | None = None


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt did not give a result."""

    error_type: str
    message: str
    stack_trace: str = ""
    retryable: bool = True
    killed: bool = False


@dataclass(slots=True, kw_only=True)
class NodeRecord:
    """A node that has begun: what its row holds, and where its attempt is."""

    id: UUID
    order: int
    status: NodeStatus
    token: int
    runner: UUID | None = None
    retry_count: int = 0
    delivery_count: int = 0
    revision: int = 0
    alone: bool = False  # the attempt shares its runner with no other
    killing: int | None = None  # the token the runner still knows it by, once told to stop
    serialization_us: int = 0
    cpu_us: int = 0
    memory_peak_bytes: int = 0
    container_id: UUID | None = None
    failure: Failure | None = None
    due_ms: int | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None


@dataclass(slots=True, kw_only=True)
class Run:
    """One execution that is not over."""

    id: UUID
    plan: Plan
    tenant_id: UUID
    created_by: UUID
    status: RunStatus
    input_values: dict[str, bytes]
    input_text: str = "{}"  # exactly as it was sent
    request_id: UUID | None = None
    options: RunOptions = NO_OPTIONS
    revision: int = 0
    order: int = 0  # the last execution_order that was drawn
    records: list[NodeRecord | None] = field(default_factory=list)
    remaining: list[int] = field(default_factory=list)  # parents that are not done
    keep: list[int] = field(default_factory=list)  # readers of the output that are not done
    outputs: dict[int, NodeOutput] = field(default_factory=dict)
    running: int = 0  # attempts on runners
    done: int = 0  # places that are completed
    failure: tuple[str, Failure] | None = None  # the first failing place and why
    cancelling: bool = False
    expired: bool = False
    watchers: int = 0  # while there are any, transitions carry copies of what they change
    cpu_us: int = 0
    memory_peak_bytes: int = 0
    container_id: UUID | None = field(default=None, compare=False)  # of what ended last
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    deadline_at: datetime | None = None
    output_data: str | None = None

    def __post_init__(self) -> None:
        """Fill the arrays for a run of which nothing has begun."""
        plan = self.plan
        if not self.records:
            self.records = [None] * len(plan.places)
            self.remaining = list(plan.parents)
            self.keep = [len(children) for children in plan.children]
            for output in plan.outputs:
                self.keep[output.source] += 1

    def unbegun(self) -> Iterable[int]:
        """Give the places that may begin at once, in a run of which nothing has begun."""
        if not self.done:
            return self.plan.roots
        return [
            place
            for place, record in enumerate(self.records)
            if record is None and self.remaining[place] == 0
        ]

    @property
    def accepting(self) -> bool:
        """Whether new attempts may begin."""
        return (
            self.failure is None
            and not self.cancelling
            and not self.expired
            and self.status not in RUN_FINAL
        )

    def value(self, place: int, binding: int) -> bytes | tuple[FileValue, str] | None:
        """Give an input of a place: JSON text, a field of a file, or None where none is given."""
        source = self.plan.places[place].inputs[binding]
        if source.source >= 0:
            output = self.outputs[source.source]
            return (output, source.key) if isinstance(output, FileValue) else output[source.output]
        if source.source == FROM_RUN:
            return self.input_values.get(source.key) or source.literal or None
        return source.literal
