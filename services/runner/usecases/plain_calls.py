"""Calls that wait for nothing but an interpreter: begun and answered in the loop's callbacks."""

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

# Takes what became of a call.
Over = Callable[[Outcome], None]


def inline_inputs(request: AttemptRequest) -> tuple[list[tuple[str, int, Sequence[str]]], bytes]:
    """Give what a call's frame says of its inputs, and their texts; none of them is in a file."""
    entries: list[tuple[str, int, Sequence[str]]] = []
    parts: list[bytes] = []
    for name, value, conversion in request.inputs:
        assert isinstance(value, bytes), "what is in a file has to be waited for"
        entries.append((name, len(value), (conversion,) if conversion else ()))
        parts.append(value)
    return entries, parts[0] if len(parts) == 1 else b"".join(parts)


def is_inline(inputs: Sequence[Input]) -> bool:
    """Whether all inputs came with the assignment."""
    return all(isinstance(each.value, bytes) for each in inputs)


class PlainCall:
    """One such call.

    `over` is told once what became of it, and never before it is begun; then, with its interpreter
    given back, `left` is. What is on its way to or from user code goes before what is to be noted
    of it: the agent works meanwhile, and so does whoever waits for the result.
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
        """Stand in the line for an interpreter."""
        self._waiter = self._pool.enter(need, self)
        self._attempt.leave = self.leave

    def leave(self) -> None:
        """Leave the line: nothing has begun."""
        if self._waiter is not None:
            self._pool.leave(self._waiter)
            self._waits_no_longer()
            self._tell(Outcome(error=told_error(self._attempt)))

    # -- what the pool tells of the line

    def done(self) -> bool:
        """Whether it wants no interpreter any more: then it stands in no line."""
        return False

    def set_result(self, warm: Warm) -> None:
        """Begin in an interpreter."""
        self._waits_no_longer()
        self.begin(warm)

    def set_exception(self, problem: Exception) -> None:
        """Learn that there will be none."""
        self._waits_no_longer()
        outcome = outcome_without_one(self._attempt, problem)
        asyncio.get_running_loop().call_soon(self._tell, outcome)

    def _waits_no_longer(self) -> None:
        self._waiter = self._attempt.leave = None

    # -- in an interpreter

    def begin(self, warm: Warm) -> None:
        """Ask the agent."""
        began_s = time.monotonic()
        attempt = self._attempt
        attempt.warm, attempt.container_id = warm, warm.container_id
        try:
            inputs, body = inline_inputs(attempt.request)
            attempt.moved_bytes = len(body)
            header = self._calls.header(attempt, warm, inputs)
            reply_bytes_max = warm.key.limits.output_bytes + REPLY_BYTES_MORE
            warm.sandbox.ask(header, body, self._answered, reply_bytes_max=reply_bytes_max)
            self._calls.open(attempt, warm.sandbox, began_s)  # nothing is heard before this returns
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
        """End with an answer that is looked at beside the loop."""
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
            return  # it was broken off, and its sandbox says so, too
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
