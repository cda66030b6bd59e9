"""Schedules as callers make and change them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import (
    Conflict,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from services.kit.idempotency import Replayed, RequestKey, replay, write_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.orchestrator.domain import timing as timings
from services.orchestrator.domain.timing import Timing
from services.orchestrator.storage import schedule_ticks, schedules
from services.orchestrator.storage.schedule_ticks import Backfill, Tick
from services.orchestrator.storage.schedules import Definition, Schedule
from services.orchestrator.usecases.start import Starter

log = structlog.get_logger()

SCHEDULES_MAX: Final = 1_000
BACKFILL_TICKS_MAX: Final = 10_000
BACKFILLS_MAX: Final = 10
PREVIEW_DEFAULT: Final = 10
FIELDS: Final = (
    *("name", "description", "workflow_version", "workflow_alias", "input_json", "timing"),
    *("overlap", "catch_up", "catch_up_window", "labels"),
)
# What a start depends on: only a change of these is held against the workflow.
_STARTING: Final = frozenset({"workflow_version", "workflow_alias", "input_json"})
_FIRST: Final = datetime(1900, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(8999, 1, 1, tzinfo=UTC)
_NO_ID: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Scheduling:
    """What changing schedules takes."""

    pool: Pool  # the callers'
    starter: Starter


async def create_schedule(
    deps: Scheduling,
    caller: Caller,
    workflow_id: UUID,
    definition: Definition,
    *,
    paused: bool,
    key: RequestKey[Schedule] | None,
    validate_only: bool,
) -> Schedule | Replayed:
    """Make a schedule of a workflow that could be started now."""
    _check_name(definition)
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    await _check_start(deps, caller, workflow_id, definition)
    now, first = await _first(deps.pool, caller, definition.timing)
    schedule_id = uuid7()
    schedule = Schedule(
        id=_NO_ID if validate_only else schedule_id,
        workflow_id=workflow_id,
        definition=definition,
        created_by=caller.user_id,
        created_at=now,
        updated_at=now,
        paused_at=now if paused else None,
        due_at=None if paused else first,
        fire_at=None if paused else timings.put_off(definition.timing, schedule_id, first),
    )
    if validate_only:
        return schedule

    async def write(db: Db) -> Schedule:
        await schedules.lock_tenant(db, caller.tenant_id)
        if await schedules.count(db) >= SCHEDULES_MAX:
            raise ResourceExhausted(
                "SCHEDULES_TOO_MANY", f"a tenant has at most {SCHEDULES_MAX} schedules; delete one"
            )
        await schedules.wake(db)
        return await schedules.insert(db, schedule)

    written = await write_once(deps.pool, caller, key, write)
    log.info("schedule_created", schedule_id=str(schedule_id))
    return written


async def get_schedule(pool: Pool, caller: Caller, schedule_id: UUID) -> Schedule:
    """Give one schedule."""
    async with as_caller(pool, caller) as db:
        found = await schedules.get(db, schedule_id)
    if found is None:
        raise missing(schedule_id)
    return found


async def list_schedules(
    pool: Pool,
    caller: Caller,
    *,
    workflow_id: UUID | None,
    label: str,
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Schedule]:
    """Give a page of the tenant's schedules."""
    async with as_caller(pool, caller) as db:
        return await schedules.list_page(
            db, workflow_id=workflow_id, label=label, before=before, limit=limit
        )


async def update_schedule(
    deps: Scheduling,
    caller: Caller,
    schedule_id: UUID,
    given: Definition,
    *,
    mask: Sequence[str],
    etag: str,
    key: RequestKey[Schedule] | None,
    validate_only: bool,
) -> Schedule | Replayed:
    """Take what the mask names of a definition."""
    if not mask or any(name not in FIELDS for name in mask):
        fault = f"must name some of {', '.join(FIELDS)}"
        raise _invalid("update_mask", "UPDATE_MASK_INVALID", fault)
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    before = await get_schedule(deps.pool, caller, schedule_id)
    named = ["catch_up_window_ms" if name == "catch_up_window" else name for name in mask]
    said = replace(before.definition, **{name: getattr(given, name) for name in named})
    _check_name(said)
    if _STARTING & set(mask):
        await _check_start(deps, caller, before.workflow_id, said)
    first = None
    if "timing" in mask:
        _, first = await _first(deps.pool, caller, said.timing)
    # What was read is what is changed: another change in between shows by the etag.
    expected = etag or before.etag

    def changed(held: Schedule) -> Schedule:
        _check_etag(held, expected)
        if first is None or held.paused_at is not None:
            return replace(held, definition=said)
        fire_at = timings.put_off(said.timing, held.id, first)
        return replace(held, definition=said, due_at=first, fire_at=fire_at)

    if validate_only:
        return changed(before)
    return await _change(deps.pool, caller, schedule_id, changed, key=key)


