"""Records of nodes that have begun, with what their attempts consumed and why they failed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from services.orchestrator.domain.status import NodeStatus

# A run that cannot go on for a fault of the engine's: nothing of it begins any more.
ENGINE_ERROR: Final = "engine_error"


class Usage(NamedTuple):
    """What an attempt consumed and printed."""

    cpu_us: int = 0
    memory_peak_bytes: int = 0
    serialization_us: int = 0
    transfer_us: int = 0
    stdout_tail: str = ""
    stderr_tail: str = ""
    container_id: UUID | None = None
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    moved_bytes: int = 0  # of the values and files that it was given and gave
    took_us: int = 0  # by its runner's own clock, which nobody sets


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt did not give a result."""

    error_type: str
    message: str
    stack_trace: str = ""
    retryable: bool = True
    killed: bool = False
    detail: str | None = None  # JSON text: the exception's class, and what is behind it
    progress: str | None = None  # JSON text: how far the attempt said it had come
    input: str = ""  # the input whose value was not taken, as the runner tells it

    @property
    def exception(self) -> str:
        """The name of the class that user code raised; empty where it raised nothing."""
        return str(json.loads(self.detail)["exception"]) if self.detail else ""


def detail_of_class(exception: str | None) -> str | None:
    """Give the detail of a failure of which no more is known than the class that was raised."""
    return json.dumps({"exception": exception, "causes": []}) if exception else None


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
    child: UUID | None = None  # the execution that runs its sub-workflow
    branch: str = ""  # that a choice took
    cache_hit: bool = False
    overdue: bool = False  # it is being killed because it took too long in all
    age_s: float = 0.0  # since its first attempt began, when it was read from its rows
    serialization_us: int = 0
    cpu_us: int = 0
    memory_peak_bytes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    container_id: UUID | None = None
    failure: Failure | None = None
    due_ms: int | None = None
    # The moment of the engine's clock that this came to: a timer that was set for another is stale.
    due_s: float | None = None
    progress: str | None = None  # how far earlier attempts said they had come: JSON text
    started_at: datetime | None = None
    completed_at: datetime | None = None

    @property
    def begun(self) -> bool:
        """Whether there was an attempt at it."""
        tried = self.runner is not None or self.child is not None
        return tried or self.retry_count > 0 or self.failure is not None

    def forget_usage(self) -> None:
        """Begin an attempt of which nothing is known yet."""
        self.cpu_us = self.memory_peak_bytes = self.io_read_bytes = self.io_write_bytes = 0
