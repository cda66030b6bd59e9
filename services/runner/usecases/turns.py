"""Limits how many interpreters run short calls at once to the number of processors."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

# A call that takes longer than this is not short, and loses its turn.
PATIENCE_S: Final = 0.005


class Turns:
    """Counts the interpreters that run a short call.

    More of them than processors finish no call sooner. Instead each one that wakes up finds its
    caches cold, so that calls spread over many interpreters cost twice as much.
    """

    def __init__(self, count: int, *, clock: Callable[[], float]) -> None:
        self._count = count
        self._clock = clock
        self._since: dict[Hashable, float] = {}  # by start, oldest first

    @property
    def left(self) -> bool:
        """Whether a turn is free."""
        return len(self._since) < self._count

    def take(self, who: Hashable) -> None:
        """Take a turn, even if none is free."""
        self._since[who] = self._clock()

    def give_back(self, who: Hashable) -> None:
        """Release a turn; does nothing if it has ended."""
        self._since.pop(who, None)

    def end_overdue(self) -> None:
        """End the turns of calls that take too long."""
        overdue_s = self._clock() - PATIENCE_S
        for who, since_s in list(self._since.items()):
            if since_s > overdue_s:
                return
            del self._since[who]
