"""Waiting for events: the first of several, or the time, and nothing is left behind."""

from __future__ import annotations

import asyncio

from services.kit.loops import pause, wait_any, wait_either


async def test_the_first_of_several_events_wakes_who_waits() -> None:
    events = [asyncio.Event() for _ in range(3)]
    waiting = asyncio.create_task(wait_any(events))
    await asyncio.sleep(0)
    assert not waiting.done()
    events[1].set()
    async with asyncio.timeout(30):
        await waiting


async def test_two_that_are_set_in_one_turn_wake_who_waits_once() -> None:
    event, stop = asyncio.Event(), asyncio.Event()
    waiting = asyncio.create_task(wait_either(event, stop, None))
    await asyncio.sleep(0)
    event.set()
    stop.set()
    async with asyncio.timeout(30):
        await waiting


async def test_many_wait_for_the_same_event_and_all_wake() -> None:
    event, stop = asyncio.Event(), asyncio.Event()
    waiting = [asyncio.create_task(wait_either(event, stop, None)) for _ in range(5)]
    await asyncio.sleep(0)
    event.set()
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)


async def test_time_ends_a_wait_and_the_events_know_nothing_of_it_afterwards() -> None:
    event, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(30):
        await wait_either(event, stop, 0.01)
    assert not event._waiters
    assert not stop._waiters
    assert not await pause(stop, 0)


async def test_a_wait_that_is_cancelled_leaves_nothing_in_the_events() -> None:
    event, stop = asyncio.Event(), asyncio.Event()
    waiting = asyncio.create_task(wait_either(event, stop, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
    assert not event._waiters
    assert not stop._waiters


async def test_what_is_set_already_is_not_waited_for_and_others_get_a_turn() -> None:
    event = asyncio.Event()
    turns: list[int] = []
    event.set()
    asyncio.get_running_loop().call_soon(turns.append, 1)
    async with asyncio.timeout(30):
        await wait_any((event,))
    assert [1] == turns
