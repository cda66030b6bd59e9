"""A timer that calls a function once, at the earliest of the times that it was set to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """A timer that knows its own due time.

    A handle of the loop may not: uvloop runs what is due within half a millisecond at its next
    iteration, and returns a handle without `when` for it.
    """

    __slots__ = ("_handle", "at")

    def __init__(self) -> None:
        """Start unset."""
        self.at: float | None = None  # by the loop's clock; None while unset
        self._handle: asyncio.Handle | None = None

    def by(self, at: float, call: Callable[[], object]) -> None:
        """Schedule `call` at this time of the loop's clock, unless it is set to an earlier one."""
        if self.at is not None and self.at <= at:
            return
        self.cancel()
        self.at = at
        self._handle = asyncio.get_running_loop().call_at(at, self._goes_off, call)

    def cancel(self) -> None:
        """Unset the timer; does nothing if it is not set."""
        if self._handle is not None:
            self._handle.cancel()
        self.at = self._handle = None

    def _goes_off(self, call: Callable[[], object]) -> None:
        self.at = self._handle = None
        call()
