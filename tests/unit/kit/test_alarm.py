"""A call that is put off, by the loop that services run on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from services.kit.alarm import Alarm

LOOPS = [uvloop.new_event_loop, asyncio.new_event_loop]


def on(loop: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await main()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("left_s", [-1.0, 0.0, 0.0001, 0.01])
def test_what_is_due_may_be_set_again_before_it_is_called(
    loop: Callable[[], asyncio.AbstractEventLoop], left_s: float
) -> None:
    """Handles of uvloop do not know when they are due, where that is at once."""

    async def main() -> None:
        alarm, rung = Alarm(), asyncio.Event()
        now = asyncio.get_running_loop().time()
        alarm.set(now + left_s, rung.set)
        alarm.set(now + left_s, rung.set)
        alarm.set(now + 100, rung.set)
        assert now + left_s == alarm.at
        async with asyncio.timeout(5):
            await rung.wait()
        assert alarm.at is None

    on(loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_call_is_brought_forward_and_made_once_or_not_at_all(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        alarm, soon, other = Alarm(), asyncio.Event(), asyncio.Event()
        now = asyncio.get_running_loop().time()
        alarm.set(now + 100, other.set)
        alarm.set(now, soon.set)
        async with asyncio.timeout(5):
            await soon.wait()
        assert alarm.at is None
        alarm.set(now, other.set)
        alarm.stop()
        soon.clear()
        alarm.set(now, soon.set)  # what comes first is due before it
        async with asyncio.timeout(5):
            await soon.wait()
        assert not other.is_set()

    on(loop, main)
