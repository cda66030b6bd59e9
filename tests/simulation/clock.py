"""An event loop on which time is a number: it never waits, it turns the clock to what is next.

A third of what a world costs was the loop's own bookkeeping: handles that remember where they were
made, timers compared by a method, a selector that is polled. There is none of that here.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Final, TypeVarTuple

_Ts = TypeVarTuple("_Ts")

# Some hundreds are usual; a world whose faults are healed and which goes on for ever is broken.
TURNS_MAX: Final = 15_000


class StuckError(AssertionError):
    """Nothing is left that could ever happen, or too much goes on: the world has no end."""


class _Soon(asyncio.Handle):
    """A callback of the next turn."""

    __slots__ = ()

    def __init__(  # asyncio's own looks up debug flags and stacks, for every call
        self, callback: Callable[..., Any], args: Any, loop: Any, context: Context | None
    ) -> None:
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = context or copy_context()
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class _Later(asyncio.TimerHandle):
    """A callback of a moment."""

    __slots__ = ()

    def __init__(
        self,
        when: float,
        callback: Callable[..., Any],
        args: Any,
        loop: Any,
        context: Context | None,
    ) -> None:
        self._when = when
        self._scheduled = True
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = context or copy_context()
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs what production runs on its loop, in the same order for the same seed.

    There are no sockets, threads or signals here: whatever needs one fails at once.
    """

    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, _Later]] = []
        self._timer_count = 0
        self.turns = 0
        self.ends = False  # all that is left is being put away
        self.faults: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.faults.append(context))

    def time(self) -> float:
        return self._now

    def call_soon(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        handle = _Soon(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = _Later(when, callback, args, self, context)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave it where it is: it is thrown away when its time comes."""

    def _run_once(self) -> None:
        """Take one turn: what is ready now, and before that whatever the next moment brings."""
        self.turns += 1
        if self.turns == TURNS_MAX and not self.ends:
            raise StuckError(f"{TURNS_MAX} turns, and there is no end")
        ready, timers = self._ready, self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not ready and not self._stopping:
            if not timers:
                raise StuckError("every task waits for ever")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            handle = heapq.heappop(timers)[2]
            if not handle._cancelled:
                ready.append(handle)
        for _ in range(len(ready)):
            soon = ready.popleft()
            if not soon._cancelled:
                soon._run()

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody else is there to wake it."""
