"""Turns: who was served last, so that nobody who floods a queue holds up the others."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Final, Generic, TypeVar

_REMEMBERED_MAX: Final = 10_000
_STALE_MAX: Final = 16  # entries of a line that stand for nobody, beside as many as for somebody

Who = TypeVar("Who", bound=Hashable)
What = TypeVar("What")


class Turns:
    """When each was served last, of those that were served lately."""

    def __init__(self) -> None:
        self._last: OrderedDict[Hashable, int] = OrderedDict()
        self._turn = 0

    def serve(self, whom: Hashable) -> None:
        """Know that someone is served now: it is everybody else's turn."""
        self._turn += 1
        self._last[whom] = self._turn
        self._last.move_to_end(whom)
        if len(self._last) > _REMEMBERED_MAX:
            self._last.popitem(last=False)

    def last(self, whom: Hashable) -> int:
        """Give a number that is the lower the longer ago someone was served."""
        return self._last.get(whom, 0)

    def restore(self, whom: Hashable, turn: int) -> None:
        """Take back that someone was served: the last time was that one."""
        if turn:
            self._last[whom] = turn
        else:
            self._last.pop(whom, None)


class Line(Generic[Who, What]):
    """Those who wait, each with what it waits with: first is whose turn was longest ago.

    When that was is asked for again as somebody comes to be first, so whoever is served may stand
    in many lines and costs none of them anything. A turn that is taken back is to be renewed.
    """

    def __init__(self, when: Callable[[Who], int]) -> None:
        self._when = when
        self._waiting: dict[Who, What] = {}
        self._entries: dict[Who, int] = {}  # which of its entries counts
        self._heap: list[tuple[int, int, Who]] = []
        self._entry = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[tuple[Who, What]]:
        return iter(self._waiting.items())

    def get(self, whom: Who) -> What | None:
        """Give what somebody waits with."""
        return self._waiting.get(whom)

    def add(self, whom: Who, what: What) -> What:
        """Let somebody wait who did not, after those whose turn was as long ago."""
        self._waiting[whom] = what
        self._entry += 1
        self._entries[whom] = self._entry
        heapq.heappush(self._heap, (self._when(whom), self._entry, whom))
        return what

    def renew(self, whom: Who) -> None:
        """Look again at when somebody's turn was: it is longer ago than was thought."""
        if whom in self._waiting:
            heapq.heappush(self._heap, (self._when(whom), self._entries[whom], whom))
            self._compact()

    def remove(self, whom: Who) -> None:
        """Let somebody wait no more."""
        del self._waiting[whom], self._entries[whom]
        self._compact()

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._waiting) + _STALE_MAX:
            valid = {
                (entry, who) for _, entry, who in self._heap if self._entries.get(who) == entry
            }
            self._heap = [(self._when(who), entry, who) for entry, who in valid]
            heapq.heapify(self._heap)

    def first(self) -> tuple[Who, What]:
        """Give whose turn it is; somebody must wait."""
        if len(self._waiting) == 1:
            return next(iter(self._waiting.items()))
        while True:
            when, entry, whom = self._heap[0]
            if self._entries.get(whom) != entry:
                heapq.heappop(self._heap)
            elif (now := self._when(whom)) != when:
                heapq.heapreplace(self._heap, (now, entry, whom))
            else:
                return whom, self._waiting[whom]
