"""Whose turn it is where more wants to run than runners take."""

from __future__ import annotations

import random
from typing import NamedTuple
from uuid import UUID

import pytest

from services.orchestrator.domain.credits import ReadyQueue
from services.orchestrator.domain.needs import Offer

BOTH = Offer(pythons=frozenset({"3.11", "3.12"}))
LOUD, QUIET = UUID(int=1), UUID(int=2)
FLOOD = 1_000


class Whose(NamedTuple):
    """Whose a place is, and how it waits."""

    python: str
    tenant_id: UUID
    owner: UUID
    priority: int


def flooded() -> ReadyQueue:
    """Give a queue in which one tenant has a thousand runs."""
    queue = ReadyQueue()
    for at in range(FLOOD):
        queue.push(UUID(int=100 + at), 0, "3.11", tenant_id=LOUD)
    return queue


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_a_tenant_that_floods_the_queue_takes_every_other_turn_at_most(python: str) -> None:
    """I35: each place of another tenant waits for one of the flood's, whatever it needs."""
    queue = flooded()
    assert queue.take(BOTH) is not None
    mine = UUID(int=50)
    for place in range(20):
        queue.push(mine, place, python, tenant_id=QUIET)
    taken = [queue.take(BOTH) for _ in range(40)]
    turns = [at for at, each in enumerate(taken) if each is not None and each[0] == mine]
    assert 20 == len(turns)
    assert all(turn <= 2 * number + 1 for number, turn in enumerate(turns))


def test_a_place_that_comes_alone_now_and_then_is_next_each_time() -> None:
    """I35: a wait no longer than three of its own, while another tenant has hundreds in line."""
    queue = flooded()
    for at in range(100):
        queue.push(UUID(int=9_000 + at), 0, "3.11", tenant_id=QUIET)
        first_two = [queue.take(BOTH), queue.take(BOTH)]
        assert (UUID(int=9_000 + at), 0) in first_two


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_an_owner_who_floods_a_tenant_takes_every_other_turn_of_its_at_most(python: str) -> None:
    """I35: among those of one tenant as among tenants, whatever their nodes need."""
    queue = ReadyQueue()
    for at in range(FLOOD):
        queue.push(UUID(int=100 + at), 0, "3.11", tenant_id=LOUD, owner=UUID(int=8))
    mine = UUID(int=50)
    for place in range(20):
        queue.push(mine, place, python, tenant_id=LOUD, owner=UUID(int=9))
    taken = [queue.take(BOTH) for _ in range(41)]
    turns = [at for at, each in enumerate(taken) if each is not None and each[0] == mine]
    assert 20 == len(turns)
    assert all(turn <= 2 * number + 1 for number, turn in enumerate(turns))


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_priority_orders_the_runs_of_a_tenant_and_takes_no_turn_of_another(python: str) -> None:
    """I35: a flood at the highest priority there is holds up the lowest of another no longer."""
    queue = ReadyQueue()
    for at in range(FLOOD):
        queue.push(UUID(int=100 + at), 0, "3.11", tenant_id=LOUD, priority=100)
    mine = [UUID(int=at) for at in range(50, 70)]
    for at, run_id in enumerate(mine):
        queue.push(run_id, 0, python, tenant_id=QUIET, priority=at - 100)
    taken = [queue.take(BOTH) for _ in range(40)]
    assert [(run_id, 0) for run_id in reversed(mine)] == [
        each for each in taken if each is not None and each[0] in mine
    ]


def test_the_highest_priority_of_a_tenant_is_first_whatever_it_needs() -> None:
    queue = flooded()
    queue.push(UUID(int=50), 0, "3.12", tenant_id=LOUD, priority=-1)
    queue.push(UUID(int=51), 0, "3.12", tenant_id=LOUD, priority=1)
    assert (UUID(int=51), 0) == queue.take(BOTH)
    assert (UUID(int=50), 0) not in [queue.take(BOTH) for _ in range(FLOOD)]
    assert (UUID(int=50), 0) == queue.take(BOTH)
    assert queue.take(BOTH) is None


