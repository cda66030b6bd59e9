"""Deadlines of calls, with one timer of the event loop for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

# Resolution: a deadline is noticed at most one step late.
_STEPS_PER_S: Final = 100


class Deadlines(Generic[T]):
    """Calls `on_due` for calls that take too long.

    Nearly all calls end long before, so the timer is not touched when one ends: it wakes at what
    was the earliest deadline, and is set to the next.
    """

    def __init__(self, on_due: Callable[[T], object]) -> None:
        self._on_due = on_due
        self._due_s: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_s = 0.0
        self.over = False  # set once all calls were ended by `end_all`

    def begin(self, call: T, due_s: float) -> dict[T, float]:
        """Time a call until `due_s` of the monotonic clock.

        Returns the dict of timed calls: a call that ends earlier must remove itself; if it is
        missing there, `on_due` was called for it.
        """
        timed = self._due_s
        timed[call] = due_s
        if self._timer is None or due_s < self._wakes_s:
            self._set(due_s)
        return timed

    def end(self, call: T) -> None:
        """Stop timing a call."""
        self._due_s.pop(call, None)

    def end_all(self) -> None:
        """Call `on_due` for every call now, whatever time it has left."""
        self.over = True
        due = [*self._due_s]
        self._due_s.clear()
        for call in due:
            self._on_due(call)

    def _set(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_s = due_s
        left_s = max(0.0, due_s - time.monotonic())
        # One step later, so that deadlines close together share one wake-up.
        self._timer = asyncio.get_running_loop().call_later(left_s + 1 / _STEPS_PER_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = time.monotonic()
        due = [call for call, due_s in self._due_s.items() if due_s <= now_s]
        due.sort(key=self._due_s.__getitem__)
        for call in due:
            del self._due_s[call]
        if self._due_s:
            self._set(min(self._due_s.values()))
        for call in due:
            self._on_due(call)
