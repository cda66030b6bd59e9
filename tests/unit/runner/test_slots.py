"""Slots: calls that may meet take one together, and more of them are asked for as they come."""

from __future__ import annotations

import asyncio

from services.runner.usecases.slots import Slots


async def sit(slots: Slots, kind: str, seats: int, leave: asyncio.Event) -> None:
    async with slots.seat(kind, seats=seats):
        await leave.wait()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_calls_of_one_kind_take_a_slot_for_as_many_as_sit_there() -> None:
    slots, leave = Slots(2, on_change=lambda: None), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(6):
            tasks.create_task(sit(slots, "a", 3, leave))
        await settled()
        assert slots.full(), "six of three seats each fill two slots"
        late = tasks.create_task(sit(slots, "a", 3, leave))
        await settled()
        assert not late.done()
        leave.set()
    assert not slots.full()
    assert 0 == slots.more()


async def test_a_slot_is_free_again_when_its_last_has_left() -> None:
    slots, first, second = Slots(1, on_change=lambda: None), asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        one = tasks.create_task(sit(slots, "a", 2, first))
        tasks.create_task(sit(slots, "a", 2, second))
        other = tasks.create_task(sit(slots, "b", 2, second))
        await settled()
        first.set()
        await one
        await settled()
        assert not other.done()
        assert slots.full()
        second.set()


async def test_who_waits_for_a_slot_and_gives_up_leaves_none_behind() -> None:
    slots, leave = Slots(1, on_change=lambda: None), asyncio.Event()
    await slots.take()
    waiting = asyncio.create_task(sit(slots, "a", 4, leave))
    await settled()
    waiting.cancel()
    await settled()
    slots.leave()
    assert not slots.full()
    async with slots.seat("a", seats=4):
        assert slots.full()


async def test_what_may_be_granted_doubles_while_it_is_taken_up() -> None:
    told: list[int] = []
    slots = Slots(1, on_change=lambda: told.append(slots.more()))
    leave = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(sit(slots, "a", 8, leave))
            await settled()
        # Beside the slot itself: who sits with the first, and as many again while there are seats.
        assert [1, 3, 5, 7, 7, 7, 7, 7] == told
        leave.set()


async def test_who_comes_while_nothing_is_free_stands_in_one_line() -> None:
    slots, leave = Slots(1, on_change=lambda: None), asyncio.Event()
    begun: list[str] = []

    def call(name: str) -> bool:
        begun.append(name)
        return True

    async with asyncio.TaskGroup() as tasks:
        slots.enter(lambda: call("first"))
        slots.enter(lambda: call("second"))
        seated = tasks.create_task(sit(slots, "a", 4, leave))
        await settled()
        slots.enter(lambda: call("third"))
        assert ["first"] == begun
        slots.leave()
        slots.leave()
        await settled()
        assert (["first", "second"], False) == (begun, seated.done())
        leave.set()
    assert ["first", "second", "third"] == begun
    slots.leave()
    assert not slots.full()


async def test_a_slot_passes_by_who_is_not_wanted_any_more() -> None:
    slots = Slots(1, on_change=lambda: None)
    await slots.take()
    slots.enter(lambda: False)
    waiting = asyncio.create_task(slots.take())
    given_up = asyncio.create_task(slots.take())
    await settled()
    waiting.cancel()
    slots.leave()
    await given_up
    assert slots.full()
    slots.leave()
    assert not slots.full()
