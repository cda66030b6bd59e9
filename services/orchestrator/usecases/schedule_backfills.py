"""Backfills of schedules: runs for ranges of past times."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import FailedPrecondition, NotFound, ResourceExhausted, invalid
from services.kit.idempotency import Replayed, RequestKey, replay, write_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.orchestrator.domain import timing as timings
from services.orchestrator.storage import schedule_ticks, schedules
from services.orchestrator.storage.schedule_ticks import Backfill
from services.orchestrator.usecases.schedule_checks import NO_ID, check_moment, hold
from services.orchestrator.usecases.schedules import get_schedule

BACKFILL_TICKS_MAX: Final = 10_000
BACKFILLS_MAX: Final = 10


async def backfill(
    pool: Pool,
    caller: Caller,
    schedule_id: UUID,
    *,
    begin: datetime,
    end: datetime,
    max_running: int,
    key: RequestKey[Backfill] | None,
    validate_only: bool,
) -> Backfill | Replayed:
    """Create a backfill for a range of past times."""
    check_moment(begin, field="start_time")
    check_moment(end, field="end_time")
    earlier = await replay(pool, caller, key)
    if earlier is not None:
        return earlier
    schedule = await get_schedule(pool, caller, schedule_id)
    async with as_caller(pool, caller) as db:
        now = await schedules.now(db)
    if not begin < end <= now:
        fault = "must be after start_time and not in the future"
        raise invalid("end_time", "RANGE_INVALID", fault)
    timing = replace(schedule.definition.timing, starts_at=None, ends_at=end)
    just_before = begin - timedelta(microseconds=1)
    moments = await asyncio.to_thread(
        timings.upcoming, timing, just_before, count=BACKFILL_TICKS_MAX + 1
    )
    if not moments:
        raise invalid("start_time", "RANGE_INVALID", "no time of the schedule is in the range")
    if len(moments) > BACKFILL_TICKS_MAX:
        fault = f"the range has more than {BACKFILL_TICKS_MAX} times; take several"
        raise invalid("end_time", "RANGE_TOO_LARGE", fault)
    made = Backfill(
        id=NO_ID if validate_only else uuid7(),
        schedule_id=schedule_id,
        from_at=begin,
        to_at=end,
        max_running=max_running or 1,
        state="running",
        total_count=len(moments),
        done_count=0,
        present_count=0,
        created_by=caller.user_id,
        created_at=now,
        completed_at=None,
    )
    if validate_only:
        return made

    async def write(db: Db) -> Backfill:
        await hold(db, schedule_id)
        if await schedule_ticks.count_backfills(db, schedule_id) >= BACKFILLS_MAX:
            raise ResourceExhausted(
                "BACKFILLS_TOO_MANY",
                f"a schedule has at most {BACKFILLS_MAX} backfills at a time; cancel one, or wait",
            )
        await schedules.wake(db)
        return await schedule_ticks.insert_backfill(db, made, timing, moments[0])

    return await write_once(pool, caller, key, write)


async def list_backfills(
    pool: Pool,
    caller: Caller,
    schedule_id: UUID,
    *,
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Backfill]:
    """Return a page of a schedule's backfills."""
    async with as_caller(pool, caller) as db:
        return await schedule_ticks.list_backfills(db, schedule_id, before=before, limit=limit)


async def cancel_backfill(pool: Pool, caller: Caller, backfill_id: UUID) -> Backfill:
    """Cancel a backfill; returns it, even if it has ended already."""
    async with as_caller(pool, caller) as db:
        found = await schedule_ticks.cancel_backfill(db, backfill_id)
        await schedules.wake(db)
    if found is None:
        raise NotFound(
            "BACKFILL_NOT_FOUND",
            "no such backfill; ListScheduleBackfills shows those of a schedule",
            resource=("schedule_backfill", str(backfill_id)),
        )
    if found.state == "completed":
        raise FailedPrecondition(
            "BACKFILL_OVER",
            "the backfill has completed; nothing is left to cancel",
            resource=("schedule_backfill", str(backfill_id)),
        )
    return found
