"""An alarm: calls something once, at the earliest of the times that it was set to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """A timer that knows itself when it goes off.

    A handle of the loop may not: what is due within half a millisecond uvloop calls at its next
    turn, and the handle that it gives for that has no `when`.
    """

    __slots__ = ("_handle", "at")

    def __init__(self) -> None:
        """Of no time as yet."""
        self.at: float | None = None  # by the loop's clock; None where it is not set
        self._handle: asyncio.Handle | None = None

    def by(self, at: float, call: Callable[[], object]) -> None:
        """Call that at this time of the loop's clock, unless something is called before."""
        if self.at is not None and self.at <= at:
            return
        self.cancel()
        self.at = at
        self._handle = asyncio.get_running_loop().call_at(at, self._goes_off, call)

    def cancel(self) -> None:
        """Call nothing; safe to ask of one that is not set."""
        if self._handle is not None:
            self._handle.cancel()
        self.at = self._handle = None

    def _goes_off(self, call: Callable[[], object]) -> None:
        self.at = self._handle = None
        call()
