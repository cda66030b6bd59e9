"""What all loops of a service share: repeating, waiting, and surviving database outages."""

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
    """Wait for `seconds` or until `stop` is set; return whether it is."""
    await wait_any((stop,), seconds)
    return stop.is_set()


async def wait_either(event: asyncio.Event, stop: asyncio.Event, seconds: float | None) -> None:
    """Wait for an event, for `stop`, or until `seconds` have passed."""
    await wait_any((event, stop), seconds)


async def wait_any(events: Sequence[asyncio.Event], seconds: float | None = None) -> None:
    """Wait for any of some events, or until `seconds` have passed; always yields to the loop.

    One future waits for all events: a task per event would cost ten times as much, and every loop
    of a service waits like this.
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
    """Repeat a step, which returns how many seconds to wait until the next one.

    Setting `wake` starts the next step early; it is cleared as a step begins.

    While the database is unusable the step is retried with backoff, and the outage is logged once;
    any other error is a bug, and ends the process.
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
                # A broken connection shows in many ways; a loop can always retry.
                fault = Unavailable("DATABASE_UNAVAILABLE", f"{type(error).__name__} on the way")
            if not isinstance(fault, Unavailable | Conflict | ResourceExhausted):
                raise
            if not outage_s:
                log.warning("loop_interrupted", loop=name, reason=fault.reason)
            outage_s = min(outage_s * 2 or _PAUSE_FIRST_S, _PAUSE_MAX_S)
            # Jitter: not all waiting loops should come back at the same moment.
            wait_s = outage_s * random.uniform(0.5, 1.0)  # noqa: S311  # not a secret
        else:
            if outage_s:
                log.info("loop_resumed", loop=name)
            outage_s = 0.0
        if wake is None or outage_s:
            await pause(stop, wait_s)
        else:
            await wait_either(wake, stop, wait_s)
