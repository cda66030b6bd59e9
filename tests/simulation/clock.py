"""An event loop on which time is a number: it never waits, it turns the clock to what is next."""

from __future__ import annotations

import asyncio
from typing import Any, Final

# Some hundreds are usual; a world whose faults are healed and which goes on for ever is broken.
TURNS_MAX: Final = 15_000


class StuckError(AssertionError):
    """Nothing is left that could ever happen, or too much goes on: the world has no end."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs what production runs on its loop, in the same order for the same seed.

    There are no sockets, threads or signals here: whatever needs one fails at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self
        self.turns = 0
        self.ends = False  # all that is left is being put away
        self.faults: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.faults.append(context))

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        self.turns += 1
        if self.turns == TURNS_MAX and not self.ends:
            raise StuckError(f"{TURNS_MAX} turns, and there is no end")
        if timeout is None:
            raise StuckError("every task waits for ever")
        if timeout > 0:
            self._now += timeout
        return []

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody else is there to wake it."""
