"""Runners and their credits, and the queue of slots that wait for a runner."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias
from uuid import UUID

from services.orchestrator.domain.needs import Offer, Wanted, takes
from services.orchestrator.domain.turns import Line, Turns


@dataclass(slots=True, kw_only=True)
class Runner:
    """A runner process, as its stream reports it."""

    incarnation: UUID
    offer: Offer
    connected: bool = True
    credits: int = 0  # how many attempts it accepts at once
    grant_epoch: int = -1
    in_flight: dict[UUID, int] = field(default_factory=dict)  # tokens of its attempts, by node row
    exclusive: bool = False  # runs an attempt that must be alone

    @property
    def pythons(self) -> frozenset[str]:
        """The Python versions it has."""
        return self.offer.pythons

    @property
    def slots(self) -> int:
        """How many attempts it makes at once for this orchestrator.

        A runner of short attempts grants a wider window than that: the rest waits in its queue.
        """
        return min(self.credits, self.offer.slots) if self.connected else 0

    @property
    def free(self) -> int:
        """How many more attempts it accepts now."""
        return self.credits - len(self.in_flight) if self.connected else 0


# What waits for one owner: slots by run.
_Runs: TypeAlias = OrderedDict[UUID, deque[int]]
# What waits for one tenant: owners, by priority.
_Levels: TypeAlias = dict[int, Line[tuple[UUID | None, UUID | None], _Runs]]
_Tenants: TypeAlias = Line[UUID | None, _Levels]


class _Lone(NamedTuple):
    """A slot that waits as the only one, in no queue yet."""

    run_id: UUID
    place: int
    wanted: Wanted
    tenant_id: UUID | None
    owner: UUID | None
    priority: int


class ReadyQueue:
    """Slots that wait for a runner, by what they need of it.

    Tenants take turns, whatever their nodes need and whatever priorities they set. Within a tenant
    the highest priority comes first; at equal priority its owners take turns, and so do the runs of
    an owner. So nobody who floods the queue delays others.
    """

    def __init__(self) -> None:
        self._by_need: dict[Wanted, _Tenants] = {}
        self._alone: OrderedDict[tuple[UUID, int], Wanted] = OrderedDict()
        self._whose: dict[UUID, tuple[UUID | None, UUID | None]] = {}  # tenant and owner, by run
        self._tenants = Turns()
        self._owners = Turns()  # of owners within their tenant
        self._lone: _Lone | None = None  # the only slot that waits: the usual case, kept cheap
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
        """Add a slot; those that must run alone come before all others."""
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
        tenants = self._by_need.get(wanted)
        if tenants is None:
            tenants = self._by_need[wanted] = Line(self._tenants.last)
        levels = tenants.get(tenant_id)
        if levels is None:
            levels = tenants.add(tenant_id, {})
        owners = levels.get(priority)
        if owners is None:
            owners = levels[priority] = Line(self._owners.last)
        whose = tenant_id, owner
        runs = owners.get(whose)
        if runs is None:
            runs = owners.add(whose, OrderedDict())
        places = runs.get(run_id)
        if places is None:
            places = runs[run_id] = deque()
            self._whose[run_id] = whose
        places.append(place)

    def take(self, offer: Offer) -> tuple[UUID, int] | None:
        """Take the next slot that a runner can run; its run, owner and tenant go to the end."""
        lone = self._lone
        if lone is not None:
            if not takes(offer, lone.wanted):
                return None
            self._lone, self.size = None, 0
            self._serve(lone.tenant_id, lone.owner)
            return lone.run_id, lone.place
        able = [wanted for wanted in self._by_need if takes(offer, wanted)]
        if not able:
            return None
        wanted = able[0] if len(able) == 1 else self._next(able)
        _, levels = self._by_need[wanted].first()
        priority = max(levels)
        whose, runs = levels[priority].first()
        run_id, places = runs.popitem(last=False)
        place = places.popleft()
        if places:
            runs[run_id] = places
        elif not runs:
            self._drop(wanted, priority, whose)
        self._serve(*whose)
        self.size -= 1
        return run_id, place

    def waiting(self) -> dict[Wanted, int]:
        """Count what waits by what it needs, including what must run alone."""
        if self._lone is not None:
            return {self._lone.wanted: 1}
        found = {
            wanted: sum(
                len(places)
                for _, levels in tenants
                for owners in levels.values()
                for _, runs in owners
                for places in runs.values()
            )
            for wanted, tenants in self._by_need.items()
        }
        for wanted in self._alone.values():
            found[wanted] = found.get(wanted, 0) + 1
        return found

    def _next(self, able: list[Wanted]) -> Wanted:
        """Choose among needs: by the tenants' turns, then priority, then the owners' turns."""
        return min(able, key=self._turn)

    def _turn(self, wanted: Wanted) -> tuple[int, int, int]:
        tenant_id, levels = self._by_need[wanted].first()
        priority = max(levels)
        whose, _ = levels[priority].first()
        return self._tenants.last(tenant_id), -priority, self._owners.last(whose)

    def _serve(self, tenant_id: UUID | None, owner: UUID | None) -> None:
        self._tenants.serve(tenant_id)
        self._owners.serve((tenant_id, owner))

    @property
    def has_alone(self) -> bool:
        """Whether a slot waits that must run alone."""
        return bool(self._alone)

    def alone(self) -> Iterator[tuple[UUID, int, Wanted]]:
        """Yield the slots that must run alone, oldest first."""
        for (run_id, place), wanted in list(self._alone.items()):
            yield run_id, place, wanted

    def take_alone(self, run_id: UUID, place: int) -> None:
        """Remove one of the slots that must run alone."""
        del self._alone[run_id, place]
        self.size -= 1

    def forget(self, run_id: UUID) -> None:
        """Drop all slots of a run."""
        whose = self._whose.pop(run_id, (None, None))
        if self._lone is not None:
            if self._lone.run_id == run_id:
                self._lone, self.size = None, 0
            return
        for wanted, tenants in list(self._by_need.items()):
            for priority, owners in list((tenants.get(whose[0]) or {}).items()):
                runs = owners.get(whose)
                if runs is not None and run_id in runs:
                    self.size -= len(runs.pop(run_id))
                    if not runs:
                        self._drop(wanted, priority, whose)
        for key in [key for key in self._alone if key[0] == run_id]:
            del self._alone[key]
            self.size -= 1

    def _drop(self, wanted: Wanted, priority: int, whose: tuple[UUID | None, UUID | None]) -> None:
        """Remove an owner for whom nothing waits, and queues that are then empty."""
        tenants = self._by_need[wanted]
        levels = tenants.get(whose[0])
        assert levels is not None
        levels[priority].remove(whose)
        if not levels[priority]:
            del levels[priority]
        if not levels:
            tenants.remove(whose[0])
        if not tenants:
            del self._by_need[wanted]
