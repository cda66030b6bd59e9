"""Placing: watches what waits at each orchestrator, and has runners started for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Final

import structlog

from services.kit.loops import pause, wait_either
from services.runner.domain.placing import Machine, Waiting
from services.runner.gateways.attach import StreamLost
from services.runner.usecases.placement import Machines, Placement

log = structlog.get_logger()

_LOOK_S: Final = 0.25
_AGAIN_S: Final = 1.0
# Poll interval: machines only determine which runs are refused, so this is not urgent.
_MACHINES_S: Final = 5.0

Watch = Callable[[str, Sequence[Machine]], AsyncIterator[Mapping[Waiting, int]]]


async def place_runners(
    placement: Placement,
    engine: Machines,
    watch: Watch,
    addresses: Sequence[str],
    stop: asyncio.Event,
) -> None:
    """Keep as many runners as the waiting work needs, until stopped; the runners continue then."""
    async with asyncio.TaskGroup() as tasks:
        for address in addresses:
            tasks.create_task(_hear(placement, engine, watch, address, stop))
        while not stop.is_set():
            await wait_either(placement.changed, stop, _LOOK_S if placement.restless else None)
            placement.changed.clear()
            if not stop.is_set():
                await placement.look()
            await pause(stop, _LOOK_S)


async def _hear(
    placement: Placement, engine: Machines, watch: Watch, address: str, stop: asyncio.Event
) -> None:
    """Watch one orchestrator; again whenever the machines change or the stream is lost."""
    while not stop.is_set():
        machines = await engine.machines()
        listening = asyncio.create_task(_listen(placement, watch, address, machines))
        stopping = asyncio.create_task(stop.wait())
        changing = asyncio.create_task(_changed(engine, machines))
        try:
            await asyncio.wait({listening, stopping, changing}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                listening.result()
        except StreamLost as lost:
            log.warning("demand_unknown", orchestrator=address, cause=str(lost)[:200])
            placement.forget(address)
            await pause(stop, _AGAIN_S)
        finally:
            for task in (listening, stopping, changing):
                task.cancel()
            await asyncio.gather(listening, changing, return_exceptions=True)


async def _listen(
    placement: Placement, watch: Watch, address: str, machines: Sequence[Machine]
) -> None:
    async for waiting in watch(address, machines):
        placement.hear(address, waiting)
    raise StreamLost("it ended")


async def _changed(engine: Machines, machines: Sequence[Machine]) -> None:
    """Return once the machines have changed."""
    while await engine.machines() == machines:  # noqa: ASYNC110 - Ray has no event for it
        await asyncio.sleep(_MACHINES_S)


async def leave_when_idle(
    busy: Callable[[], tuple[bool, int]], idle_s: float, stop: asyncio.Event
) -> None:
    """Stop this runner after being idle for `idle_s`; `busy` returns if, and how much was done."""
    if not idle_s:
        await stop.wait()
        return
    loop = asyncio.get_running_loop()
    since, before = loop.time(), -1
    while not await pause(stop, min(1.0, idle_s / 4)):
        now, done = busy()
        if now or done != before:
            since, before = loop.time(), done
        elif loop.time() - since >= idle_s:
            log.info("runner_idle", idle_s=idle_s)
            stop.set()
