"""Retry locks that could not be resolved at once; idle while there are none."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import structlog

from services.kit.errors import QflowError
from services.kit.pg import translate
from services.registry.usecases.locks import Locks

log = structlog.get_logger()

# Locks of other replicas or of dead processes are found by polling.
_SWEEP_S: Final = 300.0
_WAIT_MIN_S: Final = 0.5


async def make_locks(locks: Locks, stop: asyncio.Event) -> None:
    """Resolve pending locks when they are due, until stopped."""
    stopped = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            locks.wake.clear()
            wait_s = await _round(locks)
            woken = asyncio.create_task(locks.wake.wait())
            await asyncio.wait(
                {stopped, woken}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
            )
            woken.cancel()
    finally:
        stopped.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopped
        await locks.close()


async def _round(locks: Locks) -> float:
    try:
        next_s = await locks.resolve_due()
    except (QflowError, OSError) as error:
        log.warning("locks_not_looked_at", fault=str(error))
        return _SWEEP_S
    except Exception as error:
        if translate(error) is None:
            raise
        log.warning("locks_not_looked_at", fault=type(error).__name__)
        return _SWEEP_S
    return _SWEEP_S if next_s is None else min(_SWEEP_S, max(_WAIT_MIN_S, next_s))
