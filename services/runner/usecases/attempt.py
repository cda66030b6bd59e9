"""An attempt under way: how it was told to end, and the errors that this makes of it."""

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
    """One attempt under way, and how it was told to end."""

    request: AttemptRequest
    warm: Warm | None = None
    talk: SharedTalk | None = None  # of a call that is not the only one in its interpreter
    alone: bool = False  # it ended with others once, and is made again with none beside it
    container_id: UUID | None = None
    told: str = ""  # "", "killed", "timeout" or "silent"
    pulse: Pulse | None = None  # of the call, once it has begun
    written: AttemptLog | None = None
    asked_s: float = 0.0  # when the call was begun, by the monotonic clock
    watch: asyncio.Task[None] | None = None  # while silence would end it
    leave: Callable[[], None] | None = None  # where it stands in line for an interpreter, no task
    looking: asyncio.Task[None] | None = None  # at a large answer, where there is no other task
    grace_s: float = 0.0
    transfer_us: int = 0
    moved_bytes: int = 0  # of the values and files that it was given and gave
    granted: Granted = NOTHING_GRANTED
    task: asyncio.Task[Any] | None = None
    begun: bool = False  # whether the task has taken its first step, or none is needed
    has_slot: bool = False
    over: bool = False  # whether nothing of it runs any more
    before: Attempt | None = None  # of the same row and under way still, when this one came
    followers: list[Callable[[], None]] = field(default_factory=list)  # that wait until it is over


class Refused(Exception):  # noqa: N818 - it carries an error that is an outcome
    """An attempt that cannot be begun, and the error that this is."""

    def __init__(self, error: AttemptError) -> None:
        super().__init__(error.message)
        self.error = error


def environment_error(message: str, *, retryable: bool = True) -> AttemptError:
    """Make the error of what is about the machine, not the code."""
    return AttemptError(type=ErrorType.ENVIRONMENT, message=message, retryable=retryable)


def told_error(attempt: Attempt) -> AttemptError:
    """Make the error of an attempt that was told to end."""
    if attempt.told == "timeout":
        return AttemptError(
            type=ErrorType.TIMEOUT,
            message=f"the attempt took longer than {attempt.request.timeout_s:g} s",
        )
    if attempt.told == "silent" and attempt.pulse is not None:
        return AttemptError(type=ErrorType.HEARTBEAT_TIMEOUT, message=attempt.pulse.silence())
    return AttemptError(type=ErrorType.CANCELLED, message="the attempt was stopped")


def died_error(attempt: Attempt, died: SandboxDied) -> AttemptError:
    """Make the error of an attempt whose sandbox ended under it."""
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
        type=ErrorType.ENVIRONMENT, message="the runner could not make the attempt; see its log"
    ),
    recycle="broken",
)
