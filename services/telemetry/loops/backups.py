"""Loops that take scheduled and requested backups, and archive the WAL."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

from services.kit.loops import repeat
from services.telemetry.usecases.backups import Backups

_LOOK_S: Final = 60.0


async def take_backups(backups: Backups, stop: asyncio.Event) -> None:
    """Take scheduled and requested backups; an operation in progress at the stop is aborted."""

    async def step() -> float:
        if not backups.is_busy:
            await backups.look_at_schedule()
        await backups.do_asked()
        return _LOOK_S

    await _until(stop, repeat(stop, step, name="take_backups", wake=backups.asked))


async def archive_wal(backups: Backups, stop: asyncio.Event) -> None:
    """Keep the archiver running, restarting it after failures."""

    async def step() -> float:
        await backups.archive()
        return 0.0

    await _until(stop, repeat(stop, step, name="archive_wal"))


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run the work until stopped, and cancel it then, which ends its child process."""
    working = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for each in (working, stopped):
            each.cancel()
            with suppress(asyncio.CancelledError):
                await each
