"""What became of one attempt: its outputs or its error, and what it used."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

# Outputs of one attempt that are larger in sum become a file.
INLINE_BYTES_MAX: Final = 64 * 1024


class ErrorType(enum.StrEnum):
    """The closed list of ways in which an attempt fails."""

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
    """An exception behind another: its cause, what was being handled, or a member of its group."""

    kind: str  # cause, context or member
    exception: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptError:
    """Why an attempt failed, bounded whatever the user's code raised."""

    type: ErrorType
    message: str
    exception: str = ""
    traceback: str = ""
    causes: Sequence[Cause] = ()
    retryable: bool = True
    input: str = ""  # the parameter whose value was not taken


class Usage(NamedTuple):
    """What the attempt used, as the agent and the control group measured it."""

    cpu_us: int = 0
    memory_peak_bytes: int = 0
    wall_us: int = 0
    serialization_us: int = 0
    io_read_bytes: int = 0  # from and to disks; what stays in memory is none
    io_write_bytes: int = 0

    @property
    def worked_s(self) -> float:
        """How long the attempt's own work took, in and around user code."""
        return (self.wall_us + self.serialization_us) / 1_000_000


NO_USAGE: Final = Usage()


class Outcome(NamedTuple):
    """The end of one attempt: `outputs` are exact JSON texts by name, in the declared order."""

    outputs: Sequence[tuple[str, bytes]] = ()
    error: AttemptError | None = None
    usage: Usage = NO_USAGE
    stdout_tail: str = ""
    stderr_tail: str = ""
    recycle: str = ""
    progress: str = ""  # how far a failed one said it had come, JSON text
    again: bool = False  # it ended with its sandbox, for what another call did: nothing is known
