"""Ticks of schedules and backfills for callers, under row-level security."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.orchestrator.domain.timing import Timing, to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One row of schedule_ticks."""

    schedule_id: UUID
    tick_at: datetime
    kind: str
    state: str
    updated_at: datetime
    tick_count: int = 1
    execution_id: UUID | None = None
    reason: str = ""
    message: str = ""
    backfill_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfill:
    """One row of schedule_backfills."""

    id: UUID
    schedule_id: UUID
    from_at: datetime
    to_at: datetime
    max_running: int
    state: str
    total_count: int
    done_count: int
    present_count: int
    created_by: UUID
    created_at: datetime
    completed_at: datetime | None


# A manual tick is at the time of the call.
_TRIGGER: Final[LiteralString] = """
    INSERT INTO schedule_ticks (schedule_id, tick_at, kind, state, try_at)
    SELECT $1, moment, 'manual', 'pending', moment FROM clock_timestamp() AS moment
 RETURNING schedule_id, tick_at, kind, state, updated_at
"""


async def trigger(db: Db, schedule_id: UUID) -> Tick:
    """Add a tick for now."""
    row = await db.fetchrow(_TRIGGER, schedule_id)
    assert row is not None
    return Tick(**dict(row))


_LIST: Final[LiteralString] = """
    SELECT schedule_id, tick_at, kind, state, updated_at, tick_count, execution_id, reason, message,
           backfill_id
      FROM schedule_ticks
     WHERE ($1::uuid IS NULL OR schedule_id = $1) AND ($2::uuid IS NULL OR execution_id = $2)
       AND (cardinality($3::text[]) = 0 OR state = ANY ($3))
       AND ($4::timestamptz IS NULL OR (tick_at, schedule_id) < ($4, $5::uuid))
     ORDER BY tick_at DESC, schedule_id DESC
     LIMIT $6
"""


async def list_page(
    db: Db,
    *,
    schedule_id: UUID | None,
    execution_id: UUID | None,
    states: Sequence[str],
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Tick]:
    """Return ticks of a schedule, or the one of an execution; newest first."""
    tick_at, key = before or (None, None)
    rows = await db.fetch(_LIST, schedule_id, execution_id, list(states), tick_at, key, limit)
    return [Tick(**dict(row)) for row in rows]


_COUNT_BACKFILLS: Final[LiteralString] = """
    SELECT count(*) FROM schedule_backfills WHERE schedule_id = $1 AND state = 'running'
"""


async def count_backfills(db: Db, schedule_id: UUID) -> int:
    """Count the running backfills of a schedule."""
    return int(await db.fetchval(_COUNT_BACKFILLS, schedule_id))


_INSERT_BACKFILL: Final[LiteralString] = """
    INSERT INTO schedule_backfills
           (id, schedule_id, timing, from_at, to_at, next_at, step_at, max_running, total_count)
    VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp(), $7, $8)
 RETURNING id, schedule_id, from_at, to_at, max_running, state, total_count, done_count,
           present_count, created_by, created_at, completed_at
"""


async def insert_backfill(db: Db, backfill: Backfill, timing: Timing, first: datetime) -> Backfill:
    """Add a backfill with the present timing of a schedule."""
    row = await db.fetchrow(
        _INSERT_BACKFILL,
        backfill.id,
        backfill.schedule_id,
        to_json(timing),
        backfill.from_at,
        backfill.to_at,
        first,
        backfill.max_running,
        backfill.total_count,
    )
    assert row is not None
    return Backfill(**dict(row))


_LIST_BACKFILLS: Final[LiteralString] = """
    SELECT id, schedule_id, from_at, to_at, max_running, state, total_count, done_count,
           present_count, created_by, created_at, completed_at
      FROM schedule_backfills
     WHERE schedule_id = $1 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $4
"""


async def list_backfills(
    db: Db, schedule_id: UUID, *, before: tuple[datetime, UUID] | None, limit: int
) -> list[Backfill]:
    """Return the backfills of a schedule, newest first."""
    created_at, row_id = before or (None, None)
    rows = await db.fetch(_LIST_BACKFILLS, schedule_id, created_at, row_id, limit)
    return [Backfill(**dict(row)) for row in rows]


_CANCEL_BACKFILL: Final[LiteralString] = """
    UPDATE schedule_backfills
       SET state = 'cancelled', step_at = NULL, completed_at = clock_timestamp()
     WHERE id = $1 AND state = 'running'
"""
_GET_BACKFILL: Final[LiteralString] = """
    SELECT id, schedule_id, from_at, to_at, max_running, state, total_count, done_count,
           present_count, created_by, created_at, completed_at
      FROM schedule_backfills WHERE id = $1
"""


async def cancel_backfill(db: Db, backfill_id: UUID) -> Backfill | None:
    """Cancel a backfill if it is running; returns it, None if the caller cannot read it."""
    await db.execute(_CANCEL_BACKFILL, backfill_id)
    row: Row | None = await db.fetchrow(_GET_BACKFILL, backfill_id)
    return None if row is None else Backfill(**dict(row))
