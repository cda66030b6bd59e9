"""Who may be given work: runners, their credits, and the places that wait for one."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias
from uuid import UUID

from services.orchestrator.domain.needs import Offer, Wanted, takes
from services.orchestrator.domain.turns import Turns


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


# What waits of one owner: runs, and the places of each.
_Runs: TypeAlias = OrderedDict[UUID, deque[int]]
# What waits on one level of priority: tenants, and their owners.
_Level: TypeAlias = OrderedDict[UUID | None, OrderedDict[UUID | None, _Runs]]


class _Lone(NamedTuple):
    """A place that waits, as yet in no line."""

    run_id: UUID
    place: int
    wanted: Wanted
    tenant_id: UUID | None
    owner: UUID | None
    priority: int


class ReadyQueue:
    """Places that wait for a credit, by what they need of a runner.

    Those of the highest priority come first. Tenants take turns, whatever their nodes need, and so
    do the owners of each and the runs of those: who floods the queue holds nobody else up.
    """

    def __init__(self) -> None:
        self._by_need: dict[Wanted, dict[int, _Level]] = {}
        self._alone: OrderedDict[tuple[UUID, int], Wanted] = OrderedDict()
        self._whose: dict[UUID, tuple[UUID | None, UUID | None]] = {}  # runs that wait
        self._tenants = Turns()
        self._owners = Turns()  # each as one of a tenant
        self._lone: _Lone | None = None  # what waits, where nothing else does
        self.size = 0

    def push(
        self,
        run_id: UUID,
        place: int,
        wanted: Wanted,
        *,
        tenant_id: UUID | None = None,
        owner: UUID | None = None,
        priority: int = 0,
        alone: bool = False,
    ) -> None:
        """Add a place; those that must run alone go before all others."""
        if self._lone is not None:
            lone, self._lone = self._lone, None
            self._line_up(lone)
        if alone:
            self._alone[run_id, place] = wanted
        elif self.size:
            self._line_up(_Lone(run_id, place, wanted, tenant_id, owner, priority))
        else:
            self._lone = _Lone(run_id, place, wanted, tenant_id, owner, priority)
        self.size += 1

    def _line_up(self, each: _Lone) -> None:
        run_id, place, wanted, tenant_id, owner, priority = each
        level = self._level(wanted, priority)
        owners = level.get(tenant_id)
        if owners is None:
            owners = level[tenant_id] = OrderedDict()
        runs = owners.get(owner)
        if runs is None:
            runs = owners[owner] = OrderedDict()
        places = runs.get(run_id)
        if places is None:
            places = runs[run_id] = deque()
            self._whose[run_id] = tenant_id, owner
        places.append(place)

    def _level(self, wanted: Wanted, priority: int) -> _Level:
        levels = self._by_need.get(wanted)
        if levels is None:
            levels = self._by_need[wanted] = {}
        level = levels.get(priority)
        if level is None:
            level = levels[priority] = OrderedDict()
        return level

    def take(self, offer: Offer) -> tuple[UUID, int] | None:
        """Take the next place that a runner can run; its run, owner and tenant go to the end."""
        lone = self._lone
        if lone is not None:
            if not takes(offer, lone.wanted):
                return None
            self._lone, self.size = None, 0
            self._serve(lone.tenant_id, lone.owner)
            return lone.run_id, lone.place
        able = [
            (max(levels), wanted)
            for wanted, levels in self._by_need.items()
            if takes(offer, wanted)
        ]
        if not able:
            return None
        priority, wanted = able[0] if len(able) == 1 else self._next(able)
        level = self._by_need[wanted][priority]
        tenant_id, owners = level.popitem(last=False)
        owner, runs = owners.popitem(last=False)
        run_id, places = runs.popitem(last=False)
        place = places.popleft()
        if places:
            runs[run_id] = places
        if runs:
            owners[owner] = runs
        if owners:
            level[tenant_id] = owners
        elif not level:
            self._drop(wanted, priority)
        self._serve(tenant_id, owner)
        self.size -= 1
        return run_id, place

    def waiting(self) -> dict[Wanted, int]:
        """Count what waits by what it needs, those that must run alone too."""
        if self._lone is not None:
            return {self._lone.wanted: 1}
        found = {
            wanted: sum(
                len(places)
                for level in levels.values()
                for owners in level.values()
                for runs in owners.values()
                for places in runs.values()
            )
            for wanted, levels in self._by_need.items()
        }
        for wanted in self._alone.values():
            found[wanted] = found.get(wanted, 0) + 1
        return found

    def _next(self, able: list[tuple[int, Wanted]]) -> tuple[int, Wanted]:
        """Choose among needs of the highest priority: whose tenant, then owner, waited longest."""
        highest = max(priority for priority, _ in able)
        return min((each for each in able if each[0] == highest), key=self._served)

    def _served(self, at: tuple[int, Wanted]) -> tuple[int, int]:
        """Tell when those who are next on a level were served last."""
        priority, wanted = at
        tenant_id, owners = next(iter(self._by_need[wanted][priority].items()))
        return self._tenants.last(tenant_id), self._owners.last((tenant_id, next(iter(owners))))

    def _serve(self, tenant_id: UUID | None, owner: UUID | None) -> None:
        self._tenants.serve(tenant_id)
        self._owners.serve((tenant_id, owner))

    @property
    def has_alone(self) -> bool:
        """Whether a place waits that must run alone."""
        return bool(self._alone)

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
        tenant_id, owner = self._whose.pop(run_id, (None, None))
        if self._lone is not None:
            if self._lone.run_id == run_id:
                self._lone, self.size = None, 0
            return
        for wanted, levels in list(self._by_need.items()):
            for priority, level in list(levels.items()):
                owners = level.get(tenant_id)
                runs = owners.get(owner) if owners else None
                if not owners or runs is None:
                    continue
                self.size -= len(runs.pop(run_id, ()))
                if not runs:
                    del owners[owner]
                if not owners:
                    del level[tenant_id]
                if not level:
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
