"""A call that is put off to a moment which may be brought forward."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Alarm:
    """One call, at the earliest of the moments that it was set to since it was made last.

    It knows the moment by itself: uvloop gives a handle without one for what is due at once.
    """

    __slots__ = ("_handle", "at")

    def __init__(self) -> None:
        self.at: float | None = None  # by the clock of the loop; None where nothing is due
        self._handle: asyncio.Handle | None = None

    def set(self, at: float, call: Callable[[], None]) -> None:
        """Make the call at a moment, unless one is to be made before."""
        if self.at is not None and self.at <= at:
            return
        self.stop()
        self.at = at
        self._handle = asyncio.get_running_loop().call_at(at, self._due, call)

    def stop(self) -> None:
        """Make no call."""
        if self._handle is not None:
            self._handle.cancel()
        self.at = self._handle = None

    def _due(self, call: Callable[[], None]) -> None:
        self.at = self._handle = None
        call()
