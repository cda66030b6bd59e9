"""The loop that renews the lease while there is work, and gives it up when there is none."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from services.kit.loops import pause, wait_either
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import DATABASE_FAULTS

log = structlog.get_logger()

_IDLE_AFTER_S: Final = 5.0


async def keep_lease(engine: Engine, stop: asyncio.Event) -> None:
    """Renew the member's lease while it has runs; raises `FencedError` when another took over."""
    member = engine.member
    idle_since: float | None = None
    while not stop.is_set():
        await wait_either(engine.work, stop, None)
        if stop.is_set():
            return
        busy = engine.busy()
        now = engine.now()
        idle_since = None if busy else idle_since or now
        try:
            if idle_since is not None and now - idle_since >= _IDLE_AFTER_S:
                engine.work.clear()
                if member.live:
                    await member.rest(unless=engine.busy)
                idle_since = None
                continue
            if member.live:  # also while idle for less than `_IDLE_AFTER_S`
                await member.renew()
        except DATABASE_FAULTS as error:
            log.warning("lease_not_renewed", error=repr(error))
        await pause(stop, member.heartbeat_s)
