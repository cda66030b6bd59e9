"""The loop that looks results up in the cache and stores new ones. It never holds a run up."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from services.kit.loops import wait_either
from services.kit.pg import Pool, transaction
from services.orchestrator.domain.cache_queue import Answer
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import DATABASE_FAULTS
from services.orchestrator.storage import cached_results

log = structlog.get_logger()

_ASKS_MAX: Final = 256
_ASK_MAX_S: Final = 2.0  # after that, nodes run as if nothing was cached


async def keep_cache(engine: Engine, pool: Pool, stop: asyncio.Event) -> None:
    """Look up and store results. Idle while no node uses the cache."""
    while not stop.is_set():
        await wait_either(engine.cache_wanted, stop, None)
        engine.cache_wanted.clear()
        if not stop.is_set():
            await answer_once(engine, pool)
            await keep_once(engine, pool)


async def answer_once(engine: Engine, pool: Pool) -> None:
    """Answer the pending lookups; if the database fails, as misses."""
    asks = engine.core.cache.take(_ASKS_MAX)
    if not asks:
        return
    try:
        async with asyncio.timeout(_ASK_MAX_S), transaction(pool) as db:
            answers = await cached_results.find(db, asks)
    except DATABASE_FAULTS as error:
        log.warning("cache_not_asked", error=repr(error))
        answers = [Answer(ask, None, None) for ask in asks]
    engine.cache_answered(answers)


async def keep_once(engine: Engine, pool: Pool) -> None:
    """Store newly committed results; if that fails they are dropped."""
    kept, engine.cache_kept = engine.cache_kept[:_ASKS_MAX], engine.cache_kept[_ASKS_MAX:]
    if engine.cache_kept:
        engine.cache_wanted.set()
    if not kept:
        return
    try:
        async with asyncio.timeout(_ASK_MAX_S), transaction(pool) as db:
            await cached_results.keep(db, kept)
    except DATABASE_FAULTS as error:
        log.warning("results_not_cached", count=len(kept), error=repr(error))
