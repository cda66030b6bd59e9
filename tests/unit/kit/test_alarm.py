"""An alarm goes off once, at the earliest time that it was set to, on any loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from services.kit.alarm import Alarm

_LOOPS = pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])


@_LOOPS
def test_one_that_goes_off_at_once_can_be_set_again_before_it_does(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """A call that uvloop makes at its next turn has a handle that knows no time."""
    alarm, rung = Alarm(), list[str]()

    async def set_twice() -> None:
        now = asyncio.get_running_loop().time()
        alarm.by(now, lambda: rung.append("at once"))
        alarm.by(now + 60.0, lambda: rung.append("later"))
        alarm.by(now - 1.0, lambda: rung.append("before"))
        async with asyncio.timeout(30):
            while not rung:  # noqa: ASYNC110  # nothing to wait for but turns of the loop
                await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(set_twice())
    assert ["before"] == rung
    assert alarm.at is None


@_LOOPS
def test_one_that_is_cancelled_calls_nothing_and_can_be_set_again(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    alarm, rung = Alarm(), list[str]()

    async def cancel_and_set() -> None:
        now = asyncio.get_running_loop().time()
        alarm.by(now, lambda: rung.append("cancelled"))
        alarm.cancel()
        alarm.by(now + 0.001, lambda: rung.append("set"))
        async with asyncio.timeout(30):
            while not rung:  # noqa: ASYNC110
                await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(cancel_and_set())
    assert ["set"] == rung
