"""Whose turn it is where more waits for places than there are, whichever counts it needs."""

from __future__ import annotations

import random
from collections import Counter
from itertools import count
from uuid import UUID

import pytest

from services.orchestrator.domain.limit_lanes import Count, Group, Waiting
from services.orchestrator.domain.limit_queue import LimitQueue
from services.orchestrator.domain.limits import Claim, Demand, Lane
from tests.unit.orchestrator.test_limits import ALL, EVERY, FEW, A, B, Places

ONE, OTHER = UUID(int=11), UUID(int=12)
KEYS = 10_000


class Counting(LimitQueue):
    """A queue that counts how many groups it moved."""

    moves = 0

    def _stand(self, group: Group, at: Count | None) -> None:
        self.moves += 1
        super()._stand(group, at)


class World:
    """What waits, by who waits, and the loop that asks for places."""

    def __init__(self, most: dict[UUID, int], queue: LimitQueue | None = None) -> None:
        self.queue = queue or LimitQueue()
        self.places = Places(most)
        self.waiting: dict[Waiting, tuple[Lane, int]] = {}
        self.asked = 0
        self._ids = count(1)
        self._slots = count()

    def push(
        self,
        lane: Lane,
        owner: UUID = ONE,
        priority: int = 0,
        *,
        run: int = 1,
        tenant_id: UUID | None = None,
    ) -> Waiting:
        each = Waiting(UUID(int=run), next(self._slots))
        self.waiting[each] = lane, priority
        self.queue.push(lane, each, owner=owner, priority=priority, tenant_id=tenant_id)
        return each

    def ask(self, most: int = 256) -> list[Waiting]:
        """Ask until there is nothing to ask for; returns who goes on, in their order."""
        found = []
        while claims := self.queue.ask(most, lambda: UUID(int=next(self._ids))):
            self.asked += len(claims)
            for claim in claims:
                refused_by = self.places.take(claim)
                if refused_by is not None:
                    self.queue.refused(claim, refused_by)
                    continue
                waiting = self.queue.granted(claim)
                assert waiting is not None
                self._check(waiting, claim)
                found.append(waiting)
        return found

    def _check(self, waiting: Waiting, claim: Claim) -> None:
        """Nobody of a higher priority could have had one of these places."""
        lane, priority = self.waiting.pop(waiting)
        assert lane == claim.lane
        self.places.held.remove(claim)
        taken = self.places.taken()
        self.places.held.append(claim)
        for other, highest in self.waiting.values():
            if highest > priority and not set(lane).isdisjoint(other):
                assert any(taken[each] >= self.places.most[each.limit_id] for each in other)

    def free(self, at: int = 0) -> None:
        self.queue.freed(self.places.held.pop(at).lane)

    def order(self, places: int) -> list[Waiting]:
        """Give one place back after the other; returns who went on."""
        found = []
        for _ in range(places):
            self.free()
            found += self.ask()
        return found


_LANES: tuple[Lane, ...] = ((A,), (B,), (EVERY,), (A, EVERY), (B, EVERY))


@pytest.mark.parametrize("seed", range(60))
def test_nobody_goes_on_before_one_of_a_higher_priority_who_could(seed: int) -> None:
    """I35: in whichever lanes they wait, when many places are given back at once too."""
    chance = random.Random(seed)
    world = World({FEW: chance.randint(1, 6), ALL: chance.randint(1, 9)})
    for _ in range(40):
        for _ in range(chance.randint(0, 12)):
            owner = chance.choice((ONE, OTHER))
            world.push(chance.choice(_LANES), owner, chance.choice((-9, 0, 0, 9)), run=owner.int)
        while world.places.held and chance.random() < 0.8:
            world.free(chance.randrange(len(world.places.held)))
        world.ask(chance.choice((1, 4, 256)))
        taken = world.places.taken()
        for lane, _ in world.waiting.values():
            assert any(taken[each] >= world.places.most[each.limit_id] for each in lane)
    assert len(world.waiting) == world.queue.size


def test_what_needs_less_is_next_however_much_came_before_that_needs_more() -> None:
    """Sixty of one node, which has a limit too, wait under the tenant's; then one of another."""
    for owner, priority in ((OTHER, 0), (ONE, 100)):
        world = World({FEW: 5, ALL: 1})
        for run in range(60):
            world.push((A, EVERY), run=run)
        assert 1 == len(world.ask())
        mine = world.push((EVERY,), owner, priority, run=99)
        assert mine in world.order(2)


def test_a_key_that_came_first_does_not_keep_the_places_of_all() -> None:
    """Of one user's: forty runs of one customer wait, and one of another."""
    world = World({FEW: 5, ALL: 1})
    for run in range(40):
        world.push((A, EVERY), run=run)
    assert 1 == len(world.ask())
    mine = world.push((B, EVERY), run=99)
    assert mine in world.order(2)


def test_the_second_of_a_lane_goes_before_those_of_a_lower_priority_in_others() -> None:
    world = World({FEW: 9, ALL: 2})
    first = {world.push((A, EVERY), priority=100, run=run) for run in (1, 2)}
    world.push((B, EVERY), run=3)
    assert first == set(world.ask())


