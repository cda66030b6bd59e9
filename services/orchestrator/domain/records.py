"""Records of nodes that have begun, and the usage and failures of attempts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from services.orchestrator.domain.status import NodeStatus

# The error type of runs that end because of a fault of the engine.
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
    moved_bytes: int = 0  # of values and files, in and out
    took_us: int = 0  # by the monotonic clock of its runner


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt failed."""

    error_type: str
    message: str
    stack_trace: str = ""
    retryable: bool = True
    killed: bool = False
    detail: str | None = None  # JSON text: the exception's class and causes
    progress: str | None = None  # JSON text saved by the attempt
    input: str = ""  # the input whose value was refused, as reported by the runner

    @property
    def exception(self) -> str:
        """The name of the exception class raised by user code; empty if none."""
        return str(json.loads(self.detail)["exception"]) if self.detail else ""


def detail_of_class(exception: str | None) -> str | None:
    """Return the detail of a failure of which only the exception class is known."""
    return json.dumps({"exception": exception, "causes": []}) if exception else None


@dataclass(slots=True, kw_only=True)
class NodeRecord:
    """A node that has begun: the contents of its row, and the state of its attempt."""

    id: UUID
    order: int
    status: NodeStatus
    token: int
    runner: UUID | None = None
    retry_count: int = 0
    delivery_count: int = 0
    revision: int = 0
    alone: bool = False  # its attempt must not share a runner
    killing: int | None = None  # the token that the runner knows, while it is being killed
    child: UUID | None = None  # the execution of its sub-workflow
    branch: str = ""  # taken by a choice
    cache_hit: bool = False
    overdue: bool = False  # being killed because of its timeout for all attempts
    age_s: float = 0.0  # since its first attempt began, as of loading
    serialization_us: int = 0
    cpu_us: int = 0
    memory_peak_bytes: int = 0
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    container_id: UUID | None = None
    failure: Failure | None = None
    due_ms: int | None = None
    # The engine time of `due_ms`; a timer for any other time is stale.
    due_s: float | None = None
    progress: str | None = None  # JSON text saved by earlier attempts
    started_at: datetime | None = None
    completed_at: datetime | None = None

    @property
    def begun(self) -> bool:
        """Whether there has been an attempt."""
        tried = self.runner is not None or self.child is not None
        return tried or self.retry_count > 0 or self.failure is not None

    def forget_usage(self) -> None:
        """Reset the usage for a new attempt."""
        self.cpu_us = self.memory_peak_bytes = self.io_read_bytes = self.io_write_bytes = 0
