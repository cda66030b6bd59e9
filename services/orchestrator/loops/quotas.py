"""Ends the runs of tenants that used up their day. Quiet while none with a quota runs anything."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from services.kit.loops import pause, wait_either
from services.kit.pg import Pool, transaction
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import DATABASE_FAULTS
from services.orchestrator.storage import quota_usage

log = structlog.get_logger()

# How far behind it may be: so much longer a tenant uses what it has not.
_BEHIND_S: Final = 1.0


async def keep_quotas(engine: Engine, pool: Pool, stop: asyncio.Event) -> None:
    """Look at what tenants used, once a second while they use anything."""
    while not stop.is_set():
        await wait_either(engine.quota_charged, stop, None)
        if await pause(stop, _BEHIND_S):
            return
        engine.quota_charged.clear()
        try:
            await look_once(engine, pool)
        except DATABASE_FAULTS as error:
            log.warning("quotas_not_read", error=repr(error))
            engine.quota_charged.set()


async def look_once(engine: Engine, pool: Pool) -> None:
    """Hold what tenants used against what they may, once it is written."""
    ledger = engine.core.ledger
    tenants = set(ledger.charged)
    if not tenants or not await engine.journal.written():
        return
    async with transaction(pool) as db:
        used = await quota_usage.get_used(db, tenants)
    ledger.charged -= tenants
    engine.quotas_used(used)
