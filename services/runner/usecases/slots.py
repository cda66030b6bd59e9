"""The runner's slots: a call takes one, and calls that meet in an interpreter take one together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Shared:
    """The slots that calls of one kind share, each with so many seats."""

    seats: int
    wanted_by: int = 0
    slots: int = 0
    free: int = 0
    entering: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def seated(self) -> int:
        return self.slots * self.seats - self.free


class Slots:
    """Counts who works."""

    def __init__(self, count: int, *, on_change: Callable[[], None]) -> None:
        self.single = asyncio.Semaphore(count)  # for a call that shares with none
        self._on_change = on_change
        self._shared: dict[Hashable, _Shared] = {}

    @asynccontextmanager
    async def seat(self, kind: Hashable, *, seats: int) -> AsyncIterator[None]:
        """Hold a seat in a slot that calls of one kind share; a slot is taken for the first."""
        shared = self._shared.setdefault(kind, _Shared(seats))
        shared.wanted_by += 1
        try:
            async with shared.entering:
                if not shared.free:
                    await self.single.acquire()
                    shared.slots += 1
                    shared.free += seats
                shared.free -= 1
            self._on_change()
            try:
                yield
            finally:
                self._leave(shared)
        finally:
            shared.wanted_by -= 1
            if not shared.wanted_by:
                del self._shared[kind]

    def more(self) -> int:
        """Count what may be granted beyond the slots: who sits with others, and as many again.

        So what is granted doubles while it is taken up, and nobody is promised seats for long that
        calls of that kind do not come for.
        """
        return sum(
            max(0, each.seated - each.slots) + min(each.free, each.seated)
            for each in self._shared.values()
        )

    def _leave(self, shared: _Shared) -> None:
        shared.free += 1
        if shared.free >= shared.seats:
            shared.free -= shared.seats
            shared.slots -= 1
            self.single.release()
        self._on_change()
