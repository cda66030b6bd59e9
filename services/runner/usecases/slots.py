"""The runner's slots: a call takes one, and calls that meet in an interpreter take one together."""

from __future__ import annotations

import asyncio
from collections import deque
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
    """Counts who works. Who comes while nothing is free stands in one line."""

    def __init__(self, count: int, *, on_change: Callable[[], None]) -> None:
        self._free = count
        self._line: deque[Callable[[], bool]] = deque()
        self._on_change = on_change
        self._shared: dict[Hashable, _Shared] = {}

    def full(self) -> bool:
        """Whether who comes now has to wait."""
        return not self._free

    def enter(self, begin: Callable[[], bool]) -> None:
        """Have a call begun once it has a slot, at once where there is one.

        `begin` gives whether it takes the slot: nobody may want the call any more. Until then it
        costs no more than its place in the line.
        """
        if not self._free:
            self._line.append(begin)
        elif begin():
            self._free -= 1

    async def take(self) -> None:
        """Wait for a slot like any other call."""
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
        """Give a slot back: it goes to whoever has stood in the line for longest."""
        while self._line:
            if self._line.popleft()():
                return
        self._free += 1

    @asynccontextmanager
    async def seat(self, kind: Hashable, *, seats: int) -> AsyncIterator[None]:
        """Hold a seat in a slot that calls of one kind share; a slot is taken for the first."""
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
        """Count what may be granted beyond the slots: who sits with others, and as many again.

        So what is granted doubles while it is taken up, and nobody is promised seats for long that
        calls of that kind do not come for.
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
