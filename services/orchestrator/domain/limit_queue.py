"""The queue for slots of limits: who waits, whose turn it is, and which counts may have free slots.

Everything that needs slots of the same counts is in one lane. When a count is found to be full, its
groups wait there until one of its slots is released or its rate allows the next; nothing is polled.
Then slots are requested for the next in turn, and for others only as long as requests succeed, so
that the rest of the queue costs nothing. Tenants take turns. Within a tenant the highest priority
comes first; at equal priority owners take turns, whatever lanes they wait in, then the lanes of an
owner, then the runs in a lane.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import count
from uuid import UUID

from services.orchestrator.domain.limit_lanes import (
    STEP_MAX,
    Count,
    Crowd,
    Group,
    Position,
    Waiting,
)
from services.orchestrator.domain.limits import Claim, Demand, Lane
from services.orchestrator.domain.turns import Line, Turns

_FIRST = 1  # the earliest turn
_FEW = 16  # so few groups are moved rather than kept apart


class LimitQueue:
    """Everything that waits, and the slots that are acquired but not used yet."""

    def __init__(self) -> None:
        self.size = 0
        self.abandoned: list[UUID] = []  # acquired slots that nothing needs, to be released
        self._tenants = Turns()
        self._owners = Turns()
        self._turn = count(1)
        self._lanes: dict[Lane, dict[tuple[int, Hashable], Group]] = {}  # by priority and owner
        self._groups_of: dict[UUID, dict[Group, None]] = {}  # by run
        self._counts: dict[UUID, dict[str, Count]] = {}  # by limit and key
        # Groups of which no count is known to be full, by tenant.
        self._loose: Line[UUID | None, Crowd] = Line(self._tenants.last)
        self._open: dict[Count, None] = {}  # counts with waiting groups that may have free slots
        self._closed: list[Count] = []  # counts excluded from the rest of this request
        self._asked: dict[UUID, tuple[Group, int]] = {}  # by the first slot
        self._claims: dict[UUID, dict[int, list[Claim]]] = {}  # by run and slot
        self._later: list[tuple[float, int, Demand]] = []

    @property
    def wanted(self) -> bool:
        """Whether there are slots to request or release."""
        return bool(self._loose or self._open or self.abandoned)

    @property
    def next_due(self) -> float | None:
        """The time at which to call `ripen` next, if any."""
        return self._later[0][0] if self._later else None

    # --- waiting --------------------------------------------------------------------------------

    def push(
        self,
        lane: Lane,
        waiting: Waiting,
        *,
        owner: Hashable,
        priority: int,
        tenant_id: UUID | None = None,
    ) -> None:
        """Add something to a lane; `owner` is unique across tenants."""
        groups = self._lanes.setdefault(lane, {})
        group = groups.get((priority, owner))
        turn = waiting.since or self.new_turn()
        if group is None:
            counts = tuple(self._count(each, tenant_id) for each in lane)
            group = Group(lane, owner, priority, counts, tenant_id, since=turn)
            groups[priority, owner] = group
        group.push(waiting, turn)
        self._groups_of.setdefault(waiting.run_id, {})[group] = None
        self.size += 1
        self._settle(group)

    def new_turn(self) -> int:
        """Return a turn behind all others."""
        return next(self._turn)

    def _count(self, demand: Demand, tenant_id: UUID | None) -> Count:
        counts = self._counts.setdefault(demand.limit_id, {})
        found = counts.get(demand.key)
        if found is None:
            found = counts[demand.key] = Count(demand, Crowd(tenant_id, self._owners))
        found.groups += 1
        return found

    def forget(self, run_id: UUID, *, whole: bool = False) -> dict[int, int]:
        """Drop what waits for a run and what was acquired for it; the run itself only if `whole`.

        Returns the turns by slot with which they regain their position if they are added again;
        those that had acquired limit slots come first.
        """
        turns: dict[int, int] = {}
        for group in self._groups_of.pop(run_id, ()):
            gone = group.forget(run_id, whole=whole)
            self.size -= len(gone)
            turns |= gone
            if run_id in group.runs:
                self._groups_of.setdefault(run_id, {})[group] = None
            self._settle(group)
        for slot, claims in self._claims.pop(run_id, {}).items():
            turns[slot] = _FIRST
            for claim in claims:
                self.abandon(claim)
        return turns

    def drain(self) -> list[Waiting]:
        """Remove and return everything that waits: after limits changed, it may need others."""
        groups = [each for lane in self._lanes.values() for each in lane.values()]
        groups.sort(key=lambda each: -each.priority)
        found = [waiting for group in groups for waiting in group]
        self._lanes.clear()
        self._groups_of.clear()
        self._counts.clear()
        self._loose = Line(self._tenants.last)
        self._open.clear()
        self._asked.clear()
        self._later.clear()
        self.size = 0
        return found

    def waits(self, run_id: UUID) -> bool:
        """Return whether a run waits, or any of its slots."""
        return run_id in self._groups_of

    def positions_of(self, run_id: UUID) -> Iterator[Position]:
        """Yield the positions of what waits for a run, and for which count."""
        for group in self._groups_of.get(run_id, ()):
            if group.crowd is None:  # all of it is requested already
                ahead = group.ahead_of(run_id)
            else:
                ahead = group.crowd.ahead_of(group, run_id)
            slots = [each.slot for each in group.runs[run_id]]
            yield Position(group.held_by or group.lane[0], slots, ahead)

    # --- positions of groups --------------------------------------------------------------------

    def _settle(self, group: Group) -> None:
        """Keep a group in a crowd while some of it is not requested yet."""
        if group.size > group.asked:
            if group.crowd is None:
                self._stand(group, group.full_count())
        elif group.crowd is not None:
            self._leave(group)
        if not group.size:
            self._drop(group)

    def _stand(self, group: Group, at: Count | None) -> None:
        if group.crowd is not None:
            self._leave(group)
        group.held_by = None if at is None else at.demand
        if at is None:
            loose = self._loose.get(group.tenant_id)
            if loose is None:
                loose = self._loose.add(group.tenant_id, Crowd(group.tenant_id, self._owners))
            loose.add(group)
        else:
            at.crowd.add(group)
            if not at.full:
                self._open[at] = None

    def _leave(self, group: Group) -> None:
        crowd = group.crowd
        assert crowd is not None
        crowd.remove(group)
        if crowd:
            return
        if crowd is self._loose.get(group.tenant_id):
            self._loose.remove(group.tenant_id)
        for each in group.counts:
            if each.crowd is crowd:
                self._open.pop(each, None)

    def _drop(self, group: Group) -> None:
        """Remove an empty group, and counts that nothing else needs."""
        groups = self._lanes.get(group.lane, {})
        if groups.get((group.priority, group.owner)) is not group:
            return
        del groups[group.priority, group.owner]
        if not groups:
            del self._lanes[group.lane]
        for each in group.counts:
            each.groups -= 1
            if not each.groups:
                counts = self._counts[each.demand.limit_id]
                del counts[each.demand.key]
                if not counts:
                    del self._counts[each.demand.limit_id]

    # --- requests -------------------------------------------------------------------------------

    def ask(self, most: int, new_id: Callable[[], UUID]) -> list[Claim]:
        """Return claims to request, in order of turns."""
        for each in [each for each in self._open if len(each.crowd) <= _FEW]:
            for one in list(each.crowd):
                self._stand(one, None)
        standing = list(self._open)
        claims: list[Claim] = []
        tenants: dict[UUID | None, int] = {}  # their turns before: nobody has been served yet
        owners: dict[Hashable, int] = {}
        while len(claims) < most and (group := self._next(standing)) is not None:
            tenants.setdefault(group.tenant_id, self._tenants.last(group.tenant_id))
            owners.setdefault(group.owner, self._owners.last(group.owner))
            self._serve(group)
            claims.append(self._claim(group, new_id))
        for each in self._closed:
            each.closed = False
        self._closed.clear()
        self._restore(tenants, owners)
        return claims

    def _restore(self, tenants: dict[UUID | None, int], owners: dict[Hashable, int]) -> None:
        """Restore turns of tenants and owners, and reorder by them."""
        for tenant_id, turn in tenants.items():
            self._tenants.restore(tenant_id, turn)
            self._loose.renew(tenant_id)
        for owner, turn in owners.items():
            self._owners.restore(owner, turn)
        for tenant_id in tenants:
            loose = self._loose.get(tenant_id)
            if loose is not None:
                loose.renew(owners)
        for each in self._open:
            if len(each.crowd) > _FEW:
                each.crowd.renew(owners)

    def _serve(self, group: Group) -> None:
        self._tenants.serve(group.tenant_id)
        self._owners.serve(group.owner)

    def _next(self, standing: list[Count]) -> Group | None:
        """Return the next group that may get slots; others move to the count that they wait for.

        A group that waits for an answer is not overtaken by others that need the same count, nor by
        less urgent ones of its tenant.
        """
        while True:
            crowds = [each.crowd for each in standing if each.has_room and each.crowd]
            if self._loose:
                crowds.append(self._loose.first()[1])
            if not crowds:
                return None
            crowd = crowds[0] if len(crowds) == 1 else min(crowds, key=self._crowd_turn)
            group = crowd.first()
            short = group.short_of()
            if short is None and _is_behind(group, standing):
                short = group.counts[0]
            if short is None:
                return group
            if not short.full:
                self._close(group)
            self._stand(group, short)

    def _crowd_turn(self, crowd: Crowd) -> tuple[int, tuple[int, int, int]]:
        return self._tenants.last(crowd.tenant_id), crowd.turn()

    def _close(self, group: Group) -> None:
        for each in group.counts:
            if not each.closed:
                each.closed = True
                self._closed.append(each)

    def _claim(self, group: Group, new_id: Callable[[], UUID]) -> Claim:
        claim = Claim(group.lane, tuple(new_id() for _ in group.lane))
        self._asked[claim.slots[0]] = group, group.since
        for each in group.counts:
            each.asked += 1
            each.freed = False
        group.asked += 1
        self._since(group, next(self._turn))
        return claim

    def _since(self, group: Group, turn: int) -> None:
        """Give a group another turn, and its position by that."""
        crowd = group.crowd
        if crowd is not None:
            crowd.remove(group)
        group.since = turn
        if crowd is not None:
            crowd.add(group)
        self._settle(group)

    def _answered(self, claim: Claim) -> tuple[Group, int] | None:
        """Remove an answered request; returns its group and turn, None if drained meanwhile."""
        found = self._asked.pop(claim.slots[0], None)
        if found is not None:
            group, _ = found
            group.asked -= 1
            for each in group.counts:
                each.asked -= 1
        return found

    def granted(self, claim: Claim) -> Waiting | None:
        """Return who continues with acquired slots; None if nothing needs them any more."""
        found = self._answered(claim)
        if found is not None:
            for each in found[0].counts:
                each.step = min(each.step * 2, STEP_MAX)
        group = found[0] if found is not None and found[0].size else self._first_in(claim.lane)
        if group is None:
            self.abandon(claim)
            return None
        waiting = group.pop(self.new_turn())
        self.size -= 1
        self._serve(group)
        if waiting.run_id not in group.runs:
            groups = self._groups_of[waiting.run_id]
            del groups[group]
            if not groups:
                del self._groups_of[waiting.run_id]
        self._settle(group)
        return waiting

    def _first_in(self, lane: Lane) -> Group | None:
        groups = self._lanes.get(lane, {}).values()
        return min(groups, key=self._order, default=None)

    def _order(self, group: Group) -> tuple[int, int]:
        return -group.priority, self._owners.last(group.owner)

    def refused(self, claim: Claim, limit_id: UUID, *, at: float | None = None) -> None:
        """Mark a count as full, until `at` if its rate limit refused."""
        found = self._answered(claim)
        if found is None:
            return
        group, turn = found
        full = next(each for each in group.counts if each.demand.limit_id == limit_id)
        full.step = 1
        if not full.freed:
            full.full = True
            self._open.pop(full, None)
        if at is not None:
            heapq.heappush(self._later, (at, next(self._turn), full.demand))
        self._since(group, min(turn, group.since))
        if group.crowd is not None and group.held_by is None:
            self._stand(group, full)

    def unanswered(self, claim: Claim) -> None:
        """Handle a request with unknown outcome: release its slots, and request others."""
        self.abandon(claim)
        found = self._answered(claim)
        if found is not None:
            self.freed(claim.lane)
            self._since(found[0], min(found[1], found[0].since))

    # --- acquired slots -------------------------------------------------------------------------

    def keep(self, waiting: Waiting, claim: Claim) -> None:
        """Keep a claim for a slot until a runner takes it."""
        claims = self._claims.setdefault(waiting.run_id, {})
        claims.setdefault(waiting.slot, []).append(claim)

    def claim(self, run_id: UUID, slot: int) -> Claim | None:
        """Remove and return the claim kept for a slot, if any."""
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
        """Release the slots of an unused claim."""
        self.abandoned.extend(claim.slots)

    def freed(self, demands: Iterable[Demand]) -> None:
        """Recheck what waits for these counts: a slot of each was released."""
        for limit_id, key in demands:
            found = self._counts.get(limit_id, {}).get(key)
            if found is not None:
                self._free(found)

    def stir(self, limit_id: UUID | None = None) -> None:
        """Recheck what waits for a limit, or for all limits."""
        for each in self._counts if limit_id is None else (limit_id,):
            for found in self._counts.get(each, {}).values():
                self._free(found)

    def ripen(self, now: float) -> None:
        """Recheck what a rate limit delayed until now."""
        while self._later and self._later[0][0] <= now:
            self.freed([heapq.heappop(self._later)[2]])

    def _free(self, each: Count) -> None:
        each.full = False
        each.freed = True
        if each.crowd:
            self._open[each] = None


def _is_behind(group: Group, standing: list[Count]) -> bool:
    """Return whether more urgent groups of the tenant wait for an answer."""
    return any(
        group.priority < each.crowd.first().priority
        for each in standing
        if each.crowd
        and each.crowd.tenant_id == group.tenant_id
        and not each.full
        and not each.has_room
    )
