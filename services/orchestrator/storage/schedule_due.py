"""Due schedules and their ticks, as the engine sees and changes them across tenants.

A schedule's row is the lock of its ticks: only who has locked or claimed it makes and starts them.
When a claim expires, any member may take it; a run that is started twice is one by its request id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db
from services.orchestrator.domain.ticks import CatchUp, Overlap, Step, window_of
from services.orchestrator.domain.timing import Timing, from_json


@dataclass(frozen=True, slots=True, kw_only=True)
class DueSchedule:
    """A due schedule, locked until the transaction ends."""

    id: UUID
    tenant_id: UUID
    timing: Timing
    due_at: datetime
    catch_up: CatchUp
    window: timedelta
    now: datetime


_DUE: Final[LiteralString] = """
    SELECT id, tenant_id, timing, due_at, catch_up, catch_up_window_ms, clock_timestamp() AS now
      FROM schedules
     WHERE fire_at <= clock_timestamp()
     ORDER BY fire_at, id LIMIT $1
       FOR UPDATE SKIP LOCKED
"""


async def hold_due(db: Db, *, limit: int) -> list[DueSchedule]:
    """Lock due schedules, skipping those locked by others."""
    found = []
    for row in await db.fetch(_DUE, limit):
        values = dict(row)
        window = timedelta(milliseconds=values.pop("catch_up_window_ms"))
        timing = from_json(values.pop("timing"))
        found.append(DueSchedule(timing=timing, window=window, **values))
    return found


_ADD_TICKS: Final[LiteralString] = """
    INSERT INTO schedule_ticks
           (schedule_id, tick_at, kind, state, tick_count, reason, message, try_at, tenant_id)
    SELECT schedule_id, tick_at, 'timed', CASE WHEN missed THEN 'skipped' ELSE 'pending' END,
           tick_count, CASE WHEN missed THEN 'MISSED' ELSE '' END,
           CASE WHEN missed THEN 'nothing could start it in time' ELSE '' END,
           CASE WHEN NOT missed THEN clock_timestamp() END, tenant_id
      FROM unnest($1::uuid[], $2::timestamptz[], $3::boolean[], $4::integer[], $5::uuid[])
           AS due (schedule_id, tick_at, missed, tick_count, tenant_id)
     ORDER BY schedule_id, tick_at
        ON CONFLICT (schedule_id, tick_at) DO NOTHING
"""
_MOVE: Final[LiteralString] = """
    UPDATE schedules
       SET due_at = moved.due_at, fire_at = moved.fire_at,
           last_at = GREATEST(schedules.last_at, moved.last_at),
           skipped_count = schedules.skipped_count + moved.missed
      FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[], $5::bigint[])
           AS moved (id, due_at, fire_at, last_at, missed)
     WHERE schedules.id = moved.id
"""


async def add_ticks(db: Db, steps: Sequence[tuple[DueSchedule, Step]]) -> None:
    """Insert the ticks of locked schedules, and set when they are due next."""
    ticks = [(each, tick) for each, step in steps for tick in step.ticks]
    await db.execute(
        _ADD_TICKS,
        [each.id for each, _ in ticks],
        [tick.at for _, tick in ticks],
        [tick.missed for _, tick in ticks],
        [tick.count for _, tick in ticks],
        [each.tenant_id for each, _ in ticks],
    )
    await db.execute(
        _MOVE,
        [each.id for each, _ in steps],
        [step.due_at for _, step in steps],
        [step.fire_at for _, step in steps],
        [max((tick.at for tick in step.ticks), default=None) for _, step in steps],
        [sum(tick.count for tick in step.ticks if tick.missed) for _, step in steps],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A claimed schedule, with what starting its ticks needs."""

    id: UUID
    tenant_id: UUID
    created_by: UUID
    workflow_id: UUID
    workflow_version: int
    workflow_alias: str
    input_json: str
    timing: Timing
    overlap: Overlap
    paused: bool
    window: timedelta  # how late a tick may start its run


_CLAIM: Final[LiteralString] = """
    WITH waiting AS MATERIALIZED (
        SELECT schedule_id FROM schedule_ticks
         WHERE state = 'pending' AND try_at <= clock_timestamp()
         ORDER BY try_at LIMIT 200),
    free AS MATERIALIZED (
        SELECT id FROM schedules
         WHERE id IN (SELECT schedule_id FROM waiting)
           AND (claimed_until IS NULL OR claimed_until < clock_timestamp())
         ORDER BY id LIMIT $1
           FOR UPDATE SKIP LOCKED)
    UPDATE schedules SET claimed_until = clock_timestamp() + $2
      FROM free WHERE schedules.id = free.id
 RETURNING schedules.id, tenant_id, created_by, workflow_id, workflow_version, workflow_alias,
           input_data AS input_json, timing, overlap, paused_at IS NOT NULL AS paused, catch_up,
           catch_up_window_ms
"""


