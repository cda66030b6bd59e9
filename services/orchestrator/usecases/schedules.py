"""Schedules of callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import FailedPrecondition, ResourceExhausted, invalid
from services.kit.idempotency import Replayed, RequestKey, do_once, replay, write_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.kit.updates import check_etag, check_mask
from services.orchestrator.domain import timing as timings
from services.orchestrator.domain.timing import Timing
from services.orchestrator.storage import schedules
from services.orchestrator.storage.schedules import Definition, Schedule
from services.orchestrator.usecases.schedule_checks import NO_ID, hold, missing
from services.orchestrator.usecases.schedule_inputs import inputs_at
from services.orchestrator.usecases.start import Starter

log = structlog.get_logger()

SCHEDULES_MAX: Final = 1_000
FIELDS: Final = (
    *("name", "description", "workflow_version", "workflow_alias", "input_json", "timing"),
    *("overlap", "catch_up", "catch_up_window", "labels"),
)
# The fields that a start depends on: only changes of these are checked against the workflow.
_STARTING: Final = frozenset({"workflow_version", "workflow_alias", "input_json"})


@dataclass(frozen=True, slots=True)
class Scheduling:
    """The dependencies of these use cases."""

    pool: Pool  # with row-level security
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
    """Create a schedule; its workflow must be startable now."""
    _check_name(definition)
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    now, first = await _first(deps.pool, caller, definition.timing)
    await _check_start(deps, caller, workflow_id, definition, at=first)
    schedule_id = uuid7()
    schedule = Schedule(
        id=NO_ID if validate_only else schedule_id,
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
    """Return a schedule."""
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
    """Return a page of the tenant's schedules."""
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
    """Update the fields of the definition in the mask."""
    check_mask(mask, FIELDS)
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    before = await get_schedule(deps.pool, caller, schedule_id)
    named = ["catch_up_window_ms" if name == "catch_up_window" else name for name in mask]
    said = replace(before.definition, **{name: getattr(given, name) for name in named})
    _check_name(said)
    first = None
    if "timing" in mask:
        _, first = await _first(deps.pool, caller, said.timing)
    time_input_changes = said.timing.time_input != before.definition.timing.time_input
    if time_input_changes or _STARTING & set(mask):
        at = first or before.created_at
        await _check_start(deps, caller, before.workflow_id, said, at=at)
    # A change since the read above is detected by the etag.
    expected = etag or before.etag

    def changed(held: Schedule) -> Schedule:
        check_etag("schedule", held.etag, expected)
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
    """Pause a schedule."""

    def changed(held: Schedule) -> Schedule:
        check_etag("schedule", held.etag, etag)
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
    """Resume a schedule with the first time after now."""
    earlier = await replay(pool, caller, key)
    if earlier is not None:
        return earlier
    before = await get_schedule(pool, caller, schedule_id)
    async with as_caller(pool, caller) as db:
        now = await schedules.now(db)
    first = await asyncio.to_thread(timings.next_after, before.definition.timing, now)

    def changed(held: Schedule) -> Schedule:
        check_etag("schedule", held.etag, etag or before.etag)
        if held.paused_at is None:
            return held
        if first is None:
            raise FailedPrecondition(
                "SCHEDULE_OVER",
                "the schedule has no future time; change its timing",
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
    """Delete a schedule; returns it as it was."""

    async def write(db: Db) -> Schedule:
        held = await hold(db, schedule_id)
        check_etag("schedule", held.etag, etag)
        await schedules.delete(db, schedule_id)
        return held

    written = await do_once(pool, caller, key, write)
    if isinstance(written, Schedule):
        log.info("schedule_deleted", schedule_id=str(schedule_id))
    return written


async def _change(
    pool: Pool,
    caller: Caller,
    schedule_id: UUID,
    changed: Callable[[Schedule], Schedule],
    *,
    key: RequestKey[Schedule] | None,
) -> Schedule | Replayed:
    async def write(db: Db) -> Schedule:
        held = await hold(db, schedule_id)
        after = changed(held)
        if after is held:
            return held
        await schedules.wake(db)
        return await schedules.update(db, after)

    written = await do_once(pool, caller, key, write)
    if isinstance(written, Schedule):
        log.info("schedule_changed", schedule_id=str(schedule_id))
    return written


async def _check_start(
    deps: Scheduling, caller: Caller, workflow_id: UUID, definition: Definition, *, at: datetime
) -> None:
    """Refuse what a start would be refused for now; `at` is any time of the schedule."""
    if definition.workflow_alias and definition.workflow_version:
        fault = "name a version or an alias, not both"
        raise invalid("definition.workflow_alias", "VERSION_NAMED_TWICE", fault)
    version, alias = definition.workflow_version, definition.workflow_alias
    text = await inputs_at(
        *(deps.starter, caller, workflow_id, version, definition.input_json),
        alias=alias,
        timing=definition.timing,
        tick_at=at,
    )
    await deps.starter.check(caller, workflow_id, version, text, alias=alias)


async def _first(pool: Pool, caller: Caller, timing: Timing) -> tuple[datetime, datetime]:
    """Check a timing; returns the database's time and the first time after it."""
    async with as_caller(pool, caller) as db:
        now = await schedules.now(db)
    return now, await asyncio.to_thread(timings.check, timing, field="definition.timing", now=now)


def _check_name(definition: Definition) -> None:
    if not definition.name.strip():
        raise invalid("definition.name", "NAME_MISSING", "must have 1 to 255 characters")
