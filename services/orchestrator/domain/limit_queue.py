"""The queue for slots under limits: who waits, whose turn it is, and which counts may have slots.

What needs places in the same counts is in one lane. A lane that finds one of its counts full stands
there, and is looked at when a place in that is given back or when a rate allows the next; never
because time goes by. Then who is next there is asked for, and others only as long as places are
found: what else waits costs nothing. Tenants take turns at being asked for. Of one those of the
highest priority come first, of equal ones owners take turns, whichever lanes they wait in, then the
lanes of each, and the runs in those.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import count
from uuid import UUID

from services.orchestrator.domain.limit_lanes import STEP_MAX, Count, Crowd, Group, Place, Waiting
from services.orchestrator.domain.limits import Claim, Demand, Lane
from services.orchestrator.domain.turns import Line, Turns

_FIRST = 1  # the turn that nobody's is before
_FEW = 16  # groups that are cheaper to move than to keep apart


class LimitQueue:
    """All that waits, and the places that are taken and not yet made use of."""

    def __init__(self) -> None:
        self.size = 0
        self.abandoned: list[UUID] = []  # places that were taken and that nobody has a use for
        self._tenants = Turns()
        self._owners = Turns()
        self._turn = count(1)
        self._lanes: dict[Lane, dict[tuple[int, Hashable], Group]] = {}  # by priority and owner
        self._groups_of: dict[UUID, dict[Group, None]] = {}  # by run
        self._counts: dict[UUID, dict[str, Count]] = {}  # by limit and key
        # Groups of which no count is known to be full, by tenant.
        self._loose: Line[UUID | None, Crowd] = Line(self._tenants.last)
        self._open: dict[Count, None] = {}  # at which groups stand, and which may have places
        self._closed: list[Count] = []  # not asked for any more in this question
        self._asked: dict[UUID, tuple[Group, int]] = {}  # by the first place, with its turn before
        self._claims: dict[UUID, dict[int, list[Claim]]] = {}  # by run and slot
        self._later: list[tuple[float, int, Demand]] = []

    @property
    def wanted(self) -> bool:
        """Whether places are to be asked for, or given back."""
        return bool(self._loose or self._open or self.abandoned)

    @property
    def next_due(self) -> float | None:
        """When `ripen` is to be called next."""
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
        """Let something wait in a lane; owners are told apart whatever their tenants are."""
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
        """Give the turn of somebody who asks now, for the first time."""
        return next(self._turn)

    def _count(self, demand: Demand, tenant_id: UUID | None) -> Count:
        counts = self._counts.setdefault(demand.limit_id, {})
        found = counts.get(demand.key)
        if found is None:
            found = counts[demand.key] = Count(demand, Crowd(tenant_id, self._owners))
        found.groups += 1
        return found

    def forget(self, run_id: UUID, *, whole: bool = False) -> dict[int, int]:
        """Drop what waits of a run and what was taken for it; the run itself only if `whole`.

        Returns the turns with which its slots stand where they stood, if they ask again; those that
        had places already come first.
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
        """Take out all that waits: the limits changed, and it may need something else by now."""
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
        """Whether a run waits, or anything of it."""
        return run_id in self._groups_of

    def places_of(self, run_id: UUID) -> Iterator[Place]:
        """Give where what waits of a run stands in line, and for which count."""
        for group in self._groups_of.get(run_id, ()):
            if group.crowd is None:  # as much is asked for as waits
                ahead = group.ahead_of(run_id)
            else:
                ahead = group.crowd.ahead_of(group, run_id)
            slots = [each.slot for each in group.runs[run_id]]
            yield Place(group.held_by or group.lane[0], slots, ahead)

    # --- where groups stand ---------------------------------------------------------------------

    def _settle(self, group: Group) -> None:
        """Let a group stand somewhere while something of it waits that is not asked for yet."""
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
        """Take out a group of which nothing waits, and the counts that nothing else needs."""
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

    # --- asking for places ----------------------------------------------------------------------

    def ask(self, most: int, new_id: Callable[[], UUID]) -> list[Claim]:
        """Give places to ask for, those that are next first."""
        for each in [each for each in self._open if len(each.crowd) <= _FEW]:
            for one in list(each.crowd):
                self._stand(one, None)
        standing = list(self._open)
        claims: list[Claim] = []
        tenants: dict[UUID | None, int] = {}  # their turns as they were: nobody is served yet
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
        """Take back turns, wherever they count next: where few stand they are put anew."""
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
        """Give who is next of those that may find places; who may not goes where those are short.

        Whoever must wait for an answer first is overtaken by nobody who needs what it needs, and
        nobody of its tenant who is less urgent.
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
        """Put a group where it belongs among those of its owner."""
        crowd = group.crowd
        if crowd is not None:
            crowd.remove(group)
        group.since = turn
        if crowd is not None:
            crowd.add(group)
        self._settle(group)

    def _answered(self, claim: Claim) -> tuple[Group, int] | None:
        """Know that what was asked for has an answer; None where all was drained meanwhile."""
        found = self._asked.pop(claim.slots[0], None)
        if found is not None:
            group, _ = found
            group.asked -= 1
            for each in group.counts:
                each.asked -= 1
        return found

    def granted(self, claim: Claim) -> Waiting | None:
        """Give who goes on with places that were taken; None where nobody waits any more."""
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
        """Put what waits for a count aside: it is full, until a moment if a rate says so."""
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
        """Know that nobody can tell whether places were taken: give them back, ask for others."""
        self.abandon(claim)
        found = self._answered(claim)
        if found is not None:
            self.freed(claim.lane)
            self._since(found[0], min(found[1], found[0].since))

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
        for limit_id, key in demands:
            found = self._counts.get(limit_id, {}).get(key)
            if found is not None:
                self._free(found)

    def stir(self, limit_id: UUID | None = None) -> None:
        """Look again at what waits for a limit, or at all that waits."""
        for each in self._counts if limit_id is None else (limit_id,):
            for found in self._counts.get(each, {}).values():
                self._free(found)

    def ripen(self, now: float) -> None:
        """Look again at what a rate held up until now."""
        while self._later and self._later[0][0] <= now:
            self.freed([heapq.heappop(self._later)[2]])

    def _free(self, each: Count) -> None:
        each.full = False
        each.freed = True
        if each.crowd:
            self._open[each] = None


def _is_behind(group: Group, standing: list[Count]) -> bool:
    """Whether more urgent ones of its tenant wait for an answer, which may need what it needs."""
    return any(
        group.priority < each.crowd.first().priority
        for each in standing
        if each.crowd
        and each.crowd.tenant_id == group.tenant_id
        and not each.full
        and not each.has_room
    )
