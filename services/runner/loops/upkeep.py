"""Upkeep: the lease, idle interpreters, the bytes of deleted files."""

from __future__ import annotations

import asyncio
import time
from itertools import count
from typing import Final

import structlog

from services.kit.pg import Pool
from services.runner.gateways.file_port import FileBytes
from services.runner.loops.attach import Streams
from services.runner.usecases.desk import Desk
from services.runner.usecases.files import (
    anything_to_sweep,
    give_up_expired,
    remove_deleted,
    remove_unknown,
)
from services.runner.usecases.interpreters import InterpreterPool
from services.runner.usecases.membership import Membership
from services.runner.usecases.patience import passing
from services.runner.usecases.reaping import Reaper

log = structlog.get_logger()

_IDLE_CHECK_S: Final = 30.0
_FILES_CHECK_S: Final = 60.0
_CONTAINERS_CHECK_S: Final = 60.0
_ROWS_EVERY: Final = 5  # compare rows every fifth time: that needs a query
_UNKNOWN_CHECK_S: Final = 6 * 3600.0
_UNKNOWN_AGE_S: Final = 24 * 3600.0


async def keep_lease(
    membership: Membership,
    desk: Desk,
    pool: InterpreterPool,
    streams: Streams,
    stop: asyncio.Event,
) -> None:
    """Renew the lease while attempts run; when it is lost, end everything of this incarnation."""

    async def on_lost() -> None:
        desk.abandon_all()
        await pool.kill_all()
        await streams.reset()

    await membership.keep(stop, busy=desk.busy, on_lost=on_lost)


async def shrink_pool(pool: InterpreterPool, stop: asyncio.Event) -> None:
    """End interpreters that have been idle for a while."""
    while not stop.is_set():
        left_s = await pool.shrink()
        await _wait(stop, _IDLE_CHECK_S if left_s is None else max(left_s, 0.5))


async def sweep_files(database: Pool, store: FileBytes, stop: asyncio.Event) -> None:
    """Delete expired uploads, and remove the bytes of deleted files."""
    while not stop.is_set():
        try:
            if await anything_to_sweep(database):
                while await give_up_expired(database):
                    pass
                while await remove_deleted(database, store):
                    pass
        except Exception as problem:
            if not passing(problem):
                raise
            log.warning("files_not_swept", fault=type(problem).__name__)
        await _wait(stop, _FILES_CHECK_S)


async def reap_containers(reaper: Reaper, stop: asyncio.Event) -> None:
    """Remove sandboxes without a row, and close rows without a sandbox."""
    for look in count():
        if stop.is_set():
            return
        try:
            await reaper.look(rows=look % _ROWS_EVERY == 0)
        except Exception as problem:
            if not passing(problem):
                raise
            log.warning("containers_not_compared", fault=type(problem).__name__)
        await _wait(stop, _CONTAINERS_CHECK_S)


async def sweep_unknown(database: Pool, store: FileBytes, stop: asyncio.Event) -> None:
    """Remove files without a row, left by killed processes, when they are a day old."""
    while not stop.is_set():
        try:
            await remove_unknown(database, store, before_s=time.time() - _UNKNOWN_AGE_S)
        except Exception as problem:
            if not passing(problem):
                raise
            log.warning("files_not_swept", fault=type(problem).__name__)
        await _wait(stop, _UNKNOWN_CHECK_S)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