async def pause_schedule(
    pool: Pool,
    caller: Caller,
    schedule_id: UUID,
    *,
    reason: str,
    etag: str,
    key: RequestKey[Schedule] | None,
) -> Schedule | Replayed:
    """Let a schedule be due no more until it is resumed."""

    def changed(held: Schedule) -> Schedule:
        _check_etag(held, etag)
        paused_at = held.paused_at or datetime.now(UTC)
        return replace(held, paused_at=paused_at, pause_reason=reason, due_at=None, fire_at=None)

    return await _change(pool, caller, schedule_id, changed, key=key)


async def resume_schedule(
    pool: Pool,
    caller: Caller,
    schedule_id: UUID,
    *,
    etag: str,
    key: RequestKey[Schedule] | None,
) -> Schedule | Replayed:
    """Let a schedule go on with the first time after now."""
    earlier = await replay(pool, caller, key)
    if earlier is not None:
        return earlier
    before = await get_schedule(pool, caller, schedule_id)
    async with as_caller(pool, caller) as db:
        now = await schedules.now(db)
    first = await asyncio.to_thread(timings.next_after, before.definition.timing, now)

    def changed(held: Schedule) -> Schedule:
        _check_etag(held, etag or before.etag)
        if held.paused_at is None:
            return held
        if first is None:
            raise FailedPrecondition(
                "SCHEDULE_OVER",
                "no time of the schedule comes after now; change its timing",
                resource=("schedule", str(schedule_id)),
            )
        fire_at = timings.put_off(held.definition.timing, held.id, first)
        return replace(held, paused_at=None, pause_reason="", due_at=first, fire_at=fire_at)

    return await _change(pool, caller, schedule_id, changed, key=key)


async def delete_schedule(
    pool: Pool,
    caller: Caller,
    schedule_id: UUID,
    *,
    etag: str,
    key: RequestKey[Schedule] | None,
) -> Schedule | Replayed:
    """Remove a schedule; gives it as it was."""
    earlier = await replay(pool, caller, key)
    if earlier is not None:
        return earlier

    async def write(db: Db) -> Schedule:
        held = await _held(db, schedule_id)
        _check_etag(held, etag)
        await schedules.delete(db, schedule_id)
        return held

    written = await write_once(pool, caller, key, write)
    log.info("schedule_deleted", schedule_id=str(schedule_id))
    return written


