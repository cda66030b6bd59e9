"""A look at what is due, for loops that sleep until notified: a notification may be lost."""

from __future__ import annotations

import asyncio

from services.kit.pg import Db
from services.orchestrator.storage import agenda


async def glance(schedules: asyncio.Event, events: asyncio.Event, db: Db) -> None:
    """Wake those loops that have something to do."""
    schedules_due, events_due = await agenda.due(db)
    if schedules_due:
        schedules.set()
    if events_due:
        events.set()
