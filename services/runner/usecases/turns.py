"""Turns of short calls: as many work at once as there are processors."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

# Who works for longer than this had no short call after all, and has a turn no longer.
PATIENCE_S: Final = 0.005


class Turns:
    """Counts the interpreters that make a short call.

    More of them than processors make none of the calls sooner. Each that is woken finds its caches
    cold instead, so that calls which go round many interpreters cost twice as much.
    """

    def __init__(self, count: int, *, clock: Callable[[], float]) -> None:
        self._count = count
        self._clock = clock
        self._since: dict[Hashable, float] = {}  # the longest at work first

    @property
    def left(self) -> bool:
        """Whether there is one."""
        return len(self._since) < self._count

    def take(self, who: Hashable) -> None:
        """Take one, also where none is left."""
        self._since[who] = self._clock()

    def give_back(self, who: Hashable) -> None:
        """Give back what was taken; nothing where that is over."""
        self._since.pop(who, None)

    def end_overdue(self) -> None:
        """Take the turns of those that work for too long."""
        overdue_s = self._clock() - PATIENCE_S
        for who, since_s in list(self._since.items()):
            if since_s > overdue_s:
                return
            del self._since[who]
