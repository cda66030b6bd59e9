"""What every loop of a service does: work, wait, and outlive the database's absence."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal

import structlog

from services.kit.errors import Conflict, QflowError, ResourceExhausted, Unavailable
from services.kit.pg import LINK_FAULTS, translate

log = structlog.get_logger()

_PAUSE_FIRST_S: Final = 0.5
_PAUSE_MAX_S: Final = 15.0


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Wait that long or until told to stop; returns whether to stop."""
    await wait_any((stop,), seconds)
    return stop.is_set()


async def wait_either(event: asyncio.Event, stop: asyncio.Event, seconds: float | None) -> None:
    """Wait for an event, the end, or the time."""
    await wait_any((event, stop), seconds)


async def wait_any(events: Sequence[asyncio.Event], seconds: float | None = None) -> None:
    """Wait for any of some events, or the time; others get a turn even where nothing is waited for.

    One future stands in the queues of all: a task for each event would cost ten times as much, and
    every loop of a service waits so.
    """
    for event in events:
        if event.is_set():
            await asyncio.sleep(0)
            return
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[Literal[True]] = loop.create_future()
    queues = [event._waiters for event in events]  # noqa: SLF001  # what its own wait() does
    for queue in queues:
        queue.append(woken)
    timer = None if seconds is None else loop.call_later(seconds, _wake, woken)
    try:
        await woken
    finally:
        if timer is not None:
            timer.cancel()
        for queue in queues:
            queue.remove(woken)


def _wake(waiting: asyncio.Future[Literal[True]]) -> None:
    if not waiting.done():
        waiting.set_result(True)


async def repeat(
    stop: asyncio.Event,
    step: Callable[[], Awaitable[float]],
    *,
    name: str,
    wake: asyncio.Event | None = None,
) -> None:
    """Do a step again and again; it returns how many seconds to wait until the next.

    With `wake` the next one also comes when that is set, which the step's beginning clears.

    While the database cannot be used the step is tried again, ever more seldom, and the outage is
    logged once; any other fault is a mistake of ours and ends the process, loudly.
    """
    outage_s = 0.0
    while not stop.is_set():
        if wake is not None:
            wake.clear()
        try:
            wait_s = await step()
        except Exception as error:
            fault = error if isinstance(error, QflowError) else translate(error)
            if fault is None and isinstance(error, LINK_FAULTS):
                # A link that broke in the middle shows in many ways; a loop tries again after all.
                fault = Unavailable("DATABASE_UNAVAILABLE", f"{type(error).__name__} on the way")
            if not isinstance(fault, Unavailable | Conflict | ResourceExhausted):
                raise
            if not outage_s:
                log.warning("loop_interrupted", loop=name, reason=fault.reason)
            outage_s = min(outage_s * 2 or _PAUSE_FIRST_S, _PAUSE_MAX_S)
            # Spread out: all that wait for the database should not come back as one.
            wait_s = outage_s * random.uniform(0.5, 1.0)  # noqa: S311  # not a secret
        else:
            if outage_s:
                log.info("loop_resumed", loop=name)
            outage_s = 0.0
        if wake is None or outage_s:
            await pause(stop, wait_s)
        else:
            await wait_either(wake, stop, wait_s)