async def preview(
    pool: Pool,
    caller: Caller,
    schedule_id: UUID | None,
    timing: Timing | None,
    *,
    after: datetime | None,
    count: int,
) -> list[datetime]:
    """Give the next times, of a schedule or of what could be one."""
    if (schedule_id is None) == (timing is None):
        fault = "is one of two that may be given: schedule_id or timing"
        raise _invalid("timing", "PREVIEW_OF_WHAT", fault)
    if after is not None:
        _check_moment(after, field="after_time")
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
    """Make a tick for now."""
    earlier = await replay(pool, caller, key)
    if earlier is not None:
        return earlier

    async def write(db: Db) -> Tick:
        await _held(db, schedule_id)
        await schedules.wake(db)
        return await schedule_ticks.trigger(db, schedule_id)

    return await write_once(pool, caller, key, write)


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
    """Give a page of ticks."""
    if schedule_id is None and execution_id is None:
        fault = "is needed, or execution_id"
        raise _invalid("schedule_id", "TICKS_OF_WHAT", fault)
    async with as_caller(pool, caller) as db:
        return await schedule_ticks.list_page(
            db,
            schedule_id=schedule_id,
            execution_id=execution_id,
            states=states,
            before=before,
            limit=limit,
        )


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
    """Make up for a range of past times."""
    _check_moment(begin, field="start_time")
    _check_moment(end, field="end_time")
    earlier = await replay(pool, caller, key)
    if earlier is not None:
        return earlier
    schedule = await get_schedule(pool, caller, schedule_id)
    async with as_caller(pool, caller) as db:
        now = await schedules.now(db)
    if not begin < end <= now:
        fault = "must be after start_time and not in the future"
        raise _invalid("end_time", "RANGE_INVALID", fault)
    timing = replace(schedule.definition.timing, starts_at=None, ends_at=end)
    just_before = begin - timedelta(microseconds=1)
    moments = await asyncio.to_thread(
        timings.upcoming, timing, just_before, count=BACKFILL_TICKS_MAX + 1
    )
    if not moments:
        raise _invalid("start_time", "RANGE_INVALID", "no time of the schedule is in the range")
    if len(moments) > BACKFILL_TICKS_MAX:
        fault = f"the range has more than {BACKFILL_TICKS_MAX} times; take several"
        raise _invalid("end_time", "RANGE_TOO_LARGE", fault)
    made = Backfill(
        id=_NO_ID if validate_only else uuid7(),
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
        await _held(db, schedule_id)
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
    """Give a page of a schedule's backfills."""
    async with as_caller(pool, caller) as db:
        return await schedule_ticks.list_backfills(db, schedule_id, before=before, limit=limit)


async def cancel_backfill(pool: Pool, caller: Caller, backfill_id: UUID) -> Backfill:
    """Stop a backfill; one that is stopped already is given as it is."""
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


def missing(schedule_id: UUID) -> NotFound:
    """Make the answer for a schedule that the caller cannot see, existing or not."""
    return NotFound(
        "SCHEDULE_NOT_FOUND",
        "no such schedule; ListSchedules shows those you may see",
        resource=("schedule", str(schedule_id)),
    )


async def _change(
    pool: Pool,
    caller: Caller,
    schedule_id: UUID,
    changed: Callable[[Schedule], Schedule],
    *,
    key: RequestKey[Schedule] | None,
) -> Schedule | Replayed:
    earlier = await replay(pool, caller, key)
    if earlier is not None:
        return earlier

    async def write(db: Db) -> Schedule:
        held = await _held(db, schedule_id)
        after = changed(held)
        if after is held:
            return held
        await schedules.wake(db)
        return await schedules.update(db, after)

    written = await write_once(pool, caller, key, write)
    log.info("schedule_changed", schedule_id=str(schedule_id))
    return written


async def _held(db: Db, schedule_id: UUID) -> Schedule:
    held = await schedules.hold(db, schedule_id)
    if held is None:
        raise missing(schedule_id)
    return held


async def _check_start(
    deps: Scheduling, caller: Caller, workflow_id: UUID, definition: Definition
) -> None:
    """Refuse what a start would be refused for now."""
    if definition.workflow_alias and definition.workflow_version:
        fault = "name a version or an alias, not both"
        raise _invalid("definition.workflow_alias", "VERSION_NAMED_TWICE", fault)
    await deps.starter.check(
        caller,
        workflow_id,
        definition.workflow_version,
        definition.input_json,
        alias=definition.workflow_alias,
    )


async def _first(pool: Pool, caller: Caller, timing: Timing) -> tuple[datetime, datetime]:
    """Check times; give now and the first of them after it."""
    async with as_caller(pool, caller) as db:
        now = await schedules.now(db)
    return now, await asyncio.to_thread(timings.check, timing, field="definition.timing", now=now)


def _check_name(definition: Definition) -> None:
    if not definition.name.strip():
        raise _invalid("definition.name", "NAME_MISSING", "must have 1 to 255 characters")


def _check_etag(held: Schedule, etag: str) -> None:
    if etag and etag != held.etag:
        raise Conflict(
            "ETAG_MISMATCH",
            "the schedule changed since it was read; read it again and repeat the change",
            etag=held.etag,
        )


def _check_moment(moment: datetime, *, field: str) -> None:
    if not _FIRST <= moment <= _LAST:
        raise _invalid(field, "TIME_INVALID", "must be in the years 1900 to 8998")


def _invalid(field: str, reason: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        reason, f"{field}: {description}", fields=[FieldViolation(field, description, reason)]
    )
