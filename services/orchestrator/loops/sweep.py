"""The loops that find runners with expired leases, and node versions with a finished lock."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from services.kit import crash
from services.kit.loops import pause, wait_either
from services.kit.pg import Pool, transaction
from services.orchestrator.domain.records import Failure
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import DATABASE_FAULTS
from services.orchestrator.storage import definitions, members

log = structlog.get_logger()

_CALM_S: Final = 3.0
_WATCHFUL_S: Final = 0.5
_LOCKS_S: Final = 0.5


async def sweep_runners(engine: Engine, pool: Pool, stop: asyncio.Event) -> None:
    """Fence lost runners, so that their attempts go to others. Idle while nothing runs."""
    while not stop.is_set():
        if not any(runner.in_flight for runner in engine.core.runners.values()):
            await wait_either(engine.attempts_begun, stop, None)
        # Leases last far longer than this wait: attempts that end within it need no check.
        await wait_either(engine.sweep_now, stop, _WATCHFUL_S if engine.silent_since else _CALM_S)
        engine.attempts_begun.clear()
        engine.sweep_now.clear()
        if stop.is_set():
            return
        try:
            await sweep_once(engine, pool)
        except DATABASE_FAULTS as error:
            log.warning("sweep_failed", error=repr(error))


async def sweep_once(engine: Engine, pool: Pool) -> None:
    """Check the leases of the runners that have attempts, once."""
    holders = [each.incarnation for each in engine.core.runners.values() if each.in_flight]
    if not holders:
        return
    now = engine.now()
    silent = [
        each for each in holders if now - engine.silent_since.get(each, now) > engine.member.ttl_s
    ]
    async with transaction(pool) as db:
        lost = await members.lost_runners(db, holders, silent=silent)
    if lost:
        crash.reach("sweep_fenced")
    for incarnation, in_order in lost.items():
        if in_order:
            log.info("runner_left", incarnation=str(incarnation))
        else:
            runner = engine.core.runners.get(incarnation)
            attempts = len(runner.in_flight) if runner else 0
            log.warning("runner_lost", incarnation=str(incarnation), attempts=attempts)
        engine.lost(incarnation, in_order=in_order)


async def watch_locks(engine: Engine, pool: Pool, stop: asyncio.Event) -> None:
    """Poll for the locks that nodes wait for. Idle while none waits."""
    while not stop.is_set():
        waiting = list(engine.core.locks_pending)
        if not waiting:
            engine.locks_wanted.clear()
            await wait_either(engine.locks_wanted, stop, None)
            continue
        await pause(stop, _LOCKS_S)
        try:
            async with transaction(pool) as db:
                locks = await definitions.get_locks(db, waiting)
        except DATABASE_FAULTS as error:
            log.warning("locks_not_read", error=repr(error))
            continue
        for lock in locks:
            if lock.state in ("none", "locked"):
                engine.lock_known(lock.node_version_id, None)
            elif lock.state == "failed":
                message = f"the node's requirements cannot be met: {lock.error}"
                failure = Failure(error_type="dependency_error", message=message)
                engine.lock_known(lock.node_version_id, failure)
