"""Deadlines: every call ends by its caller's deadline, or by the server's limit if sooner."""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar
from typing import Any, Final

from services.kit.errors import DeadlineExceeded, Unavailable
from services.kit.rpc.call import Call, Handle, Limits, Method

# Kept back from calls to other services, so that there is time to answer the own caller.
FORWARD_MARGIN_S: Final = 0.05

_ENDS_AT: Final[ContextVar[float]] = ContextVar("qflow_deadline")


def begin(limit_s: float) -> float:
    """Set the deadline of this call and return it by the monotonic clock; raises if it is past."""
    if limit_s <= 0:
        raise DeadlineExceeded("DEADLINE_PAST", "the deadline had passed before the call began")
    ends_at = time.monotonic() + limit_s
    _ENDS_AT.set(ends_at)  # in the context of the call's own task, and dropped with it
    return ends_at


def stage(inner: Handle, method: Method) -> Handle:
    """Limit how long a stream may last, and set the deadline for the calls that it makes."""

    async def handle(call: Call, request: Any) -> Any:
        limit_s = _stream_limit(method, call.context.time_remaining())
        if limit_s is None:
            return await inner(call, request)
        begin(limit_s)
        scope = asyncio.timeout(limit_s)
        try:
            async with scope:
                return await inner(call, request)
        except TimeoutError:
            if not scope.expired():
                raise
            raise exceeded(limit_s) from None

    return handle


def exceeded(limit_s: float) -> DeadlineExceeded:
    """Return the error for a call that took too long."""
    return DeadlineExceeded("DEADLINE_EXCEEDED", f"the call took longer than {limit_s:g} s")


class OpenStreams:
    """The open streams of a server, which only end when they are told to; it does when it stops."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = False

    def stage(self, inner: Handle) -> Handle:
        """End the stream with UNAVAILABLE when the server stops: the client resumes elsewhere."""

        async def handle(call: Call, request: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None
            if self._ended:
                raise draining()
            self._tasks.add(task)
            try:
                return await inner(call, request)
            except asyncio.CancelledError:
                if task not in self._tasks and task.uncancel() == 0:
                    raise draining() from None
                raise
            finally:
                self._tasks.discard(task)

        return handle

    def end(self) -> None:
        """End all open streams, and refuse new ones."""
        self._ended = True
        while self._tasks:
            self._tasks.pop().cancel()


def draining() -> Unavailable:
    """Return the error for calls that arrive at, or are open on, a server that stops."""
    return Unavailable("DRAINING", "the server is stopping; resume at once", retry_after_s=0.1)


def _stream_limit(method: Method, asked_s: float | None) -> float | None:
    """Return how long a stream may last; None for streams between services, which stay open."""
    if not method.public:
        return None
    longest_s = method.limits.stream_max_s
    return longest_s if asked_s is None else min(asked_s, longest_s)


def unary_limit(limits: Limits, asked_s: float | None) -> float:
    """Return how long a unary call may take."""
    return limits.unary_default_s if asked_s is None else min(asked_s, limits.unary_max_s)


def remaining() -> float | None:
    """Return the seconds left for calls that this call makes; None outside of any call."""
    ends_at = _ENDS_AT.get(None)
    return None if ends_at is None else max(0.0, ends_at - time.monotonic() - FORWARD_MARGIN_S)
