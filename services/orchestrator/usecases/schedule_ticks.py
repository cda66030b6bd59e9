"""The times of schedules: previews, manual ticks, and past ticks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import invalid
from services.kit.idempotency import Replayed, RequestKey, do_once
from services.kit.pg import Db, Pool, as_caller
from services.orchestrator.domain import timing as timings
from services.orchestrator.domain.timing import Timing
from services.orchestrator.storage import schedule_ticks, schedules
from services.orchestrator.storage.schedule_ticks import Tick
from services.orchestrator.usecases.schedule_checks import check_moment, hold
from services.orchestrator.usecases.schedules import get_schedule

PREVIEW_DEFAULT: Final = 10


async def preview(
    pool: Pool,
    caller: Caller,
    schedule_id: UUID | None,
    timing: Timing | None,
    *,
    after: datetime | None,
    count: int,
) -> list[datetime]:
    """Return the next times of a schedule or of a timing."""
    if (schedule_id is None) == (timing is None):
        fault = "is one of two that may be given: schedule_id or timing"
        raise invalid("timing", "PREVIEW_OF_WHAT", fault)
    if after is not None:
        check_moment(after, field="after_time")
    if schedule_id is not None:
        timing = (await get_schedule(pool, caller, schedule_id)).definition.timing
    async with as_caller(pool, caller) as db:
        now = after or await schedules.now(db)
    assert timing is not None
    if schedule_id is None:
        await asyncio.to_thread(timings.check, timing, field="timing", now=now)
    return await asyncio.to_thread(timings.upcoming, timing, now, count=count or PREVIEW_DEFAULT)


async def trigger(
    pool: Pool, caller: Caller, schedule_id: UUID, *, key: RequestKey[Tick] | None
) -> Tick | Replayed:
    """Add a manual tick."""

    async def write(db: Db) -> Tick:
        await hold(db, schedule_id)
        await schedules.wake(db)
        return await schedule_ticks.trigger(db, schedule_id)

    return await do_once(pool, caller, key, write)


async def list_ticks(
    pool: Pool,
    caller: Caller,
    *,
    schedule_id: UUID | None,
    execution_id: UUID | None,
    states: Sequence[str],
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Tick]:
    """Return a page of ticks."""
    if schedule_id is None and execution_id is None:
        fault = "is needed, or execution_id"
        raise invalid("schedule_id", "TICKS_OF_WHAT", fault)
    async with as_caller(pool, caller) as db:
        return await schedule_ticks.list_page(
            db,
            schedule_id=schedule_id,
            execution_id=execution_id,
            states=states,
            before=before,
            limit=limit,
        )
