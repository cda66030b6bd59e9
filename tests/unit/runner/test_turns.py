"""Short calls take turns: as many work as there are processors, and no call is lost."""

from __future__ import annotations

import asyncio
from typing import Final

from services.runner.usecases.interpreters import InterpreterPool
from services.runner.usecases.turns import PATIENCE_S
from tests.unit.runner.test_pool_size import Clock
from tests.unit.runner.test_waiting_calls import a_need, a_pool

SHORT_S: Final = 0.00005


async def idle(pool: InterpreterPool, version: int, count: int) -> None:
    """Have so many interpreters of a version, whose calls are known to be short."""
    for warm in [await pool.acquire(a_need(version)) for _ in range(count)]:
        pool.release(warm, worked_s=SHORT_S)


async def test_no_more_short_calls_work_at_once_than_there_are_processors() -> None:
    pool, spares = a_pool(processors=2, clock=Clock())  # on which no call takes long
    await idle(pool, 2, 4)
    at_work = [await pool.acquire(a_need()) for _ in range(2)]
    waiting = [asyncio.create_task(pool.acquire(a_need())) for _ in range(3)]
    await asyncio.sleep(0)
    assert {"idle": 2, "busy": 2, "starting": 0, "waiting": 3} == pool.census()
    for nth in range(3):
        released = at_work.pop(0)
        pool.release(released, worked_s=SHORT_S)
        at_work.append(await waiting[nth])
        assert released is at_work[-1], "the one used last is the warmest"
        assert 2 == pool.census()["busy"]
    assert 4 == spares.started
    for warm in at_work:
        pool.release(warm, worked_s=SHORT_S)
    assert 0 == pool.census()["waiting"]
    await pool.close()


async def test_whoever_waits_longest_has_the_next_turn_whatever_its_version() -> None:
    pool, _ = a_pool(processors=1, clock=Clock())
    await idle(pool, 2, 2)
    await idle(pool, 3, 1)
    at_work = await pool.acquire(a_need(2))
    order: list[int] = []

    async def call(version: int) -> None:
        warm = await pool.acquire(a_need(version))
        order.append(version)
        await asyncio.sleep(0)
        pool.release(warm, worked_s=SHORT_S)

    calls = [asyncio.create_task(call(version)) for version in (2, 3, 2, 3)]
    await asyncio.sleep(0)
    pool.release(at_work, worked_s=SHORT_S)
    async with asyncio.timeout(30):
        await asyncio.gather(*calls)
    assert [2, 3, 2, 3] == order
    await pool.close()


async def test_behind_calls_that_turn_out_long_nobody_waits() -> None:
    """Both that work go on and on; the others have a turn, and no interpreter more is started."""
    clock = Clock()
    pool, spares = a_pool(processors=2, clock=clock)
    await idle(pool, 2, 4)
    long = [await pool.acquire(a_need()) for _ in range(2)]
    clock.now += PATIENCE_S
    async with asyncio.timeout(30):
        others = [await pool.acquire(a_need()) for _ in range(2)]
    assert 4 == spares.started
    for warm in [*long, *others]:
        pool.release(warm, worked_s=SHORT_S)
    await pool.close()


async def test_long_calls_take_no_turns() -> None:
    pool, _ = a_pool(processors=1)
    for version in (2, 3):
        pool.release(await pool.acquire(a_need(version)), worked_s=0.3)
    both = [await pool.acquire(a_need(version)) for version in (2, 3)]
    assert 2 == pool.census()["busy"]
    for warm in both:
        pool.release(warm, worked_s=0.3)
    await pool.close()


async def test_one_that_ends_by_itself_gives_its_turn_back() -> None:
    pool, _ = a_pool(processors=1, clock=Clock())
    await idle(pool, 2, 2)
    at_work = await pool.acquire(a_need())
    waiting = asyncio.create_task(pool.acquire(a_need()))
    await asyncio.sleep(0)
    await at_work.sandbox.kill()
    pool.release(at_work, recycle=True)
    async with asyncio.timeout(30):
        other = await waiting
    assert other is not at_work
    pool.release(other, worked_s=SHORT_S)
    await pool.close()


async def test_a_call_that_is_taken_back_while_it_waits_leaves_nothing_behind() -> None:
    clock = Clock()
    pool, _ = a_pool(processors=1, clock=clock)
    await idle(pool, 2, 2)
    at_work = await pool.acquire(a_need())
    waiting = asyncio.create_task(pool.acquire(a_need()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert 0 == pool.census()["waiting"]
    pool.release(at_work, worked_s=SHORT_S)
    assert {"idle": 2, "busy": 0, "starting": 0, "waiting": 0} == pool.census()
    await pool.close()
