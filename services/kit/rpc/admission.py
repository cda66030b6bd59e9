"""Limits the concurrent calls of a server; anonymous calls never take room from the others."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc

from services.kit.errors import DeadlineExceeded, ResourceExhausted
from services.kit.rpc.call import Call, Handle, Method, Received
from services.kit.rpc.validate import VANISHED_S

# Anonymous methods get a tenth: only probes and tools call them.
_ANONYMOUS_SHARE: Final = 10
_RETRY_AFTER_S: Final = 1.0


class Admission:
    """The rooms of a server: one for authenticated calls, two for anonymous calls and streams."""

    def __init__(self, concurrent_max: int) -> None:
        anonymous_max = max(1, concurrent_max // _ANONYMOUS_SHARE)
        self._named = Room(concurrent_max)
        self._anonymous_calls = Room(anonymous_max)
        self._anonymous_streams = Room(anonymous_max)

    def room(self, method: Method) -> Room:
        """Return the room that calls of a method share."""
        if not method.anonymous:
            return self._named
        return self._anonymous_streams if method.streams else self._anonymous_calls

    def stage(self, inner: Handle, method: Method) -> Handle:
        """Receive the message of a stream that has just one, and admit it while there is room."""
        room = self.room(method)
        if method.requests_stream:
            return room.stage(inner)
        return _received(room.stage(inner), room, method)


class Room:
    """Counts admitted calls, and tracks those whose message has not arrived yet."""

    def __init__(self, calls_max: int) -> None:
        self._calls_max = calls_max
        self._calls = 0
        self._waiting: dict[asyncio.Task[Any], None] = {}

    def stage(self, inner: Handle) -> Handle:
        """Admit a stream while there is room."""

        async def handle(call: Call, request: Any) -> Any:
            self.enter()
            try:
                return await inner(call, request)
            finally:
                self.leave()

        return handle

    def enter(self) -> None:
        """Admit a call, which must `leave` later; raises `ResourceExhausted` when full."""
        if self._calls >= self._calls_max:
            raise _full()
        self._calls += 1

    def leave(self) -> None:
        """Release the place of a call."""
        self._calls -= 1

    async def receive(self, call: Call) -> Any:
        """Receive the message of a call; if too many calls wait for theirs, the oldest is refused.

        An honest client sends its message with the headers or right after: it is never the oldest
        for long.
        """
        waiting, task = self._waiting, call.task
        if len(waiting) >= self._calls_max:
            oldest = next(iter(waiting))
            del waiting[oldest]
            oldest.cancel()
        waiting[task] = None
        try:
            return await call.context.read()
        except asyncio.CancelledError:
            # Only a cancellation by this room becomes an error; others propagate.
            if task not in waiting and task.uncancel() == 0:
                raise _full() from None
            raise
        finally:
            waiting.pop(task, None)


def _received(inner: Handle, room: Room, method: Method) -> Handle:
    limit_s = method.limits.unary_default_s  # no other limit applies: a stream may last an hour

    async def handle(call: Call, _: Any) -> Any:
        scope = asyncio.timeout(limit_s)
        try:
            async with scope:
                request = await room.receive(call)
        except TimeoutError:
            if not scope.expired():
                raise
            raise DeadlineExceeded(
                "REQUEST_IDLE", f"the call began, but no message arrived for {limit_s:g} s"
            ) from None
        if request is grpc.aio.EOF:
            await asyncio.sleep(VANISHED_S)
            request = Received(None, has_nul=False)
        return await inner(call, request)

    return handle


def _full() -> ResourceExhausted:
    return ResourceExhausted(
        "TOO_MANY_CALLS",
        "the server has too many open calls; try again shortly",
        retry_after_s=_RETRY_AFTER_S,
    )
