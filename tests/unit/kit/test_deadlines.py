"""Deadlines: one timer for all calls, and none of them is told late or for nothing."""

from __future__ import annotations

import asyncio
import time

from services.kit.deadlines import Deadlines


class Told:
    """What was told, and a signal for each."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._more = asyncio.Event()
        self._deadlines = Deadlines[str](self._take)

    def begin(self, call: str, seconds: float) -> None:
        self._deadlines.begin(call, time.monotonic() + seconds)

    def end(self, call: str) -> None:
        self._deadlines.end(call)

    def _take(self, call: str) -> None:
        self.calls.append(call)
        self._more.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.calls) < count:
                self._more.clear()
                await self._more.wait()


async def test_calls_that_take_too_long_are_told_in_the_order_of_their_deadlines() -> None:
    told = Told()
    for call, seconds in (("late", 0.03), ("early", 0.01), ("never", 60.0)):
        told.begin(call, seconds)
    await told.until(2)
    assert ["early", "late"] == told.calls


async def test_who_ended_in_time_is_never_told_and_holds_up_nobody() -> None:
    told = Told()
    told.begin("first", 0.01)
    told.begin("second", 0.02)
    told.end("first")
    await told.until(1)
    assert ["second"] == told.calls


async def test_a_call_may_begin_while_another_is_told() -> None:
    told = Told()
    told.begin("first", 0.0)
    await told.until(1)
    told.begin("second", 0.0)
    await told.until(2)
    assert ["first", "second"] == told.calls
