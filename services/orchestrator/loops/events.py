"""The loop that delivers events: sleeps until there is one, or until the next retry is due."""

from __future__ import annotations

import asyncio

from services.kit.loops import repeat
from services.orchestrator.usecases.event_courier import Courier


async def deliver_events(courier: Courier, changed: asyncio.Event, stop: asyncio.Event) -> None:
    """Deliver events until `stop` is set."""
    try:
        await repeat(stop, courier.step, name="events", wake=changed)
    finally:
        await courier.stop()
