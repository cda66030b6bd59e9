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


def _nothing() -> None:
    """Stand where a callback was that is called off."""


class _Soon:
    """A callback of the next turn, or of a moment: of a handle what the library asks for.

    Its own handles look up debug flags and stacks, for every call.
    """

    __slots__ = ("args", "callback", "context", "due", "off")

    def __init__(
        self, callback: Callable[..., Any], args: Any, context: Context | None, due: float
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context or copy_context()
        self.due = due
        self.off = False

    def cancel(self) -> None:
        """Leave it where it is: it is thrown away when its time comes."""
        self.off = True
        self.args = self.context = None  # type: ignore[assignment]
        self.callback = _nothing

    def cancelled(self) -> bool:
        return self.off

    def when(self) -> float:
        return self.due


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs what production runs on its loop, in the same order for the same seed.

    There are no sockets, threads or signals here: whatever needs one fails at once.
    """

    _ready: deque[Any]
    _stopping: bool
    # Asked with every future and task that is made: the answer is False, at the price of no frame.
    get_debug = staticmethod(bool)

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers: list[tuple[float, int, _Soon]] = []
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
    ) -> Any:
        handle = _Soon(callback, args, context, 0.0)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # there is one thread

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> Any:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> Any:
        handle = _Soon(callback, args, context, when)
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def _run_once(self) -> None:
        """Take one turn: what is ready now, and before that whatever the next moment brings."""
        self.turns += 1
        if self.turns == TURNS_MAX and not self.ends:
            raise StuckError(f"{TURNS_MAX} turns, and there is no end")
        ready = self._ready
        self._turn_the_clock(ready)
        for _ in range(len(ready)):
            soon = ready.popleft()
            if soon.off:
                continue
            try:
                soon.context.run(soon.callback, *soon.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001  # as the library's own loop takes it
                told = {"message": f"in {soon.callback}", "exception": error}
                self.call_exception_handler(told)

    def _turn_the_clock(self, ready: deque[Any]) -> None:
        timers = self._timers
        while timers and timers[0][2].off:
            heapq.heappop(timers)
        if not ready and not self._stopping:
            if not timers:
                raise StuckError("every task waits for ever")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            soon = heapq.heappop(timers)[2]
            if not soon.off:
                ready.append(soon)

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody else is there to wake it."""
