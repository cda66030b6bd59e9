"""A warm interpreter of the pool, what a call needs from it, and errors of loading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID

from services.runner.domain.carried import NO_FILES, Carries
from services.runner.domain.environments import Package
from services.runner.domain.node_logs import shown
from services.runner.domain.outcome import AttemptError, Cause, ErrorType, Usage
from services.runner.domain.pooling import WarmKey
from services.runner.gateways.sandbox.port import Interpreter, Sandbox, SharedCalls
from services.runner.storage.nodes import NodeVersion
from services.runner.usecases.container_rows import ContainerRow

# As many as the orchestrator accepts.
_CAUSES_MAX: Final = 16


class LoadFailed(Exception):  # noqa: N818 - it carries the user's error
    """The node's code could not be loaded."""

    def __init__(self, error: AttemptError, *, printed: tuple[str, str] = ("", "")) -> None:
        super().__init__(error.message)
        self.error = error
        self.printed = printed
        self.container_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The requirements of a call for its interpreter."""

    key: WarmKey
    version: NodeVersion
    interpreter: Interpreter
    environment: Path | None
    packages: Sequence[Package]
    load_timeout_s: float
    carries: Carries = NO_FILES
    plain: bool = False  # whether a call only has to wait for its interpreter
    alone: bool = False  # no other call may run in it at the same time
    row: ContainerRow | None = None  # exists already if packages had to be installed


@dataclass(slots=True, kw_only=True, eq=False)
class Warm:
    """One interpreter of the pool."""

    row: ContainerRow
    key: WarmKey
    sandbox: Sandbox
    born: float
    since: float = 0.0
    uses: int = 0
    cpu_us: int = 0
    memory_peak_bytes: int = 0
    killed: bool = False
    prepared: set[UUID] = field(default_factory=set)  # versions that it loads anew per call
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    cpu_base_us: int = 0  # what the sandbox had used before its first call
    shared: SharedCalls | None = None  # if it serves several calls at once
    calls: int = 0
    alone: bool = False  # its call must not share it
    retired: bool = False  # it gets no further calls
    unproven: int = 0  # calls since it was last proven clean

    @property
    def container_id(self) -> UUID:
        """The id of its row."""
        return self.row.id

    def add(self, used: Usage) -> None:
        """Add the usage of a call."""
        self.cpu_us += used.cpu_us
        self.io_read_bytes += used.io_read_bytes
        self.io_write_bytes += used.io_write_bytes
        self.memory_peak_bytes = max(self.memory_peak_bytes, used.memory_peak_bytes)

    def usage(self) -> dict[str, int]:
        """Return its total usage, as stored in its row."""
        return {
            "attempts": self.uses,
            "cpu_us": self.cpu_us,
            "memory_peak_bytes": self.memory_peak_bytes,
            "io_read_bytes": self.io_read_bytes,
            "io_write_bytes": self.io_write_bytes,
        }

    @property
    def room(self) -> bool:
        """Whether it can take one more call."""
        free = self.calls < self.key.concurrency if self.shared is not None else not self.calls
        return free and not self.retired and not self.alone


def error_from(found: object) -> AttemptError:
    """Parse the agent's error; it is untrusted, so each part is bounded and checked."""
    if not isinstance(found, dict):
        return AttemptError(type=ErrorType.EXITED, message="the agent's answer cannot be read")
    try:
        kind = ErrorType(found.get("type", ""))
    except ValueError:
        kind = ErrorType.USER
    return AttemptError(
        type=kind,
        message=_text(found.get("message"), 16 * 1024),
        exception=_text(found.get("exception"), 255),
        traceback=_text(found.get("traceback"), 64 * 1024),
        causes=_causes(found.get("causes")),
        # The same value would be refused again.
        retryable=kind not in {ErrorType.DEPENDENCY, ErrorType.CONVERSION},
        input=_text(found.get("input"), 255),
    )


def _causes(found: object) -> list[Cause]:
    """Parse the causes of an exception; malformed ones are left out."""
    causes = []
    for each in found[:_CAUSES_MAX] if isinstance(found, list) else ():
        match each:
            case {"kind": "cause" | "context" | "member" as kind, **rest}:
                exception, message = _text(rest.get("exception"), 255), rest.get("message")
                causes.append(Cause(kind, exception, _text(message, 4096)))
    return causes


def _text(value: object, limit: int) -> str:
    if not isinstance(value, str):
        return ""
    return shown(value).encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")
