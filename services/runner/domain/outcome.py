"""The outcome of one attempt: its outputs or its error, and its resource usage."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

# Outputs of an attempt that exceed this in total are stored as a file.
INLINE_BYTES_MAX: Final = 64 * 1024


class ErrorType(enum.StrEnum):
    """The closed list of reasons why an attempt fails."""

    USER = "user_error"
    TYPE = "type_error"
    CONVERSION = "conversion_error"
    SERIALIZATION = "serialization_error"
    OUTPUT_TOO_LARGE = "output_too_large"
    TIMEOUT = "timeout"
    HEARTBEAT_TIMEOUT = "heartbeat_timeout"
    OOM = "oom"
    EXITED = "exited"
    CANCELLED = "cancelled"
    DEPENDENCY = "dependency_error"
    ENVIRONMENT = "environment_error"


class Cause(NamedTuple):
    """An exception behind another: its cause, its context, or a member of its group."""

    kind: str  # cause, context or member
    exception: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptError:
    """Why an attempt failed, limited in size whatever user code raised."""

    type: ErrorType
    message: str
    exception: str = ""
    traceback: str = ""
    causes: Sequence[Cause] = ()
    retryable: bool = True
    input: str = ""  # the parameter whose value was refused


class Usage(NamedTuple):
    """What an attempt used, as measured by the agent and the control group."""

    cpu_us: int = 0
    memory_peak_bytes: int = 0
    wall_us: int = 0
    serialization_us: int = 0
    io_read_bytes: int = 0  # disk I/O only; what stays in the page cache does not count
    io_write_bytes: int = 0

    @property
    def worked_s(self) -> float:
        """How long the attempt worked: in user code, and converting its values."""
        return (self.wall_us + self.serialization_us) / 1_000_000


NO_USAGE: Final = Usage()


class Outcome(NamedTuple):
    """The end of an attempt: `outputs` are exact JSON texts by name, in the declared order."""

    outputs: Sequence[tuple[str, bytes]] = ()
    error: AttemptError | None = None
    usage: Usage = NO_USAGE
    stdout_tail: str = ""
    stderr_tail: str = ""
    recycle: str = ""
    progress: str = ""  # the last progress of a failed attempt, as JSON text
    again: bool = False  # the sandbox died, perhaps because of another call: retry it alone
