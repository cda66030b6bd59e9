"""Whose turn it is where more wants to run than runners take."""

from __future__ import annotations

from uuid import UUID

import pytest

from services.orchestrator.domain.credits import ReadyQueue
from services.orchestrator.domain.needs import Offer

BOTH = Offer(pythons=frozenset({"3.11", "3.12"}))
LOUD, QUIET = UUID(int=1), UUID(int=2)
FLOOD = 1_000


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


def test_priority_stands_before_turns() -> None:
    queue = flooded()
    queue.push(UUID(int=50), 0, "3.12", tenant_id=QUIET, priority=-1)
    queue.push(UUID(int=51), 0, "3.12", tenant_id=LOUD, priority=1)
    assert (UUID(int=51), 0) == queue.take(BOTH)
    rest = [queue.take(BOTH) for _ in range(FLOOD)]
    assert (UUID(int=50), 0) not in rest
    assert (UUID(int=50), 0) == queue.take(BOTH)
    assert queue.take(BOTH) is None


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
