"""Deadlines of calls: one timer of the event loop for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

# How finely calls are told: at most one step too late.
_STEPS_PER_S: Final = 100


class Deadlines(Generic[T]):
    """Tells of calls that take too long.

    Nearly all end long before, so the timer is not touched when one does: it wakes at what was the
    earliest deadline, and looks for the next.
    """

    def __init__(self, on_due: Callable[[T], object]) -> None:
        self._on_due = on_due
        self._due_s: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_s = 0.0
        self.over = False  # no call has time any more

    def begin(self, call: T, due_s: float) -> dict[T, float]:
        """Tell of a call when the monotonic clock shows so much.

        Gives those that are timed: it must leave them when it ends earlier, and has been told of
        when it is not among them.
        """
        timed = self._due_s
        timed[call] = due_s
        if self._timer is None or due_s < self._wakes_s:
            self._set(due_s)
        return timed

    def end(self, call: T) -> None:
        """Tell of a call no more."""
        self._due_s.pop(call, None)

    def end_all(self) -> None:
        """Tell of every call now, whatever time it has left."""
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
        # With all that are due within the same step, or many that are late would each have a look.
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
