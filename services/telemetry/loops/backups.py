"""Backups on a timer, one after the other, and the archive of what is committed between them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

from services.kit.loops import repeat
from services.telemetry.usecases.backups import Backups

_LOOK_S: Final = 60.0


async def take_backups(backups: Backups, stop: asyncio.Event) -> None:
    """Take what is due and what is asked for; what is under way at the end is left undone."""

    async def step() -> float:
        if not backups.is_busy:
            await backups.look_at_schedule()
        await backups.do_asked()
        return _LOOK_S

    await _until(stop, repeat(stop, step, name="take_backups", wake=backups.asked))


async def archive_wal(backups: Backups, stop: asyncio.Event) -> None:
    """Keep the archive running, again and again where it is interrupted."""

    async def step() -> float:
        await backups.archive()
        return 0.0

    await _until(stop, repeat(stop, step, name="archive_wal"))


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Do the work until told to stop; a child of it that runs then is ended."""
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
