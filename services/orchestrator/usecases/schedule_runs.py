"""Starts due runs of schedules: ticks are made under a lock of the schedule, started under a claim.

A crash in between leaves a pending tick, which is started later: with a request id derived from it,
so that a run that was started but not recorded is found rather than started again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Final
from uuid import UUID

import structlog

from services.kit.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    QflowError,
    ResourceExhausted,
    Unavailable,
)
from services.kit.pg import LINK_FAULTS, Db, Pool, transaction, translate
from services.orchestrator.domain import ticks
from services.orchestrator.domain.timing import next_after
from services.orchestrator.domain.timing import ticks as times
from services.orchestrator.storage import backfill_due
from services.orchestrator.storage import schedule_due as due
from services.orchestrator.storage.backfill_due import DueBackfill
from services.orchestrator.storage.schedule_due import Claimed, PendingTick
from services.orchestrator.usecases.on_behalf import LASTING, caller_of
from services.orchestrator.usecases.overlaps import Overlaps
from services.orchestrator.usecases.schedule_ends import RunEnds
from services.orchestrator.usecases.schedule_inputs import inputs_at
from services.orchestrator.usecases.start import Starter

log = structlog.get_logger()

# Notifications may be lost with their connection: the survey of members checks once a minute what
# is due, and wakes this loop.
SAFETY_S: Final = 3600.0
# The wait if another member has just claimed what is due.
_CROWDED_S: Final = 0.2
_DUE_MAX: Final = 50
_CLAIMS_MAX: Final = 8
_TICKS_MAX: Final = 100
_BACKFILLS_MAX: Final = 10
_CLAIM: Final = timedelta(seconds=10)
_START_S: Final = 8.0
# How soon a backfill with open runs is checked again, and a tick that waits for a run whose end is
# not reported: less often the longer it has waited.
_WAIT: Final = timedelta(seconds=1)
_WAIT_MAX_S: Final = 10.0
_WAIT_GROWS: Final = 1 / 60
_PASSING: Final = (Unavailable, ResourceExhausted, Conflict)
# The reason of a tick that waits for a run of its schedule, or is skipped because of one.
_OVERLAP: Final = "OVERLAP"
# Reasons to wait without a limit of time.
_FOR_OTHERS: Final = frozenset({_OVERLAP, "QUOTA_EXCEEDED"})
_OVERLAPPED: Final = "a run of the schedule was not over"
_NOT_STARTED: Final = "another tick's run had not started yet, and only one may be under way"
_RETRY_FIRST_S: Final = 1.0
_RETRY_MAX_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Scheduler:
    """The dependencies of these use cases."""

    pool: Pool  # the engine's
    starter: Starter
    ends: RunEnds
    overlaps: Overlaps


async def run_due(scheduler: Scheduler) -> float:
    """Start everything that is due; returns the seconds until there is more to do."""
    over = scheduler.ends.take()
    if over:
        async with transaction(scheduler.pool) as db:
            await due.hurry(db, over, reason=_OVERLAP)
    made = await make_ticks(scheduler.pool)
    made += await go_on_with_backfills(scheduler.pool)
    async with transaction(scheduler.pool) as db:
        claimed = await due.claim(db, limit=_CLAIMS_MAX, lasting=_CLAIM)
    outcomes = await asyncio.gather(
        *(_serve(scheduler, each) for each in claimed), return_exceptions=True
    )
    for fault in outcomes:
        if fault is not None:
            raise fault
    if made or claimed:
        return 0.0
    async with transaction(scheduler.pool) as db:
        left_s = await due.next_s(db)
    return SAFETY_S if left_s is None else min(max(left_s, _CROWDED_S), SAFETY_S)


async def make_ticks(pool: Pool) -> int:
    """Insert the ticks of due schedules; returns the number of schedules."""
    async with transaction(pool) as db:
        held = await due.hold_due(db, limit=_DUE_MAX)
        if not held:
            return 0
        # In a thread: a thousand times are computed if many were missed.
        steps = await asyncio.to_thread(lambda: [(each, _look(each)) for each in held])
        await due.add_ticks(db, [(each, step) for each, step in steps if step is not None])
        for each, step in steps:
            if step is None:
                message = "its times cannot be told any more: its time zone may be gone"
                await due.fail(db, each.id, reason="TIMING_UNKNOWN", message=message, pauses=True)
    return len(held)


def _look(schedule: due.DueSchedule) -> ticks.Step | None:
    """Return the step of a schedule; None if it fails, so that others do not wait for it."""
    try:
        return ticks.look(
            schedule.timing,
            schedule.id,
            due_at=schedule.due_at,
            now=schedule.now,
            catch_up=schedule.catch_up,
            window=schedule.window,
        )
    except Exception:
        log.exception("schedule_not_read", schedule_id=str(schedule.id))
        return None


async def go_on_with_backfills(pool: Pool) -> int:
    """Insert ticks of backfills with room for more; returns how many."""
    made = 0
    async with transaction(pool) as db:
        for backfill in await backfill_due.hold_due(db, limit=_BACKFILLS_MAX):
            room = backfill.max_running - await backfill_due.count_open(db, backfill)
            moments, next_at = _moments(backfill, max(room, 0))
            taken = await backfill_due.take(db, backfill, moments) if moments else 0
            made += taken
            completed = next_at is None and not moments and room == backfill.max_running
            # If all of these times have runs already, continue at once.
            pause = timedelta(0) if moments and not taken else _WAIT
            await backfill_due.step(
                db,
                backfill,
                next_at=next_at,
                done=len(moments),
                present=len(moments) - taken,
                completed=completed,
                pause=pause,
            )
    return made


def _moments(backfill: DueBackfill, room: int) -> tuple[list[datetime], datetime | None]:
    """Return the next times of a backfill and the one after them; its timing has its end."""
    if backfill.next_at is None or not room:
        return [], backfill.next_at
    following = times(backfill.timing, backfill.next_at)
    moments = [backfill.next_at, *islice(following, room - 1)]
    return moments, next_after(backfill.timing, moments[-1])


async def _serve(scheduler: Scheduler, schedule: Claimed) -> None:
    """Handle the pending ticks of a claimed schedule, and release the claim.

    A schedule that fails does not affect others: it is retried when its claim expires.
    """
    try:
        await _serve_pending(scheduler, schedule)
    except Exception as error:
        if not _passes(error):
            log.exception("schedule_not_served", schedule_id=str(schedule.id))
            return
        await _release(scheduler, schedule)
        raise
    await _release(scheduler, schedule)


async def _release(scheduler: Scheduler, schedule: Claimed) -> None:
    async with transaction(scheduler.pool) as db:
        await due.release(db, schedule.id)


def _passes(error: Exception) -> bool:
    """Return whether an error is transient, so that the loop retries."""
    fault = error if isinstance(error, QflowError) else translate(error)
    return isinstance(fault, _PASSING) or (fault is None and isinstance(error, LINK_FAULTS))


async def _serve_pending(scheduler: Scheduler, schedule: Claimed) -> None:
    async with transaction(scheduler.pool) as db:
        waiting = await due.pending(db, schedule, limit=_TICKS_MAX)
    starting = []
    for tick in waiting:
        why = _starts_nothing(schedule, tick)
        if why is None:
            starting.append(tick)
        else:
            await _skip(scheduler, schedule, tick, reason=why[0], message=why[1])
    beside = [tick for tick in starting if schedule.overlap == "allow" or tick.kind != "timed"]
    for tick in beside:
        if tick.is_due:
            await _start(scheduler, schedule, tick)
    alone = [tick for tick in starting if tick not in beside]
    if alone:
        await _start_alone(scheduler, schedule, alone)


def _starts_nothing(schedule: Claimed, tick: PendingTick) -> tuple[str, str] | None:
    """Return why a tick must not start a run any more; None if it may.

    A tick that was due before the pause of its schedule, and did not wait for others, still starts.
    """
    if tick.is_cancelled:
        return "CANCELLED", "its backfill was cancelled"
    if schedule.paused and tick.kind == "timed" and tick.reason in _FOR_OTHERS:
        return "PAUSED", "the schedule was paused before its run could start"
    return None


async def _start_alone(
    scheduler: Scheduler, schedule: Claimed, waiting: Sequence[PendingTick]
) -> None:
    """Start the next tick of a schedule that allows only one open run."""
    async with transaction(scheduler.pool) as db:
        running = await due.open_runs(db, schedule.id)
    if schedule.overlap == "cancel_running":
        tick, others = waiting[-1], waiting[:-1]
    else:
        tick, others = waiting[0], waiting[1:]
    if schedule.overlap == "skip" and running:
        others = waiting
    found = False
    if schedule.overlap != "buffer_one" or running:
        for each in others:
            message = _OVERLAPPED if running else _NOT_STARTED
            found |= await _skip(scheduler, schedule, each, reason=_OVERLAP, message=message)
    if found and not running:
        return  # the others wait for it; they are due again at the next attempt
    if not running:
        if tick.is_due or not tick.attempts:
            await _start(scheduler, schedule, tick)
        elif schedule.overlap == "buffer_one":
            await _put_behind(scheduler, schedule, tick)
        return
    if schedule.overlap != "skip":
        await _wait_for(scheduler, schedule, tick, running)


async def _wait_for(
    scheduler: Scheduler, schedule: Claimed, tick: PendingTick, running: Sequence[UUID]
) -> None:
    """Defer a tick until the runs before it have ended; cancel those if that is the policy."""
    scheduler.ends.follow(schedule.id, running)
    if schedule.overlap == "cancel_running":
        try:
            await caller_of(scheduler.pool, schedule.created_by, schedule.tenant_id)
        except (FailedPrecondition, NotFound, PermissionDenied) as error:  # as for a start
            await _fail(scheduler, schedule, tick, reason=error.reason, message=error.message)
            return
        await scheduler.overlaps.cancel_all(schedule.id, running)
    async with transaction(scheduler.pool) as db:
        message = "waits for the run before it to be over"
        by_s = min(_WAIT.seconds + max(tick.age_s, 0.0) * _WAIT_GROWS, _WAIT_MAX_S)
        await due.defer(
            db,
            schedule.id,
            tick.tick_at,
            by=timedelta(seconds=by_s),
            reason=_OVERLAP,
            message=message,
        )


async def _put_behind(scheduler: Scheduler, schedule: Claimed, tick: PendingTick) -> None:
    """Defer the ticks after one that could not start yet."""
    async with transaction(scheduler.pool) as db:
        message = "waits for the tick before it, which could not start yet"
        await due.put_behind(db, schedule.id, tick.tick_at, reason=_OVERLAP, message=message)


async def _skip(
    scheduler: Scheduler, schedule: Claimed, tick: PendingTick, *, reason: str, message: str
) -> bool:
    """Skip a tick; returns True if it had started a run that was not recorded."""
    async with transaction(scheduler.pool) as db:
        if await _has_run(db, schedule, tick):
            return True
        await due.skipped(db, schedule.id, tick.tick_at, reason=reason, message=message)
    return False


async def _has_run(db: Db, schedule: Claimed, tick: PendingTick) -> bool:
    """Record the run of a tick that was started but not recorded; returns whether there is one."""
    run_id = await due.run_of(db, schedule, ticks.request_id(schedule.id, tick.tick_at))
    if run_id is None:
        return False
    await due.started(db, schedule.id, tick.tick_at, run_id)
    return True


async def _start(scheduler: Scheduler, schedule: Claimed, tick: PendingTick) -> None:
    """Start the run of a tick and record the outcome."""
    try:
        execution_id = await _started(scheduler, schedule, tick)
    except _PASSING as error:
        if tick.kind == "timed" and tick.age_s > schedule.window.total_seconds():
            message = f"nothing could start it within its window: {error.message}"[:1000]
            await _skip(scheduler, schedule, tick, reason=error.reason, message=message)
            return
        by_s = min(_RETRY_FIRST_S * 2 ** min(tick.attempts, 10), _RETRY_MAX_S)
        async with transaction(scheduler.pool) as db:
            await due.defer(
                db,
                schedule.id,
                tick.tick_at,
                by=timedelta(seconds=by_s),
                attempts=1,
                reason=error.reason,
                message=error.message,
            )
        return
    except QflowError as error:
        await _fail(scheduler, schedule, tick, reason=error.reason, message=error.message[:1000])
        return
    except Exception as error:
        if _passes(error):
            raise  # the database is away: the loop retries
        log.exception("tick_not_started", schedule_id=str(schedule.id))
        message = "a fault of the engine; its log says more"
        await _fail(scheduler, schedule, tick, reason="INTERNAL", message=message)
        return
    async with transaction(scheduler.pool) as db:
        await due.started(db, schedule.id, tick.tick_at, execution_id)
    log.info("tick_started", schedule_id=str(schedule.id), execution_id=str(execution_id))


async def _fail(
    scheduler: Scheduler, schedule: Claimed, tick: PendingTick, *, reason: str, message: str
) -> None:
    pauses = reason in LASTING
    async with transaction(scheduler.pool) as db:
        if await _has_run(db, schedule, tick):
            return
        await due.settle_failed(db, schedule.id, tick.tick_at, reason=reason, message=message)
        await due.fail(db, schedule.id, reason=reason, message=message, pauses=pauses)
    log.warning("tick_failed", schedule_id=str(schedule.id), reason=reason, pauses=pauses)


async def _started(scheduler: Scheduler, schedule: Claimed, tick: PendingTick) -> UUID:
    caller = await caller_of(scheduler.pool, schedule.created_by, schedule.tenant_id)
    what = (schedule.workflow_id, schedule.workflow_version)
    alias = schedule.workflow_alias
    try:
        async with asyncio.timeout(_START_S):
            text = await inputs_at(
                *(scheduler.starter, caller, *what, schedule.input_json),
                alias=alias,
                timing=schedule.timing,
                tick_at=tick.tick_at,
            )
            request_id = ticks.request_id(schedule.id, tick.tick_at)
            run, *_ = await scheduler.starter.start(caller, *what, text, request_id, alias=alias)
    except TimeoutError:
        raise Unavailable("START_SLOW", "the engine is overloaded; the start is retried") from None
    except AlreadyExists as error:
        # It was started, and the schedule changed before that was recorded.
        return UUID(error.facts["execution_id"])
    return run.id
