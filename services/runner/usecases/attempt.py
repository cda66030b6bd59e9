"""A running attempt: why it was told to end, and the errors that follow from that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from services.runner.domain.attempts import AttemptRequest
from services.runner.domain.limits import MIB
from services.runner.domain.outcome import AttemptError, ErrorType, Outcome
from services.runner.domain.pulse import Pulse
from services.runner.gateways.sandbox.port import SandboxDied, SharedTalk
from services.runner.usecases.granted_secrets import NOTHING_GRANTED, Granted
from services.runner.usecases.node_logs import AttemptLog
from services.runner.usecases.warm import Warm


@dataclass(slots=True, eq=False)
class Attempt:
    """One running attempt."""

    request: AttemptRequest
    warm: Warm | None = None
    talk: SharedTalk | None = None  # for a call that shares its interpreter
    alone: bool = False  # it died together with other calls, and is retried without any beside it
    container_id: UUID | None = None
    told: str = ""  # why it was told to end: "", "killed", "timeout" or "silent"
    pulse: Pulse | None = None  # once the call has begun
    written: AttemptLog | None = None
    asked_s: float = 0.0  # when the call was sent, by the monotonic clock
    watch: asyncio.Task[None] | None = None  # ends it when heartbeats are missing
    leave: Callable[[], None] | None = None  # leaves the queue for an interpreter; no task then
    looking: asyncio.Task[None] | None = None  # checks a large result of a call without a task
    grace_s: float = 0.0
    transfer_us: int = 0
    moved_bytes: int = 0  # of its inputs, outputs and files
    granted: Granted = NOTHING_GRANTED
    task: asyncio.Task[Any] | None = None
    begun: bool = False  # whether the task has run its first step, or is not needed
    has_slot: bool = False
    over: bool = False  # whether nothing of it runs any more
    before: Attempt | None = None  # an earlier one of the same row that still runs
    followers: list[Callable[[], None]] = field(default_factory=list)  # called when it is over


class Refused(Exception):  # noqa: N818 - it carries an error that is an outcome
    """An attempt that cannot begin, with the error of its outcome."""

    def __init__(self, error: AttemptError) -> None:
        super().__init__(error.message)
        self.error = error


def environment_error(message: str, *, retryable: bool = True) -> AttemptError:
    """Return an error caused by the machine, not by user code."""
    return AttemptError(type=ErrorType.ENVIRONMENT, message=message, retryable=retryable)


def told_error(attempt: Attempt) -> AttemptError:
    """Return the error of an attempt that was told to end."""
    if attempt.told == "timeout":
        return AttemptError(
            type=ErrorType.TIMEOUT,
            message=f"the attempt took longer than {attempt.request.timeout_s:g} s",
        )
    if attempt.told == "silent" and attempt.pulse is not None:
        return AttemptError(type=ErrorType.HEARTBEAT_TIMEOUT, message=attempt.pulse.silence())
    return AttemptError(type=ErrorType.CANCELLED, message="the attempt was stopped")


def died_error(attempt: Attempt, died: SandboxDied) -> AttemptError:
    """Return the error of an attempt whose sandbox died."""
    if attempt.told:
        return told_error(attempt)
    if died.oom:
        limit = attempt.warm.key.limits.memory_bytes if attempt.warm else 0
        return AttemptError(
            type=ErrorType.OOM, message=f"out of memory: the limit is {limit // MIB} MiB"
        )
    return AttemptError(type=ErrorType.EXITED, message=str(died))


CANCELLED: Final = Outcome(
    error=AttemptError(type=ErrorType.CANCELLED, message="the attempt was stopped")
)
BROKEN: Final = Outcome(
    error=AttemptError(
        type=ErrorType.ENVIRONMENT, message="internal error of the runner; see its log"
    ),
    recycle="broken",
)
