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
from functools import partial
from typing import Any, Final, TypeVarTuple

_Ts = TypeVarTuple("_Ts")

# Some hundreds are usual; a world whose faults are healed and which goes on for ever is broken.
TURNS_MAX: Final = 15_000


class StuckError(AssertionError):
    """Nothing is left that could ever happen, or too much goes on: the world has no end."""


class _Soon(list[Any]):
    """A callback of the next turn, or of a moment: of a handle what the library asks for.

    Its own handles look up debug flags and stacks, for every call. A list of callback, arguments,
    context and moment is made without a frame; where it is called off the first of them is None.
    """

    __slots__ = ()

    def cancel(self) -> None:
        """Leave it where it is: it is thrown away when its time comes."""
        self[0] = None

    def cancelled(self) -> bool:
        return self[0] is None

    def when(self) -> float:
        due: float = self[3]
        return due


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
        # The library's own is a frame around this, of which a world has hundreds.
        self.create_future = partial(asyncio.Future, loop=self)  # type: ignore[method-assign]
        self.turns = 0
        self.ends = False  # all that is left is being put away
        self.faults: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.faults.append(context))

    def time(self) -> float:
        return self._now

    def create_task(
        self, coro: Any, *, name: object = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        """Make a task, which costs less where it has a name: the library would count."""
        return asyncio.Task(coro, loop=self, name=str(name or "a task"), context=context)

    def call_soon(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> Any:
        handle = _Soon((callback, args, copy_context() if context is None else context, 0.0))
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
        when = self._now + delay
        handle = _Soon((callback, args, copy_context() if context is None else context, when))
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> Any:
        handle = _Soon((callback, args, copy_context() if context is None else context, when))
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def _run_once(self) -> None:  # noqa: C901  # frames are what a turn costs: it has one
        """Take turns until told to stop: what is ready, and then whatever the next moment brings.

        The library's own loop comes here for each turn.
        """
        ready, timers, pop = self._ready, self._timers, heapq.heappop
        while True:
            self.turns += 1
            if self.turns == TURNS_MAX and not self.ends:
                raise StuckError(f"{TURNS_MAX} turns, and there is no end")
            while timers and timers[0][2][0] is None:
                pop(timers)
            if timers:
                if not ready and not self._stopping and timers[0][0] > self._now:
                    self._now = timers[0][0]
                now = self._now
                while timers and timers[0][0] <= now:
                    ready.append(pop(timers)[2])
            elif not ready and not self._stopping:
                raise StuckError("every task waits for ever")
            for _ in range(len(ready)):
                callback, args, context, _ = ready.popleft()
                if callback is None:
                    continue
                try:
                    context.run(callback, *args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:  # noqa: BLE001  # as the library's own loop takes it
                    told = {"message": f"in {callback}", "exception": error}
                    self.call_exception_handler(told)
            if self._stopping:
                return

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody else is there to wake it."""
