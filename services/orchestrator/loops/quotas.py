"""The loop that ends runs of tenants with no quota left today. Idle while no quota is charged."""

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

# How long usage may exceed a quota before its runs are ended.
_BEHIND_S: Final = 1.0


async def keep_quotas(engine: Engine, pool: Pool, stop: asyncio.Event) -> None:
    """Check the usage of tenants, once a second while any quota is charged."""
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
    """Compare the usage of tenants with their quotas, after it is committed."""
    ledger = engine.core.ledger
    tenants = set(ledger.charged)
    if not tenants or not await engine.journal.written():
        return
    async with transaction(pool) as db:
        used = await quota_usage.get_used(db, tenants)
    ledger.charged -= tenants
    engine.quotas_used(used)
