"""The runner's slots: one per call; calls that share an interpreter share slots."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Shared:
    """The slots shared by calls of one kind, each with a number of seats."""

    seats: int
    wanted_by: int = 0
    slots: int = 0
    free: int = 0
    entering: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def seated(self) -> int:
        return self.slots * self.seats - self.free


class Slots:
    """Counts busy slots; calls that find none free wait in one queue."""

    def __init__(self, count: int, *, on_change: Callable[[], None]) -> None:
        self._free = count
        self._line: deque[Callable[[], bool]] = deque()
        self._on_change = on_change
        self._shared: dict[Hashable, _Shared] = {}

    def full(self) -> bool:
        """Return whether a new call would have to wait."""
        return not self._free

    def enter(self, begin: Callable[[], bool]) -> None:
        """Call `begin` once there is a slot, immediately if one is free.

        `begin` returns whether it takes the slot: the call may have been cancelled meanwhile.
        Waiting costs no more than an entry in the queue.
        """
        if not self._free:
            self._line.append(begin)
        elif begin():
            self._free -= 1

    async def take(self) -> None:
        """Wait for a slot."""
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> bool:
            if given.done():
                return False
            given.set_result(None)
            return True

        self.enter(begin)
        try:
            await given
        except asyncio.CancelledError:
            if not given.cancelled():
                self.leave()
            raise

    def leave(self) -> None:
        """Release a slot: it goes to the first in the queue that takes it."""
        while self._line:
            if self._line.popleft()():
                return
        self._free += 1

    @asynccontextmanager
    async def seat(self, kind: Hashable, *, seats: int) -> AsyncIterator[None]:
        """Hold a seat in a slot shared by calls of one kind; the first one takes a slot."""
        shared = self._shared.setdefault(kind, _Shared(seats))
        shared.wanted_by += 1
        try:
            async with shared.entering:
                if not shared.free:
                    await self.take()
                    shared.slots += 1
                    shared.free += seats
                shared.free -= 1
            self._on_change()
            try:
                yield
            finally:
                self._leave_seat(shared)
        finally:
            shared.wanted_by -= 1
            if not shared.wanted_by:
                del self._shared[kind]

    def more(self) -> int:
        """Return how many calls may be granted beyond the slots: seated ones, and as many again.

        So the grant doubles while it is used, and shrinks when no more calls of that kind come.
        """
        return sum(
            max(0, each.seated - each.slots) + min(each.free, each.seated)
            for each in self._shared.values()
        )

    def _leave_seat(self, shared: _Shared) -> None:
        shared.free += 1
        if shared.free >= shared.seats:
            shared.free -= shared.seats
            shared.slots -= 1
            self.leave()
        self._on_change()
