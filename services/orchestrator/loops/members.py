"""The members: looked at when one tells of a change, when a lease ends, and once a minute."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final
from uuid import UUID

import structlog

from services.kit.loops import pause, wait_either
from services.kit.pg import Pool, transaction
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import DATABASE_FAULTS
from services.orchestrator.engine.streams import Demand
from services.orchestrator.storage import shards
from services.orchestrator.usecases.balance import look

log = structlog.get_logger()

_AGAIN_S: Final = 1.0
_DEMAND_S: Final = 0.25


async def keep_share(engine: Engine, stop: asyncio.Event) -> None:
    """Keep this member's share of the shards; raises `FencedError` when another took over."""
    while not stop.is_set():
        engine.shards.look.clear()
        try:
            wait_s = await _unless_stopped(engine, stop)
        except DATABASE_FAULTS as error:
            log.warning("members_not_seen", error=repr(error))
            wait_s = _AGAIN_S
        await wait_either(engine.shards.look, stop, wait_s)


async def _unless_stopped(engine: Engine, stop: asyncio.Event) -> float:
    """Look, but do not wait for a journal that nobody can write: a stop gives all shards away."""
    await engine.journal.open()  # which hears what others tell
    looking = asyncio.create_task(look(engine))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({looking, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return await looking if looking.done() else 0.0
    finally:
        stopping.cancel()
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def judge_strays(engine: Engine, pool: Pool, stop: asyncio.Event) -> None:
    """Say of attempts that memory does not know whose they are. Quiet when there are none."""
    while not stop.is_set():
        await wait_either(engine.strays.found, stop, None)
        strays = engine.strays.take()
        if not strays:
            continue
        try:
            await _judge(engine, pool, strays)
        except DATABASE_FAULTS as error:
            log.warning("strays_not_judged", error=repr(error))
            for (runner, ref), token in strays.items():
                engine.strays.add(runner, ref, token)
            await pause(stop, _AGAIN_S)


async def _judge(engine: Engine, pool: Pool, strays: Mapping[tuple[UUID, UUID], int]) -> None:
    async with transaction(pool) as db:
        held = await shards.held(db, {ref for _, ref in strays})
    for (runner, ref), token in strays.items():
        found = held.get(ref)
        if found is None or found.runner != runner:
            engine.superseded(runner, ref, token)
        elif found.owner is not None and found.owner != engine.member.id:
            engine.elsewhere(runner, ref, token, found.owner)
        # Else it is being loaded here, or nobody has it yet: its runner will be asked again.


async def tell_demand(engine: Engine, stop: asyncio.Event) -> None:
    """Tell runners how much waits here, by which they share their slots. Quiet when alone."""
    told = 0
    while not stop.is_set():
        await wait_either(engine.work, stop, None)
        if await pause(stop, _DEMAND_S):
            return
        # In steps of two: a little more or less changes no share that matters.
        waiting = 1 << engine.core.ready.size.bit_length() if engine.shards.peers else 0
        waiting = waiting if engine.core.ready.size else 0
        if waiting != told:
            told = waiting
            engine.tell_all(Demand(waiting))