async def claim(db: Db, *, limit: int, lasting: timedelta) -> list[Claimed]:
    """Claim schedules with ticks to start."""
    claimed = []
    for row in await db.fetch(_CLAIM, limit, lasting):
        values = dict(row)
        window = timedelta(milliseconds=values.pop("catch_up_window_ms"))
        window = window_of(values.pop("catch_up"), window)
        timing = from_json(values.pop("timing"))
        claimed.append(Claimed(timing=timing, window=window, **values))
    return claimed


_RELEASE: Final[LiteralString] = "UPDATE schedules SET claimed_until = NULL WHERE id = $1"


async def release(db: Db, schedule_id: UUID) -> None:
    """Release a claim."""
    await db.execute(_RELEASE, schedule_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingTick:
    """A tick without a run."""

    tick_at: datetime
    kind: str
    attempts: int
    is_due: bool  # whether the next attempt may begin
    is_cancelled: bool  # its backfill was cancelled
    reason: str  # why it was deferred, if it was
    age_s: float  # since it was due


_PENDING: Final[LiteralString] = """
    SELECT tick.tick_at, tick.kind, tick.attempts, tick.try_at <= clock_timestamp() AS is_due,
           COALESCE(backfill.state = 'cancelled', false) AS is_cancelled, tick.reason,
           EXTRACT(epoch FROM clock_timestamp() - tick.tick_at)::float8 AS age_s
      FROM schedule_ticks AS tick
      LEFT JOIN schedule_backfills AS backfill ON backfill.id = tick.backfill_id
     WHERE tick.schedule_id = $1 AND tick.state = 'pending'
     ORDER BY tick.try_at > clock_timestamp() AND ($3 OR tick.kind <> 'timed'),
              tick.kind = 'backfill', tick.tick_at
     LIMIT $2
"""


async def pending(db: Db, schedule: Claimed, *, limit: int) -> list[PendingTick]:
    """Return pending ticks of a schedule: those that may start first, oldest first.

    Timed ticks come before all others, so that hundreds of a backfill that wait for a quota delay
    none. If only one run may be open, timed ticks are returned in order, due or not.
    """
    beside = schedule.overlap == "allow"
    return [
        PendingTick(**dict(row)) for row in await db.fetch(_PENDING, schedule.id, limit, beside)
    ]


# An execution deleted by retention has ended, too.
_CLOSE: Final[LiteralString] = """
    UPDATE schedule_ticks SET is_over = true
     WHERE schedule_id = $1 AND state = 'started' AND NOT is_over
       AND NOT EXISTS (SELECT 1 FROM workflow_executions AS run
                        WHERE run.id = execution_id AND run.completed_at IS NULL)
"""


async def mark_over(db: Db, schedule_id: UUID) -> None:
    """Mark the ticks of a schedule whose runs have ended."""
    await db.execute(_CLOSE, schedule_id)


_OPEN: Final[LiteralString] = """
    SELECT execution_id FROM schedule_ticks
     WHERE schedule_id = $1 AND state = 'started' AND NOT is_over AND kind <> 'backfill'
     ORDER BY tick_at
"""


async def open_runs(db: Db, schedule_id: UUID) -> list[UUID]:
    """Return the open runs of a schedule, without those of backfills."""
    await mark_over(db, schedule_id)
    return [row["execution_id"] for row in await db.fetch(_OPEN, schedule_id)]


_MAKER: Final[LiteralString] = """
    SELECT schedule.created_by, schedule.tenant_id
      FROM schedules AS schedule
      JOIN schedule_ticks AS tick ON tick.schedule_id = schedule.id
     WHERE schedule.id = $1 AND schedule.overlap = 'cancel_running'
       AND tick.execution_id = $2 AND tick.kind <> 'backfill'
       AND tick.state = 'started' AND NOT tick.is_over
       AND EXISTS (SELECT 1 FROM schedule_ticks AS next
                    WHERE next.schedule_id = $1 AND next.state = 'pending' AND next.kind = 'timed')
"""


async def maker_of_overlapping(
    db: Db, schedule_id: UUID, execution_id: UUID
) -> tuple[UUID, UUID] | None:
    """Return the creator and tenant of a schedule, if a tick waits for this run to be cancelled."""
    row = await db.fetchrow(_MAKER, schedule_id, execution_id)
    return None if row is None else (row["created_by"], row["tenant_id"])


_RUN: Final[LiteralString] = """
    SELECT id FROM workflow_executions
     WHERE tenant_id = $1 AND created_by = $2 AND request_id = $3
"""


async def run_of(db: Db, schedule: Claimed, request_id: UUID) -> UUID | None:
    """Return the run that was started for a tick, even if it was not recorded at the tick."""
    found: UUID | None = await db.fetchval(
        _RUN, schedule.tenant_id, schedule.created_by, request_id
    )
    return found


_SETTLE: Final[LiteralString] = """
    UPDATE schedule_ticks
       SET state = $3, execution_id = $4, reason = $5, message = $6, try_at = NULL
     WHERE schedule_id = $1 AND tick_at = $2 AND state = 'pending'
 RETURNING true
"""
_STARTED: Final[LiteralString] = """
    UPDATE schedules SET error_reason = NULL, error_message = NULL, error_at = NULL
     WHERE id = $1 AND error_reason IS NOT NULL
"""
_SKIPPED: Final[LiteralString] = (
    "UPDATE schedules SET skipped_count = skipped_count + 1 WHERE id = $1"
)
_FAILED: Final[LiteralString] = """
    UPDATE schedules
       SET error_reason = $2, error_message = $3, error_at = clock_timestamp(),
           paused_at = CASE WHEN $4 THEN COALESCE(paused_at, clock_timestamp()) ELSE paused_at END,
           pause_reason = CASE WHEN $4 THEN $3 ELSE pause_reason END,
           due_at = CASE WHEN $4 THEN NULL ELSE due_at END,
           fire_at = CASE WHEN $4 THEN NULL ELSE fire_at END
     WHERE id = $1
"""


async def started(db: Db, schedule_id: UUID, tick_at: datetime, execution_id: UUID) -> None:
    """Record the run of a tick."""
    await db.execute(_SETTLE, schedule_id, tick_at, "started", execution_id, "", "")
    await db.execute(_STARTED, schedule_id)


async def skipped(
    db: Db, schedule_id: UUID, tick_at: datetime, *, reason: str, message: str
) -> None:
    """Record that a tick was skipped, unless another settled it in the meantime."""
    if await db.fetchval(_SETTLE, schedule_id, tick_at, "skipped", None, reason, message):
        await db.execute(_SKIPPED, schedule_id)


async def settle_failed(
    db: Db, schedule_id: UUID, tick_at: datetime, *, reason: str, message: str
) -> None:
    """Record that a tick failed to start its run."""
    await db.execute(_SETTLE, schedule_id, tick_at, "failed", None, reason, message)


async def fail(db: Db, schedule_id: UUID, *, reason: str, message: str, pauses: bool) -> None:
    """Record an error at a schedule, and pause it if `pauses`."""
    await db.execute(_FAILED, schedule_id, reason, message, pauses)


_DEFER: Final[LiteralString] = """
    UPDATE schedule_ticks
       SET try_at = clock_timestamp() + $3, attempts = attempts + $4, reason = $5, message = $6
     WHERE schedule_id = $1 AND tick_at = $2 AND state = 'pending'
"""


async def defer(
    db: Db,
    schedule_id: UUID,
    tick_at: datetime,
    *,
    by: timedelta,
    attempts: int = 0,
    reason: str,
    message: str,
) -> None:
    """Defer a tick, with the reason."""
    await db.execute(_DEFER, schedule_id, tick_at, by, attempts, reason, message)


# Otherwise they would be found due again and again, with nothing to do.
_PUT_BEHIND: Final[LiteralString] = """
    UPDATE schedule_ticks AS tick
       SET try_at = before.try_at, reason = $3, message = $4
      FROM schedule_ticks AS before
     WHERE before.schedule_id = $1 AND before.tick_at = $2
       AND tick.schedule_id = $1 AND tick.tick_at > $2 AND tick.kind = 'timed'
       AND tick.state = 'pending' AND tick.try_at < before.try_at
"""


async def put_behind(
    db: Db, schedule_id: UUID, tick_at: datetime, *, reason: str, message: str
) -> None:
    """Defer the timed ticks after one until that one is retried."""
    await db.execute(_PUT_BEHIND, schedule_id, tick_at, reason, message)


_HURRY: Final[LiteralString] = """
    UPDATE schedule_ticks SET try_at = clock_timestamp()
     WHERE schedule_id = ANY($1) AND state = 'pending' AND reason = $2
       AND try_at > clock_timestamp()
"""


async def hurry(db: Db, schedule_ids: Sequence[UUID], *, reason: str) -> None:
    """Make ticks due now that were deferred for this reason."""
    await db.execute(_HURRY, list(schedule_ids), reason)


# A schedule claimed by another member is due when the claim expires, or is released.
_NEXT: Final[LiteralString] = """
    SELECT EXTRACT(epoch FROM LEAST(
        (SELECT min(fire_at) FROM schedules WHERE fire_at IS NOT NULL),
        (SELECT min(GREATEST(tick.try_at, schedule.claimed_until))
           FROM (SELECT schedule_id, try_at FROM schedule_ticks
                  WHERE state = 'pending' ORDER BY try_at LIMIT 200) AS tick
           JOIN schedules AS schedule ON schedule.id = tick.schedule_id),
        (SELECT min(step_at) FROM schedule_backfills WHERE step_at IS NOT NULL)
    ) - clock_timestamp())::float8
"""


async def next_s(db: Db) -> float | None:
    """Return the seconds until there is something to do; None if there never is."""
    left: float | None = await db.fetchval(_NEXT)
    return left
