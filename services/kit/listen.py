"""Notifications of the database (NOTIFY) as events of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import asyncpg
import structlog

from services.kit.loops import pause, wait_either
from services.kit.pg import LINK_FAULTS

log = structlog.get_logger()

_CONNECT_S: Final = 5.0
_PAUSE_FIRST_S: Final = 0.5
_PAUSE_MAX_S: Final = 15.0


async def listen(
    url: str, events: Mapping[str, asyncio.Event], stop: asyncio.Event, *, application_name: str
) -> None:
    """Set an event whenever its channel is notified, until told to stop.

    Also after each reconnect, since notifications are not repeated. A connection that breaks
    silently is not detected, so waiters must poll now and then as well.
    """
    pause_s = 0.0
    while not stop.is_set():
        try:
            db = await asyncpg.connect(
                url,
                timeout=_CONNECT_S,
                server_settings={"application_name": application_name},
            )
        except (asyncpg.PostgresError, *LINK_FAULTS) as error:
            if not pause_s:
                log.warning("listener_not_connected", fault=type(error).__name__)
            pause_s = min(pause_s * 2 or _PAUSE_FIRST_S, _PAUSE_MAX_S)
            await pause(stop, pause_s)
            continue
        pause_s = 0.0
        await _attend(db, events, stop)


async def _attend(
    db: asyncpg.Connection[asyncpg.Record],
    events: Mapping[str, asyncio.Event],
    stop: asyncio.Event,
) -> None:
    closed = asyncio.Event()
    db.add_termination_listener(lambda _db: closed.set())
    try:
        for channel in events:
            await db.add_listener(channel, lambda _db, _pid, said, _text: events[said].set())
        for event in events.values():
            event.set()
        await wait_either(closed, stop, None)
    except (asyncpg.PostgresError, *LINK_FAULTS) as error:
        log.warning("listener_interrupted", fault=type(error).__name__)
    finally:
        db.terminate()