def test_owners_take_turns_among_places_that_are_given_back_together() -> None:
    """One waits for a hundred keys, the other for one."""
    world = World({FEW: 200, ALL: 64})
    for _ in range(64):
        world.push((EVERY,))
    world.ask()
    mine = set()
    for at in range(100):
        world.push((Demand(FEW, str(at)), EVERY), ONE, run=100 + at)
        mine.add(world.push((Demand(FEW, "x"), EVERY), OTHER, run=500 + at))
    for _ in range(64):
        world.free()
    found = world.ask()
    assert 64 == len(found)
    assert 30 <= len(mine.intersection(found)) <= 34


def test_tenants_take_turns_at_being_asked_for_whatever_their_priorities() -> None:
    """I35: a thousand keys of one tenant, each of which may have a place, and one of another."""
    world = World({FEW: 1, ALL: 1})
    for at in range(1_000):
        key = Demand(FEW, str(at))
        world.push((key,), ONE, 100, run=at, tenant_id=UUID(int=1))
    world.push((EVERY,), OTHER, -100, run=5_000, tenant_id=UUID(int=2))
    claims = world.queue.ask(4, lambda: UUID(int=1))
    assert (EVERY,) in [each.lane for each in claims]


@pytest.mark.parametrize("tenants", [(ONE, OTHER), (None, None)], ids=["tenants", "owners"])
@pytest.mark.parametrize("waiting", [1, 3])
def test_a_question_that_nobody_answered_costs_no_turn(
    tenants: tuple[UUID | None, UUID | None], waiting: int
) -> None:
    """I35: it was asked in the name of those whose turn it was, and is so again."""
    world, ids = World({FEW: 9}), count(1000)
    for lane, owner, tenant in zip(((A,), (B,)), (ONE, OTHER), tenants, strict=True):
        for _ in range(1 + waiting):
            world.push(lane, owner, tenant_id=tenant)
    for claim in world.queue.ask(2, lambda: UUID(int=next(ids))):
        world.queue.granted(claim)
    for most in (1, 2, 2, 1):
        claims = world.queue.ask(most, lambda: UUID(int=next(ids)))
        assert [(A,), (B,)][:most] == [each.lane for each in claims]
        for claim in claims:
            world.queue.unanswered(claim)


def test_a_place_that_is_given_back_costs_nothing_for_each_key_that_waits() -> None:
    queue = Counting()
    world = World({FEW: 1, ALL: 1}, queue)
    for at in range(KEYS):
        owner = OTHER if at == KEYS - 1 else ONE
        queue.push((Demand(FEW, str(at)), EVERY), Waiting(UUID(int=at), 0), owner=owner, priority=0)
        world.waiting[Waiting(UUID(int=at), 0)] = (EVERY,), 0
    ids = count(1)
    asked, went_on = Counter[int](), list[int]()
    queue.moves = 0
    for place in range(50):
        while claims := queue.ask(256, lambda: UUID(int=next(ids))):
            asked[place] += len(claims)
            for claim in claims:
                refused_by = world.places.take(claim)
                if refused_by is not None:
                    queue.refused(claim, refused_by)
                elif (waiting := queue.granted(claim)) is not None:
                    went_on.append(waiting.run_id.int)
        world.free()
        if place == 0:
            queue.moves = 0
    assert max(asked.values()) <= 4
    assert queue.moves <= 50 * 6
    assert [0, KEYS - 1, *range(1, 49)] == went_on


def test_nothing_is_left_of_what_waits_no_more() -> None:
    queue = LimitQueue()
    world = World({FEW: 1, ALL: 1}, queue)
    for at in range(20):
        world.push(_LANES[at % 5], UUID(int=at % 3), at % 2, run=at % 7, tenant_id=ONE)
    world.ask()
    for run in range(7):
        queue.forget(UUID(int=run))
    assert (0, {}, {}, {}, {}) == (
        queue.size, queue._lanes, queue._groups_of, queue._counts, queue._asked,
    )  # fmt: skip
    assert not queue.wanted


@pytest.mark.parametrize("seed", range(60))
def test_a_place_in_line_is_how_many_go_on_before(seed: int) -> None:
    """Of owners who take turns, with priorities, in lanes that need more than one count."""
    chance = random.Random(seed)
    world = World({FEW: 1, ALL: 1000})
    world.push((A,), run=1000)
    assert 1 == len(world.ask())
    for _ in range(chance.randint(6, 40)):
        owner, priority = chance.choice((ONE, OTHER, UUID(int=13))), chance.choice((-9, 0, 0, 0, 9))
        run = owner.int * 100 + priority * 3 + chance.randint(0, 3)
        lane = chance.choice(((A,), (A, EVERY)))
        world.push(lane, owner, priority, run=run)
    world.order(chance.randint(0, 5))  # from the midst of turns
    world.ask()
    expected: dict[UUID, int] = {}
    for run_id in {each.run_id for each in world.waiting}:
        places = list(world.queue.positions_of(run_id))
        assert {A} == {each.demand for each in places}
        expected[run_id] = min(each.ahead for each in places)
    order = [each.run_id for each in world.order(len(world.waiting))]
    assert expected == {run_id: order.index(run_id) for run_id in expected}
