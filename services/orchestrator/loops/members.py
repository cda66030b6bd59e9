"""The loops about other members: shards, attempts that belong elsewhere, and demand for runners.

Members are surveyed when one reports a change, when a lease ends, and once a minute.
"""

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
    """Survey the members, unless stopped: a stop hands all shards over, so nothing is taken."""
    await engine.journal.open()  # its connection receives the notifications of other members
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
    """Look up the owners of attempts that memory does not know. Idle while there are none."""
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
        # Else it is being loaded here or has no owner yet: its runner will report it again.


async def tell_demand(engine: Engine, stop: asyncio.Event) -> None:
    """Tell runners how many nodes wait here, so that they divide their slots among members.

    Sends nothing while this is the only member.
    """
    told = 0
    while not stop.is_set():
        await wait_either(engine.work, stop, None)
        if await pause(stop, _DEMAND_S):
            return
        # Rounded up to a power of two: smaller changes hardly move a share.
        waiting = 1 << engine.core.ready.size.bit_length() if engine.shards.peers else 0
        waiting = waiting if engine.core.ready.size else 0
        if waiting != told:
            told = waiting
            engine.tell_all(Demand(waiting))
