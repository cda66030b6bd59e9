"""Calls that only need an interpreter: started and answered in callbacks of the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from services.runner.domain.attempts import AttemptRequest, Input
from services.runner.domain.outcome import Outcome
from services.runner.gateways.sandbox.port import Reply, SandboxDied
from services.runner.usecases.answers import CHECK_INLINE_BYTES
from services.runner.usecases.attempt import BROKEN, Attempt, told_error
from services.runner.usecases.calls import (
    REPLY_BYTES_MORE,
    Calls,
    give_back,
    outcome_without_one,
)
from services.runner.usecases.interpreters import InterpreterPool
from services.runner.usecases.kinds import Waiter
from services.runner.usecases.warm import Need, Warm

log = structlog.get_logger()

# Receives the outcome of a call.
Over = Callable[[Outcome], None]


def inline_inputs(request: AttemptRequest) -> tuple[list[tuple[str, int, Sequence[str]]], bytes]:
    """Return the input entries of a call's frame, and its body; no input may be in a file."""
    entries: list[tuple[str, int, Sequence[str]]] = []
    parts: list[bytes] = []
    for name, value, conversion in request.inputs:
        assert isinstance(value, bytes), "what is in a file has to be waited for"
        entries.append((name, len(value), (conversion,) if conversion else ()))
        parts.append(value)
    return entries, parts[0] if len(parts) == 1 else b"".join(parts)


def is_inline(inputs: Sequence[Input]) -> bool:
    """Return whether all inputs are part of the assignment."""
    return all(isinstance(each.value, bytes) for each in inputs)


class PlainCall:
    """One such call.

    `over` is called once with the outcome, never before the call has begun; then, with its
    interpreter released, `left`. Messages to and from user code are sent before any bookkeeping:
    the agent, or whoever waits for the result, works meanwhile.
    """

    __slots__ = ("_attempt", "_calls", "_ended", "_left", "_over", "_pool", "_waiter")

    def __init__(
        self,
        calls: Calls,
        pool: InterpreterPool,
        attempt: Attempt,
        over: Over,
        left: Callable[[], None],
    ) -> None:
        self._calls = calls
        self._pool = pool
        self._attempt = attempt
        self._over = over
        self._left = left
        self._ended = False
        self._waiter: Waiter | None = None

    def wait(self, need: Need) -> None:
        """Queue for an interpreter."""
        self._waiter = self._pool.enter(need, self)
        self._attempt.leave = self.leave

    def leave(self) -> None:
        """Leave the queue; the call has not begun."""
        if self._waiter is not None:
            self._pool.leave(self._waiter)
            self._waits_no_longer()
            self._tell(Outcome(error=told_error(self._attempt)))

    # -- called by the pool

    def done(self) -> bool:
        """Return False: a call that wants no interpreter any more leaves the queue itself."""
        return False

    def set_result(self, warm: Warm) -> None:
        """Begin in an interpreter."""
        self._waits_no_longer()
        self.begin(warm)

    def set_exception(self, problem: Exception) -> None:
        """End the call: there will be no interpreter."""
        self._waits_no_longer()
        outcome = outcome_without_one(self._attempt, problem)
        asyncio.get_running_loop().call_soon(self._tell, outcome)

    def _waits_no_longer(self) -> None:
        self._waiter = self._attempt.leave = None

    # -- in an interpreter

    def begin(self, warm: Warm) -> None:
        """Send the call to the agent."""
        began_s = time.monotonic()
        attempt = self._attempt
        attempt.warm, attempt.container_id = warm, warm.container_id
        try:
            inputs, body = inline_inputs(attempt.request)
            attempt.moved_bytes = len(body)
            header = self._calls.header(attempt, warm, inputs)
            reply_bytes_max = warm.key.limits.output_bytes + REPLY_BYTES_MORE
            warm.sandbox.ask(header, body, self._answered, reply_bytes_max=reply_bytes_max)
            self._calls.open(attempt, warm.sandbox, began_s)  # replies are only delivered later
        except Exception:
            log.exception("call_not_begun", attempt_ref=str(attempt.request.attempt_ref))
            asyncio.get_running_loop().call_soon(self._end, BROKEN)

    def _answered(self, found: Reply | SandboxDied) -> None:
        attempt = self._attempt
        if self._ended:
            return
        if isinstance(found, Reply) and len(found.body) > CHECK_INLINE_BYTES:
            attempt.looking = asyncio.create_task(self._look_at(found))
            return
        try:
            outcome = self._calls.ended(attempt, found)
        except Exception:
            log.exception("call_not_ended", attempt_ref=str(attempt.request.attempt_ref))
            outcome = BROKEN
        self._end(outcome)

    async def _look_at(self, reply: Reply) -> None:
        """End with a large reply, which is checked in a thread."""
        attempt = self._attempt
        assert attempt.warm is not None, "it has one until it is given back"
        outcome = BROKEN
        try:
            warm = attempt.warm
            outcome = await self._calls.answered(attempt, warm, warm.sandbox, reply)
        except Exception:
            log.exception("call_not_ended", attempt_ref=str(attempt.request.attempt_ref))
        finally:
            self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        if self._ended:
            return  # already ended with an error; this is only the end of its sandbox
        self._ended = True
        self._calls.close(self._attempt)
        try:
            self._over(outcome)
        finally:
            give_back(self._pool, self._attempt, outcome)
            self._left()

    def _tell(self, outcome: Outcome) -> None:
        """End a call that had no interpreter."""
        self._over(outcome)
        self._left()
