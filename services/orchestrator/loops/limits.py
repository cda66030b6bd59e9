"""The loop that acquires slots of limits for what waits for them, and releases unused ones."""

from __future__ import annotations

import asyncio
import random
from typing import Final
from uuid import UUID

import asyncpg
import structlog

from services.kit.ids import uuid7
from services.kit.loops import pause, wait_either
from services.kit.pg import Pool, transaction
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import DATABASE_FAULTS
from services.orchestrator.storage import limit_slots
from services.orchestrator.storage.flush import FENCED
from services.orchestrator.usecases.limits import read_limits

log = structlog.get_logger()

_CLAIMS_MAX: Final = 256
_AGAIN_S: Final = 0.5
# While something waits, slots that nobody will release are swept: those of a dead member, say.
_SWEEP_S: Final = 5.0
# How long a member that released slots lets others take them first, on average.
_YIELD_S: Final = 0.005


async def keep_limits(engine: Engine, pool: Pool, stop: asyncio.Event) -> None:
    """Acquire and release slots. Runs no statement while nothing waits; raises `FencedError`."""
    swept_at = engine.now()
    while not stop.is_set():
        await wait_either(engine.limits_wanted, stop, _wait_s(engine, swept_at))
        engine.limits_wanted.clear()
        if stop.is_set():
            return
        try:
            if engine.limits_changed:
                await read_limits(engine, pool)
            if engine.core.limited.size and engine.now() >= swept_at + _SWEEP_S:
                swept_at = engine.now()
                await _sweep(engine, pool)
            await give_back(engine, pool)
            await _tell(engine, pool)
            engine.core.limited.ripen(engine.now())
            while await take_once(engine, pool):
                pass
        except DATABASE_FAULTS as error:
            log.warning("limits_not_kept", error=repr(error))
            engine.limits_wanted.set()
            if await pause(stop, _AGAIN_S):
                return


def _wait_s(engine: Engine, swept_at: float) -> float | None:
    limited = engine.core.limited
    if not limited.size:
        return None
    at = swept_at + _SWEEP_S
    if limited.next_due is not None:
        at = min(at, limited.next_due)
    return max(0.0, at - engine.now())


async def take_once(engine: Engine, pool: Pool) -> bool:
    """Request slots once; returns whether there was anything to request."""
    core = engine.core
    claims = core.limited.ask(_CLAIMS_MAX, uuid7)
    if not claims:
        return False
    try:
        fence = await engine.member.ensure_live(False)  # no forced renewal
        if fence.epoch != core.epoch:
            return False  # memory is about to be reloaded, and nobody would release these slots
        async with transaction(pool) as db:
            answers = await limit_slots.take(db, fence.member_id, fence.epoch, claims)
    except BaseException as error:
        for claim in claims:
            core.limited.unanswered(claim)
        if isinstance(error, asyncpg.PostgresError) and error.sqlstate == FENCED:
            await engine.member.ensure_live(True)  # raises if this member is fenced
        raise
    if core is not engine.core:  # memory was reloaded meanwhile: release these
        engine.core.limited.abandoned.extend(slot for claim in claims for slot in claim.slots)
        return True
    now = engine.now()
    taken = []
    for claim, answer in zip(claims, answers, strict=True):
        if answer.refused_by is None:
            taken.append(claim)
            continue
        at = None if answer.wait_ms is None else now + answer.wait_ms / 1000
        core.limited.refused(claim, answer.refused_by, at=at)
    engine.slots_taken(taken)
    return True


async def give_back(engine: Engine, pool: Pool) -> None:
    """Release slots that nothing was started with, once no queued flush can refer to them."""
    limited = engine.core.limited
    if not limited.abandoned:
        return
    slots, limited.abandoned = limited.abandoned, []
    if not await engine.journal.written():
        return  # the epoch has ended: the sweep frees its slots
    try:
        async with transaction(pool) as db:
            freed = await limit_slots.give_back(db, slots)
    except BaseException:
        engine.core.limited.abandoned.extend(slots)
        raise
    _free(engine, freed)


async def _sweep(engine: Engine, pool: Pool) -> None:
    async with transaction(pool) as db:
        freed = await limit_slots.sweep(db)
    if freed:
        log.warning("limit_slots_swept", limits=len(freed))
    _free(engine, freed)
    engine.core.limited.stir()


def _free(engine: Engine, freed: set[UUID]) -> None:
    for each in freed:
        engine.core.limited.stir(each)
    engine.limits_freed |= freed


async def _tell(engine: Engine, pool: Pool) -> None:
    """Notify other members of released slots, and give them a chance to take some first."""
    freed, engine.limits_freed = engine.limits_freed, set()
    if not freed or not engine.shards.peers:
        return
    async with transaction(pool) as db:
        await limit_slots.tell_freed(db, engine.member.id, freed)
    await asyncio.sleep(_YIELD_S * random.uniform(0, 2))  # noqa: S311
