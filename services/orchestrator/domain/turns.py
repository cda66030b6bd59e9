"""Turns: who was served when, so that nobody who floods a queue delays the others."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Final, Generic, TypeVar

_REMEMBERED_MAX: Final = 10_000
_STALE_MAX: Final = 16  # stale heap entries tolerated in addition to as many valid ones

Who = TypeVar("Who", bound=Hashable)
What = TypeVar("What")


class Turns:
    """When each was served last; only recent ones are remembered."""

    def __init__(self) -> None:
        self._last: OrderedDict[Hashable, int] = OrderedDict()
        self._turn = 0

    def serve(self, whom: Hashable) -> None:
        """Record that someone is served now."""
        self._turn += 1
        self._last[whom] = self._turn
        self._last.move_to_end(whom)
        if len(self._last) > _REMEMBERED_MAX:
            self._last.popitem(last=False)

    def last(self, whom: Hashable) -> int:
        """Return the turn in which someone was served last; 0 if unknown."""
        return self._last.get(whom, 0)

    def restore(self, whom: Hashable, turn: int) -> None:
        """Reset the turn of someone to an earlier value."""
        if turn:
            self._last[whom] = turn
        else:
            self._last.pop(whom, None)


class Line(Generic[Who, What]):
    """A queue ordered by turns: first is who was served longest ago.

    Turns are read again only when an entry reaches the front, so that serving someone in many
    queues costs none of them anything. After a turn was restored, `renew` has to be called.
    """

    def __init__(self, when: Callable[[Who], int]) -> None:
        self._when = when
        self._waiting: dict[Who, What] = {}
        self._entries: dict[Who, int] = {}  # the valid heap entry
        self._heap: list[tuple[int, int, Who]] = []
        self._entry = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[tuple[Who, What]]:
        return iter(self._waiting.items())

    def get(self, whom: Who) -> What | None:
        """Return the value of someone in the queue, if there."""
        return self._waiting.get(whom)

    def add(self, whom: Who, what: What) -> What:
        """Add someone who is not in the queue, after others with the same turn."""
        self._waiting[whom] = what
        self._entry += 1
        self._entries[whom] = self._entry
        heapq.heappush(self._heap, (self._when(whom), self._entry, whom))
        return what

    def renew(self, whom: Who) -> None:
        """Reorder someone whose turn was set to an earlier value."""
        if whom in self._waiting:
            heapq.heappush(self._heap, (self._when(whom), self._entries[whom], whom))
            self._compact()

    def remove(self, whom: Who) -> None:
        """Remove someone."""
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
        """Return the first and its value; the queue must not be empty."""
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
