"""Who may be given work: runners, their credits, and the places that wait for one."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

from services.orchestrator.domain.needs import Offer, Wanted, takes


@dataclass(slots=True, kw_only=True)
class Runner:
    """A runner process as its stream shows it."""

    incarnation: UUID
    offer: Offer
    connected: bool = True
    credits: int = 0  # the window it granted
    grant_epoch: int = -1
    in_flight: dict[UUID, int] = field(default_factory=dict)  # attempts by node row, with token
    exclusive: bool = False  # has an attempt that must run alone

    @property
    def pythons(self) -> frozenset[str]:
        """The Pythons it has."""
        return self.offer.pythons

    @property
    def free(self) -> int:
        """How many more attempts it takes now."""
        return self.credits - len(self.in_flight) if self.connected else 0


class ReadyQueue:
    """Places that wait for a credit, by what they need of a runner.

    Runs of the highest priority come first, and take turns among themselves.
    """

    def __init__(self) -> None:
        self._by_need: dict[Wanted, dict[int, OrderedDict[UUID, deque[int]]]] = {}
        self._alone: OrderedDict[tuple[UUID, int], Wanted] = OrderedDict()
        self.size = 0

    def push(
        self, run_id: UUID, place: int, wanted: Wanted, *, priority: int = 0, alone: bool = False
    ) -> None:
        """Add a place; those that must run alone go before all others."""
        if alone:
            self._alone[run_id, place] = wanted
        else:
            levels = self._by_need.setdefault(wanted, {})
            levels.setdefault(priority, OrderedDict()).setdefault(run_id, deque()).append(place)
        self.size += 1

    def take(self, offer: Offer) -> tuple[UUID, int] | None:
        """Take the next place that a runner can run; its run goes to the end."""
        able = [
            (max(levels), wanted)
            for wanted, levels in self._by_need.items()
            if takes(offer, wanted)
        ]
        if not able:
            return None
        priority, wanted = max(able, key=lambda each: each[0])  # of equal ones the first
        levels = self._by_need[wanted]
        runs = levels[priority]
        run_id, places = runs.popitem(last=False)
        place = places.popleft()
        if places:
            runs[run_id] = places
        elif not runs:
            self._drop(wanted, priority)
        self.size -= 1
        return run_id, place

    def waiting(self) -> dict[Wanted, int]:
        """Count what waits by what it needs, those that must run alone too."""
        found = {
            wanted: sum(len(places) for runs in levels.values() for places in runs.values())
            for wanted, levels in self._by_need.items()
        }
        for wanted in self._alone.values():
            found[wanted] = found.get(wanted, 0) + 1
        return found

    def alone(self) -> Iterator[tuple[UUID, int, Wanted]]:
        """Give the places that must run alone, oldest first."""
        for (run_id, place), wanted in list(self._alone.items()):
            yield run_id, place, wanted

    def take_alone(self, run_id: UUID, place: int) -> None:
        """Take one of the places that must run alone."""
        del self._alone[run_id, place]
        self.size -= 1

    def forget(self, run_id: UUID) -> None:
        """Drop all places of a run."""
        for wanted, levels in list(self._by_need.items()):
            for priority, runs in list(levels.items()):
                self.size -= len(runs.pop(run_id, ()))
                if not runs:
                    self._drop(wanted, priority)
        for key in [key for key in self._alone if key[0] == run_id]:
            del self._alone[key]
            self.size -= 1

    def _drop(self, wanted: Wanted, priority: int) -> None:
        """Take out a level on which nothing waits."""
        levels = self._by_need[wanted]
        del levels[priority]
        if not levels:
            del self._by_need[wanted]
