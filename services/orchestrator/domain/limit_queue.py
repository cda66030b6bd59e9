"""What waits for places under limits: in lanes, one for each set of counts that is needed.

A lane is looked at when something joins it, when a place in one of its counts is given back, and
when a rate allows the next; never because time goes by. Within a lane those of the highest priority
come first, owners take turns, and so do the runs of each owner. Lanes are asked for in that order
too, by who is next in each; those of one owner take turns.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from services.orchestrator.domain.limits import Claim, Demand, Lane
from services.orchestrator.domain.turns import Turns

# In the place of a slot: the run itself waits, and nothing of it has begun.
WHOLE_RUN: Final = -1
_CLAIMS_MAX: Final = 64  # of one lane at once

_Runs: TypeAlias = OrderedDict[UUID, "deque[Waiting]"]


class Waiting(NamedTuple):
    """A run, or a slot of one, that waits."""

    run_id: UUID
    slot: int
    alone: bool = False


@dataclass(slots=True)
class _Waiters:
    """What waits in one lane."""

    levels: dict[int, OrderedDict[Hashable, _Runs]] = field(default_factory=dict)  # by owner
    size: int = 0
    step: int = 1  # how many places are asked for next
    stirred: bool = False  # something was given back since it was last asked
    refused_by: UUID | None = None
    since: int = 0  # when it came, or went on last

    def first(self) -> tuple[int, Hashable]:
        """Give the priority and the owner of who is next."""
        priority = max(self.levels)
        return priority, next(iter(self.levels[priority]))


class LimitQueue:
    """All lanes in which something waits, and the places that are taken and not yet made use of."""

    def __init__(self) -> None:
        self.size = 0
        self.abandoned: list[UUID] = []  # places that were taken and that nobody has a use for
        self._lanes: dict[Lane, _Waiters] = {}
        self._by_demand: dict[Demand, dict[Lane, None]] = {}
        self._asking: OrderedDict[Lane, None] = OrderedDict()
        self._lanes_of: dict[UUID, dict[Lane, None]] = {}  # by run
        self._owners = Turns()
        self._turn = count()
        self._claims: dict[UUID, dict[int, list[Claim]]] = {}  # by run and slot
        self._later: list[tuple[float, int, Lane]] = []
        self._later_seq = 0

    @property
    def wanted(self) -> bool:
        """Whether places are to be asked for, or given back."""
        return bool(self._asking or self.abandoned)

    @property
    def next_due(self) -> float | None:
        """When `ripen` is to be called next."""
        return self._later[0][0] if self._later else None

    # --- waiting --------------------------------------------------------------------------------

    def push(self, lane: Lane, waiting: Waiting, *, owner: Hashable, priority: int) -> None:
        """Let something wait in a lane."""
        waiters = self._lanes.get(lane)
        if waiters is None:
            waiters = self._lanes[lane] = _Waiters(since=next(self._turn))
            for demand in lane:
                self._by_demand.setdefault(demand, {})[lane] = None
        runs = waiters.levels.setdefault(priority, OrderedDict()).setdefault(owner, OrderedDict())
        runs.setdefault(waiting.run_id, deque()).append(waiting)
        self._lanes_of.setdefault(waiting.run_id, {})[lane] = None
        waiters.size += 1
        self.size += 1
        if waiters.refused_by is None:
            self._asking.setdefault(lane)

    def forget(self, run_id: UUID, *, whole: bool = False) -> None:
        """Drop what waits of a run and what was taken for it; the run itself only if `whole`."""
        for lane in list(self._lanes_of.pop(run_id, ())):
            self._forget_in(lane, run_id, whole=whole)
        for claims in self._claims.pop(run_id, {}).values():
            for claim in claims:
                self.abandon(claim)

    def _forget_in(self, lane: Lane, run_id: UUID, *, whole: bool) -> None:
        waiters = self._lanes[lane]
        for priority, owners in list(waiters.levels.items()):
            for owner, runs in list(owners.items()):
                found = runs.get(run_id)
                if found is None:
                    continue
                kept = deque(each for each in found if each.slot == WHOLE_RUN and not whole)
                waiters.size -= len(found) - len(kept)
                self.size -= len(found) - len(kept)
                if kept:
                    runs[run_id] = kept
                    self._lanes_of.setdefault(run_id, {})[lane] = None
                else:
                    del runs[run_id]
                    _prune(waiters, priority, owner)
        self._drop_if_empty(lane)

    def drain(self) -> list[Waiting]:
        """Take out all that waits: the limits changed, and it may need something else by now."""
        found = [each for waiters in self._lanes.values() for each in _all(waiters)]
        self._lanes.clear()
        self._by_demand.clear()
        self._asking.clear()
        self._lanes_of.clear()
        self._later.clear()
        self.size = 0
        return found

    def waits(self, run_id: UUID) -> bool:
        """Whether a run waits, or anything of it."""
        return run_id in self._lanes_of

    def limits_of(self, run_id: UUID) -> Iterator[tuple[int, UUID]]:
        """Give what waits of a run, each with the limit that holds it up."""
        for lane in self._lanes_of.get(run_id, ()):
            waiters = self._lanes[lane]
            limit_id = waiters.refused_by or lane[0].limit_id
            for each in _all(waiters):
                if each.run_id == run_id:
                    yield each.slot, limit_id

    # --- asking for places ----------------------------------------------------------------------

    def ask(self, most: int, new_id: Callable[[], UUID]) -> list[Claim]:
        """Give places to ask for, one of each lane in turn."""
        claims: list[Claim] = []
        left: dict[Lane, int] = {}
        if len(self._asking) > 1:
            self._take_turns()
        while self._asking and len(claims) < most:
            lane, _ = self._asking.popitem(last=False)
            waiters = self._lanes[lane]
            if lane not in left:
                left[lane] = min(waiters.size, waiters.step)
                waiters.stirred = False
            claims.append(Claim(lane, tuple(new_id() for _ in lane)))
            left[lane] -= 1
            if left[lane] > 0:
                self._asking[lane] = None
        return claims

    def _take_turns(self) -> None:
        """Have lanes asked for by priority, and owners in turn however many lanes they wait in."""
        before: Counter[tuple[int, Hashable]] = Counter()

        def turn(lane: Lane) -> tuple[int, int, int]:
            priority, owner = first = self._lanes[lane].first()
            before[first] += 1
            return -priority, before[first], self._owners.last(owner)

        lanes = sorted(self._asking, key=lambda lane: self._lanes[lane].since)
        self._asking = OrderedDict.fromkeys(sorted(lanes, key=turn))

    def granted(self, claim: Claim) -> Waiting | None:
        """Give who goes on with places that were taken; None where nobody waits any more."""
        waiters = self._lanes.get(claim.lane)
        if waiters is None:
            self.abandon(claim)
            return None
        waiters.refused_by = None
        waiters.step = min(waiters.step * 2, _CLAIMS_MAX)
        priority = max(waiters.levels)
        owners = waiters.levels[priority]
        owner, runs = owners.popitem(last=False)
        run_id, found = runs.popitem(last=False)
        waiting = found.popleft()
        if found:
            runs[run_id] = found
        owners[owner] = runs
        _prune(waiters, priority, owner)
        self._owners.serve(owner)
        waiters.since = next(self._turn)
        waiters.size -= 1
        self.size -= 1
        if not any(each.run_id == run_id for each in found):
            self._part(run_id, claim.lane)
        if waiters.size:
            self._asking.setdefault(claim.lane)
        self._drop_if_empty(claim.lane)
        return waiting

    def _part(self, run_id: UUID, lane: Lane) -> None:
        """Know that something of a run waits in a lane no more; others of it may."""
        lanes = self._lanes_of.get(run_id)
        waiters = self._lanes[lane]
        if lanes is None or any(
            run_id in runs for owners in waiters.levels.values() for runs in owners.values()
        ):
            return
        lanes.pop(lane, None)
        if not lanes:
            del self._lanes_of[run_id]

    def refused(self, claim: Claim, limit_id: UUID, *, at: float | None = None) -> None:
        """Put a lane aside: one of its limits is full, until a moment if a rate says so."""
        waiters = self._lanes.get(claim.lane)
        if waiters is None:
            return
        waiters.step = 1
        waiters.refused_by = limit_id
        if waiters.stirred:
            self._asking.setdefault(claim.lane)
        else:
            self._asking.pop(claim.lane, None)
        if at is not None:
            self._later_seq += 1
            heapq.heappush(self._later, (at, self._later_seq, claim.lane))

    def unanswered(self, claim: Claim) -> None:
        """Know that nobody can tell whether places were taken: give them back, ask for others."""
        self.abandon(claim)
        self._stir(claim.lane)

    # --- places ---------------------------------------------------------------------------------

    def keep(self, waiting: Waiting, claim: Claim) -> None:
        """Keep places for a slot until a runner takes it."""
        claims = self._claims.setdefault(waiting.run_id, {})
        claims.setdefault(waiting.slot, []).append(claim)

    def claim(self, run_id: UUID, slot: int) -> Claim | None:
        """Give the places that were taken for a slot."""
        slots = self._claims.get(run_id)
        found = slots.get(slot) if slots else None
        if slots is None or not found:
            return None
        claim = found.pop(0)
        if not found:
            del slots[slot]
            if not slots:
                del self._claims[run_id]
        return claim

    def abandon(self, claim: Claim) -> None:
        """Give places back that nothing was begun with."""
        self.abandoned.extend(claim.slots)

    def freed(self, demands: Iterable[Demand]) -> None:
        """Look again at what waits for these counts: a place of each was given back."""
        for demand in demands:
            for lane in self._by_demand.get(demand, ()):
                self._stir(lane)

    def stir(self, limit_id: UUID | None = None) -> None:
        """Look again at what waits for a limit, or at all that waits."""
        for lane in self._lanes:
            if limit_id is None or any(each.limit_id == limit_id for each in lane):
                self._stir(lane)

    def ripen(self, now: float) -> None:
        """Look again at the lanes that a rate held up until now."""
        while self._later and self._later[0][0] <= now:
            self._stir(heapq.heappop(self._later)[2])

    def _stir(self, lane: Lane) -> None:
        waiters = self._lanes.get(lane)
        if waiters is not None:
            waiters.stirred = True
            self._asking.setdefault(lane)

    def _drop_if_empty(self, lane: Lane) -> None:
        if self._lanes[lane].size:
            return
        del self._lanes[lane]
        self._asking.pop(lane, None)
        for demand in lane:
            lanes = self._by_demand[demand]
            lanes.pop(lane, None)
            if not lanes:
                del self._by_demand[demand]


def _all(waiters: _Waiters) -> Iterator[Waiting]:
    for _, owners in sorted(waiters.levels.items(), reverse=True):
        for runs in owners.values():
            for found in runs.values():
                yield from found


def _prune(waiters: _Waiters, priority: int, owner: Hashable) -> None:
    """Take out an owner, and a level, of whom nothing waits."""
    owners = waiters.levels[priority]
    if not owners[owner]:
        del owners[owner]
    if not owners:
        del waiters.levels[priority]
