"""A periodic check of what is due, since the notifications that wake loops may be lost."""

from __future__ import annotations

import asyncio

from services.kit.pg import Db
from services.orchestrator.storage import agenda


async def glance(schedules: asyncio.Event, events: asyncio.Event, db: Db) -> None:
    """Wake the loops that have work."""
    schedules_due, events_due = await agenda.due(db)
    if schedules_due:
        schedules.set()
    if events_due:
        events.set()
