"""Due backfills, as the engine continues them across tenants.

The row of a backfill is locked while its next ticks are inserted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, LiteralString
from uuid import UUID

from services.kit.pg import Db
from services.orchestrator.domain.timing import Timing, from_json
from services.orchestrator.storage.schedule_due import mark_over


@dataclass(frozen=True, slots=True, kw_only=True)
class DueBackfill:
    """A backfill that may continue, locked until the transaction ends."""

    id: UUID
    schedule_id: UUID
    tenant_id: UUID
    timing: Timing  # up to the end of the backfill
    next_at: datetime | None
    max_running: int


_DUE: Final[LiteralString] = """
    SELECT id, schedule_id, tenant_id, timing, next_at, max_running
      FROM schedule_backfills
     WHERE step_at <= clock_timestamp()
     ORDER BY step_at, id LIMIT $1
       FOR UPDATE SKIP LOCKED
"""


async def hold_due(db: Db, *, limit: int) -> list[DueBackfill]:
    """Lock backfills that may continue."""
    found = []
    for row in await db.fetch(_DUE, limit):
        values: dict[str, Any] = dict(row)
        found.append(DueBackfill(timing=from_json(values.pop("timing")), **values))
    return found


_COUNT_OPEN: Final[LiteralString] = """
    SELECT count(*) FROM schedule_ticks
     WHERE backfill_id = $1 AND (state = 'pending' OR state = 'started' AND NOT is_over)
"""


async def count_open(db: Db, backfill: DueBackfill) -> int:
    """Count the ticks of a backfill whose run has not ended."""
    await mark_over(db, backfill.schedule_id)
    return int(await db.fetchval(_COUNT_OPEN, backfill.id))


# Ticks that exist already are left alone.
_TAKE: Final[LiteralString] = """
    INSERT INTO schedule_ticks (schedule_id, tick_at, kind, state, try_at, backfill_id, tenant_id)
    SELECT $1, tick_at, 'backfill', 'pending', clock_timestamp(), $2, $3
      FROM unnest($4::timestamptz[]) AS tick_at ORDER BY tick_at
        ON CONFLICT (schedule_id, tick_at) DO UPDATE
       SET kind = 'backfill', state = 'pending', try_at = clock_timestamp(), attempts = 0,
           tick_count = 1, reason = '', message = '', backfill_id = EXCLUDED.backfill_id
     WHERE schedule_ticks.state IN ('skipped', 'failed')
 RETURNING tick_at
"""
_STEP: Final[LiteralString] = """
    UPDATE schedule_backfills
       SET next_at = $2, done_count = done_count + $3, present_count = present_count + $4,
           step_at = CASE WHEN NOT $5 THEN clock_timestamp() + $6 END,
           state = CASE WHEN $5 THEN 'completed' ELSE state END,
           completed_at = CASE WHEN $5 THEN clock_timestamp() END
     WHERE id = $1
"""


async def take(db: Db, backfill: DueBackfill, moments: Sequence[datetime]) -> int:
    """Insert ticks of a locked backfill, except for times that have one; returns their number."""
    made = await db.fetch(
        _TAKE, backfill.schedule_id, backfill.id, backfill.tenant_id, list(moments)
    )
    return len(made)


async def step(
    db: Db,
    backfill: DueBackfill,
    *,
    next_at: datetime | None,
    done: int,
    present: int,
    completed: bool,
    pause: timedelta,
) -> None:
    """Update the progress of a locked backfill."""
    await db.execute(_STEP, backfill.id, next_at, done, present, completed, pause)
