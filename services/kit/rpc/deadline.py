"""Every call ends: by the caller's deadline, and by the server's cap at the latest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any, Final

from services.kit.errors import DeadlineExceeded, Unavailable
from services.kit.rpc.call import Call, Handle, Method

# What a call to another service leaves for telling its own caller.
FORWARD_MARGIN_S: Final = 0.05

# How finely unary calls are ended: at most one step too late.
_STEPS_PER_S: Final = 100

_ENDS_AT: Final[ContextVar[float]] = ContextVar("qflow_deadline")


class Deadlines:
    """The calls of a server by when they must end.

    Unary calls are many, and nearly all are over long before: they share one timer with all that
    end in the same hundredth of a second. Streams are few and may last an hour: each has its own.
    """

    def __init__(self) -> None:
        self._steps: dict[int, set[asyncio.Task[Any]]] = {}

    def stage(self, inner: Handle, method: Method) -> Handle:
        """Refuse a call whose time is over, end it when it is, and tell whoever it calls."""
        ended = self._timed_stream if method.streams else self._timed_call

        async def handle(call: Call, request: Any) -> Any:
            limit_s = limit(method, call.context.time_remaining())
            if limit_s is None:
                return await inner(call, request)
            if limit_s <= 0:
                raise DeadlineExceeded(
                    "DEADLINE_PAST", "the deadline was over before the call began"
                )
            ends_at = time.monotonic() + limit_s
            token = _ENDS_AT.set(ends_at)
            try:
                return await ended(inner(call, request), limit_s, ends_at)
            finally:
                _ENDS_AT.reset(token)

        return handle

    async def _timed_call(
        self, answer: Coroutine[Any, Any, Any], limit_s: float, ends_at: float
    ) -> Any:
        task = asyncio.current_task()
        assert task is not None
        step = int(ends_at * _STEPS_PER_S) + 1
        tasks = self._steps.get(step)
        if tasks is None:
            tasks = self._steps[step] = set()
            asyncio.get_running_loop().call_later(limit_s + 1 / _STEPS_PER_S, self._end, step)
        tasks.add(task)
        try:
            return await answer
        except asyncio.CancelledError:
            # Only our own cancellation becomes an answer; the client's or the server's stands.
            if task not in tasks and task.uncancel() == 0:
                raise _exceeded(limit_s) from None
            raise
        finally:
            tasks.discard(task)

    def _end(self, step: int) -> None:
        tasks = self._steps.pop(step)
        while tasks:
            tasks.pop().cancel()

    async def _timed_stream(
        self, answer: Coroutine[Any, Any, Any], limit_s: float, _ends_at: float
    ) -> Any:
        scope = asyncio.timeout(limit_s)
        try:
            async with scope:
                return await answer
        except TimeoutError:
            if not scope.expired():
                raise
            raise _exceeded(limit_s) from None


def _exceeded(limit_s: float) -> DeadlineExceeded:
    return DeadlineExceeded("DEADLINE_EXCEEDED", f"the call took longer than {limit_s:g} s")


class OpenStreams:
    """The streams of a server that only end when told to; a server that stops tells them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = False

    def stage(self, inner: Handle) -> Handle:
        """End the stream with UNAVAILABLE when the server stops: the client resumes elsewhere."""

        async def handle(call: Call, request: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None
            if self._ended:
                raise _draining()
            self._tasks.add(task)
            try:
                return await inner(call, request)
            except asyncio.CancelledError:
                if task not in self._tasks and task.uncancel() == 0:
                    raise _draining() from None
                raise
            finally:
                self._tasks.discard(task)

        return handle

    def end(self) -> None:
        """End all that are open and any that still come."""
        self._ended = True
        while self._tasks:
            self._tasks.pop().cancel()


def _draining() -> Unavailable:
    return Unavailable("DRAINING", "the server is stopping; resume at once", retry_after_s=0.1)


def limit(method: Method, asked_s: float | None) -> float | None:
    """Return how long a call may take; None for streams between services, which are held open."""
    limits = method.limits
    if method.streams:
        if not method.public:
            return None
        return limits.stream_max_s if asked_s is None else min(asked_s, limits.stream_max_s)
    return limits.unary_default_s if asked_s is None else min(asked_s, limits.unary_max_s)


def remaining() -> float | None:
    """Return what is left of this call's time for calls it makes; None outside of any call."""
    ends_at = _ENDS_AT.get(None)
    return None if ends_at is None else max(0.0, ends_at - time.monotonic() - FORWARD_MARGIN_S)
