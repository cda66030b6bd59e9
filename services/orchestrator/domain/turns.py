"""Turns: who was served last, so that whoever floods a queue holds nobody else up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

_REMEMBERED_MAX: Final = 10_000


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
