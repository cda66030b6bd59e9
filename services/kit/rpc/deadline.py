"""Every call ends: by the caller's deadline, and by the server's cap at the latest."""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar
from typing import Any, Final

from services.kit.errors import DeadlineExceeded, Unavailable
from services.kit.rpc.call import Call, Handle, Limits, Method

# What a call to another service leaves for telling its own caller.
FORWARD_MARGIN_S: Final = 0.05

_ENDS_AT: Final[ContextVar[float]] = ContextVar("qflow_deadline")


def begin(limit_s: float) -> float:
    """Note when this call must end, for whoever it calls; refuse one whose time is over."""
    if limit_s <= 0:
        raise DeadlineExceeded("DEADLINE_PAST", "the deadline was over before the call began")
    ends_at = time.monotonic() + limit_s
    _ENDS_AT.set(ends_at)  # in the context of its own task, with which it goes
    return ends_at


def stage(inner: Handle, method: Method) -> Handle:
    """Refuse a stream whose time is over, end it when it is, and tell whoever it calls."""

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
    """Make the answer to a call that took too long."""
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
        """End all that are open and any that still come."""
        self._ended = True
        while self._tasks:
            self._tasks.pop().cancel()


def draining() -> Unavailable:
    """Make the answer to a call that comes to, or is open on, a server that stops."""
    return Unavailable("DRAINING", "the server is stopping; resume at once", retry_after_s=0.1)


def _stream_limit(method: Method, asked_s: float | None) -> float | None:
    """Return how long a stream may last; None for those between services, which are held open."""
    if not method.public:
        return None
    longest_s = method.limits.stream_max_s
    return longest_s if asked_s is None else min(asked_s, longest_s)


def unary_limit(limits: Limits, asked_s: float | None) -> float:
    """Return how long a unary call may take."""
    return limits.unary_default_s if asked_s is None else min(asked_s, limits.unary_max_s)


def remaining() -> float | None:
    """Return what is left of this call's time for calls it makes; None outside of any call."""
    ends_at = _ENDS_AT.get(None)
    return None if ends_at is None else max(0.0, ends_at - time.monotonic() - FORWARD_MARGIN_S)
