"""The timers of all runs."""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterator
from typing import Final, NamedTuple
from uuid import UUID

from services.orchestrator.domain.effects import Due

# Instead of slot numbers, for timers of a run itself.
DEADLINE: Final = -1
BEGIN: Final = -2
_COUNT_MIN: Final = 1024


class Timer(NamedTuple):
    """A timer of a slot, or of a run itself."""

    at: float
    number: int
    run_id: UUID
    slot: int
    what: Due


class Timers:
    """A heap of timers; those of ended runs are removed when they become many."""

    def __init__(self, runs: Container[UUID]) -> None:
        self._runs = runs
        self._heap: list[Timer] = []
        self._last = 0
        self._count_max = _COUNT_MIN
        # The valid queue timers by run and slot.
        self._queued: dict[UUID, dict[int, Timer]] = {}

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_at(self) -> float | None:
        """The time at which the next timer is due, if any."""
        return self._heap[0].at if self._heap else None

    def set(self, at: float, run_id: UUID, slot: int, what: Due = Due.NEXT) -> Timer:
        """Set a timer."""
        self._last += 1
        timer = Timer(at, self._last, run_id, slot, what)
        heapq.heappush(self._heap, timer)
        if len(self._heap) > self._count_max:
            self._heap = [each for each in self._heap if each.run_id in self._runs]
            heapq.heapify(self._heap)
            self._count_max = max(_COUNT_MIN, 2 * len(self._heap))
        return timer

    def due(self, now: float) -> Iterator[Timer]:
        """Yield the timers that are due, one by one; more may be set meanwhile."""
        while self._heap and self._heap[0].at <= now:
            yield heapq.heappop(self._heap)

    def forget(self, run_id: UUID) -> None:
        """Drop the queue timers of a run that has ended or is being reloaded."""
        self._queued.pop(run_id, None)

    # --- queue timeouts -------------------------------------------------------------------------

    def set_queued(self, at: float, run_id: UUID, slot: int) -> None:
        """Set the queue timer of a slot, replacing an earlier one."""
        timer = self.set(at, run_id, slot, Due.QUEUE)
        self._queued.setdefault(run_id, {})[slot] = timer

    def taken(self, run_id: UUID, slot: int) -> None:
        """Cancel the queue timer of a slot that a runner takes."""
        if self._queued:
            self._queued.get(run_id, {}).pop(slot, None)

    def stop_queued(self, run_id: UUID, now: float, *, slot: int | None = None) -> dict[int, float]:
        """Stop the queue timers of a paused run, or one slot; returns the seconds left by slot."""
        queued = self._queued.get(run_id, {})
        held = [*queued] if slot is None else [each for each in (slot,) if each in queued]
        return {each: max(0.0, queued.pop(each).at - now) for each in held}

    def still_queued(self, timer: Timer) -> bool:
        """Return whether a queue timer is still valid."""
        return self._queued.get(timer.run_id, {}).get(timer.slot) == timer