@pytest.mark.parametrize("between_owners", [False, True])
def test_who_waits_for_two_needs_has_one_turn(*, between_owners: bool) -> None:
    """I35: a flood that waits for something else too is not first in each of its lines."""
    queue, quiet = ReadyQueue(), UUID(int=50)
    for at in range(FLOOD):
        for python in ("3.11", "3.12"):
            run_id = UUID(int=1_000 + 2 * at + (python == "3.12"))
            queue.push(run_id, 0, python, tenant_id=LOUD, owner=LOUD)
    tenant_id = LOUD if between_owners else QUIET
    for place in range(10):
        queue.push(quiet, place, "3.12", tenant_id=tenant_id, owner=QUIET)
    taken = [queue.take(BOTH) for _ in range(21)]
    assert [(quiet, place) for place in range(10)] == [
        each for each in taken if each is not None and each[0] == quiet
    ]


@pytest.mark.parametrize("seed", range(30))
def test_whoever_is_next_is_next_by_a_model(seed: int) -> None:
    """The tenant that was served longest ago, its highest priority, of that the owner likewise."""
    chance = random.Random(seed)
    queue, model = ReadyQueue(), dict[tuple[UUID, int], Whose]()
    served = dict[tuple[UUID, ...], int]()
    for now in range(1, 400):
        if chance.random() < 0.55:
            key = UUID(int=now), chance.randrange(9)
            whose = Whose(
                chance.choice(("3.11", "3.12")),
                UUID(int=chance.randrange(3)),
                UUID(int=chance.randrange(3)),
                chance.choice((-100, 0, 0, 100)),
            )
            queue.push(
                *key,
                whose.python,
                tenant_id=whose.tenant_id,
                owner=whose.owner,
                priority=whose.priority,
            )
            model[key] = whose
        elif chance.random() < 0.1 and model:
            gone = chance.choice(list(model))
            queue.forget(gone[0])
            del model[gone]
        else:
            pythons = frozenset(chance.sample(["3.11", "3.12"], chance.randint(1, 2)))
            found = queue.take(Offer(pythons=pythons))
            able = [each for each in model.values() if each.python in pythons]
            if not able:
                assert found is None
                continue
            assert found is not None
            mine = model.pop(found)
            assert mine.python in pythons
            longest = min(served.get((each.tenant_id,), 0) for each in able)
            assert longest == served.get((mine.tenant_id,), 0)
            able = [each for each in able if each.tenant_id == mine.tenant_id]
            assert mine.priority == max(each.priority for each in able)
            able = [each for each in able if each.priority == mine.priority]
            longest = min(served.get((each.tenant_id, each.owner), 0) for each in able)
            assert longest == served.get((mine.tenant_id, mine.owner), 0)
            served[mine.tenant_id,] = served[mine.tenant_id, mine.owner] = now
        assert len(model) == queue.size


def test_a_run_that_is_forgotten_leaves_nothing_of_its_tenant() -> None:
    queue = ReadyQueue()
    queue.push(UUID(int=50), 0, "3.11", tenant_id=QUIET)
    queue.push(UUID(int=50), 1, "3.12", tenant_id=QUIET, priority=3)
    queue.push(UUID(int=50), 2, "3.12", tenant_id=QUIET, alone=True)
    queue.forget(UUID(int=50))
    assert ({}, {}, 0) == (queue._by_need, queue._whose, queue.size)


@pytest.mark.parametrize("alone", [False, True])
def test_a_place_that_waits_by_itself_is_counted_taken_and_forgotten_like_any(
    *, alone: bool
) -> None:
    queue, run, other = ReadyQueue(), UUID(int=50), UUID(int=51)
    queue.push(run, 0, "3.11", tenant_id=QUIET)
    assert {"3.11": 1} == queue.waiting()
    assert queue.take(Offer(pythons=frozenset({"3.12"}))) is None
    queue.forget(other)
    assert 1 == queue.size
    queue.push(other, 1, "3.12", tenant_id=LOUD, alone=alone)
    assert {"3.11": 1, "3.12": 1} == queue.waiting()
    queue.forget(other)
    assert (run, 0) == queue.take(BOTH)
    queue.push(run, 2, "3.12", tenant_id=QUIET)
    queue.forget(run)
    assert (0, {}, None) == (queue.size, queue.waiting(), queue.take(BOTH))
    assert {} == queue._whose
