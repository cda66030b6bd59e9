"""How many interpreters there are: as many as calls need, within bounds, none that is worn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from services.runner.domain.limits import MIB
from services.runner.domain.pooling import AGE_MAX_S, IDLE_MAX_S, USES_MAX
from services.runner.usecases.interpreters import InterpreterPool
from services.runner.usecases.warm import Warm
from tests.unit.runner.test_waiting_calls import a_need, a_pool


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def taken(pool: InterpreterPool, *versions: int) -> list[Warm]:
    return [await pool.acquire(a_need(each)) for each in versions]


async def ended(warm: Warm) -> None:
    async with asyncio.timeout(30):
        while warm.sandbox.alive():  # noqa: ASYNC110 - a task of the pool's ends it
            await asyncio.sleep(0)


async def test_there_are_as_many_as_calls_at_once_and_they_go_when_nobody_needs_them() -> None:
    clock = Clock()
    pool, _ = a_pool(clock=clock)
    at_work = await taken(pool, 2, 3, 4)
    assert 3 == pool.sandboxes
    for warm in at_work:
        clock.now += 10
        pool.release(warm)
    assert {"idle": 3, "busy": 0, "starting": 0, "waiting": 0} == pool.census()
    clock.now += IDLE_MAX_S - 20  # since the first one was used: so long
    for warm in at_work[:2]:
        assert 10 == await pool.shrink()
        await ended(warm)
        clock.now += 10
    assert 1 == pool.sandboxes
    assert await pool.shrink() is None
    assert 0 == pool.sandboxes
    await pool.close()


async def test_one_that_is_used_again_is_kept() -> None:
    clock = Clock()
    pool, spares = a_pool(clock=clock)
    for _ in range(3):
        [warm] = await taken(pool, 2)
        clock.now += IDLE_MAX_S - 1
        pool.release(warm)
        clock.now += IDLE_MAX_S - 1
        await pool.shrink()
    assert (1, 1, 3) == (spares.started, pool.sandboxes, warm.uses)
    await pool.close()


async def test_where_there_are_enough_the_one_that_was_used_the_longest_ago_makes_room() -> None:
    pool, spares = a_pool(sandboxes_max=2)
    first, second = await taken(pool, 2, 3)
    pool.release(second)
    pool.release(first)
    [third] = await taken(pool, 4)
    await ended(second)
    assert (2, 3) == (pool.sandboxes, spares.started)
    assert [True, True] == [first.sandbox.alive(), third.sandbox.alive()]
    waiting = asyncio.create_task(pool.acquire(a_need(5)))
    assert first is await pool.acquire(a_need(2))
    await asyncio.sleep(0)
    assert not waiting.done(), "both are at work"
    pool.release(third)
    async with asyncio.timeout(30):
        pool.release(await waiting)
    assert (2, False) == (pool.sandboxes, third.sandbox.alive())
    pool.release(first)
    await pool.close()


def _used_often(warm: Warm, _: Clock) -> None:
    warm.uses = USES_MAX


def _of_age(_: Warm, clock: Clock) -> None:
    clock.now += AGE_MAX_S + 1


def _large(warm: Warm, _: Clock) -> None:
    warm.memory_peak_bytes = warm.key.limits.memory_bytes - MIB


@pytest.mark.parametrize("wear", [_used_often, _of_age, _large])
async def test_one_that_is_worn_out_ends_after_its_call(
    wear: Callable[[Warm, Clock], None],
) -> None:
    clock = Clock()
    pool, spares = a_pool(clock=clock)
    [warm] = await taken(pool, 2)
    warm.born = clock.now
    wear(warm, clock)
    pool.release(warm)
    await ended(warm)
    [other] = await taken(pool, 2)
    assert other is not warm
    assert 2 == spares.started
    pool.release(other)
    await pool.close()
