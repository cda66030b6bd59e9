"""The loop of schedules: sleeps until the earliest is due, or until a schedule has changed."""

from __future__ import annotations

import asyncio
from functools import partial

from services.kit.loops import repeat
from services.orchestrator.usecases.schedule_runs import Scheduler, run_due


async def run_schedules(scheduler: Scheduler, changed: asyncio.Event, stop: asyncio.Event) -> None:
    """Start due runs of schedules until `stop` is set."""
    try:
        await repeat(stop, partial(run_due, scheduler), name="schedules", wake=changed)
    finally:
        await scheduler.ends.stop()
