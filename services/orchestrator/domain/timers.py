"""The timers of all runs: what has to be looked at again, and when."""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterator
from typing import Final, NamedTuple
from uuid import UUID

from services.orchestrator.domain.effects import Due

# Timers of a run itself, where those of its nodes have a place.
DEADLINE: Final = -1
BEGIN: Final = -2
_COUNT_MIN: Final = 1024


class Timer(NamedTuple):
    """What is due: a slot of a run, or the run itself."""

    at: float
    number: int
    run_id: UUID
    slot: int
    what: Due


class Timers:
    """A heap of them; those of runs that are over are thrown out when they become many."""

    def __init__(self, runs: Container[UUID]) -> None:
        self._runs = runs
        self._heap: list[Timer] = []
        self._last = 0
        self._count_max = _COUNT_MIN
        # Of slots that wait for a runner no longer than they may: which timer counts, by run.
        self._queued: dict[UUID, dict[int, Timer]] = {}

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_at(self) -> float | None:
        """When `due` has something to give next."""
        return self._heap[0].at if self._heap else None

    def set(self, at: float, run_id: UUID, slot: int, what: Due = Due.NEXT) -> Timer:
        """Have a slot looked at then."""
        self._last += 1
        timer = Timer(at, self._last, run_id, slot, what)
        heapq.heappush(self._heap, timer)
        if len(self._heap) > self._count_max:
            self._heap = [each for each in self._heap if each.run_id in self._runs]
            heapq.heapify(self._heap)
            self._count_max = max(_COUNT_MIN, 2 * len(self._heap))
        return timer

    def due(self, now: float) -> Iterator[Timer]:
        """Give those whose time has come, one after the other; more may be set meanwhile."""
        while self._heap and self._heap[0].at <= now:
            yield heapq.heappop(self._heap)

    def forget(self, run_id: UUID) -> None:
        """Know that nothing of a run waits any more: it is over, or is to be loaded again."""
        self._queued.pop(run_id, None)

    # --- how long a slot may wait for a runner --------------------------------------------------

    def set_queued(self, at: float, run_id: UUID, slot: int) -> None:
        """Have a slot looked at then if no runner has taken it; an earlier word counts no more."""
        timer = self.set(at, run_id, slot, Due.QUEUE)
        self._queued.setdefault(run_id, {})[slot] = timer

    def taken(self, run_id: UUID, slot: int) -> None:
        """Know that a runner takes a slot."""
        if self._queued:
            self._queued.get(run_id, {}).pop(slot, None)

    def stop_queued(self, run_id: UUID, now: float, *, slot: int | None = None) -> dict[int, float]:
        """Know that slots of a run are held up, all or one; gives how long each may still wait."""
        queued = self._queued.get(run_id, {})
        held = [*queued] if slot is None else [each for each in (slot,) if each in queued]
        return {each: max(0.0, queued.pop(each).at - now) for each in held}

    def still_queued(self, timer: Timer) -> bool:
        """Whether what a timer of this kind is about waits still."""
        return self._queued.get(timer.run_id, {}).get(timer.slot) == timer
