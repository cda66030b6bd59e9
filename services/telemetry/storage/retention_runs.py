"""retention_runs: passes of retention, requested or scheduled, and their results."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.telemetry.domain.records import Position
from services.telemetry.domain.retention import Removed, RetentionRun

_ASK: Final[LiteralString] = """
    INSERT INTO retention_runs (id, state, requested_by) VALUES ($1, 'asked', current_user_id())
 RETURNING id, state, requested_by, created_at, started_at, ended_at, report
"""


async def ask(db: Db, run_id: UUID) -> RetentionRun:
    """Insert a pass requested by the transaction's caller, an administrator."""
    row = await db.fetchrow(_ASK, run_id)
    assert row is not None
    return _to_run(row)


_GET: Final[LiteralString] = """
    SELECT id, state, requested_by, created_at, started_at, ended_at, report
      FROM retention_runs
     WHERE id = $1
"""


async def get_run(db: Db, run_id: UUID) -> RetentionRun | None:
    """Return a pass."""
    row = await db.fetchrow(_GET, run_id)
    return None if row is None else _to_run(row)


_LIST: Final[LiteralString] = """
    SELECT id, state, requested_by, created_at, started_at, ended_at, report
      FROM retention_runs
     WHERE (created_at, id) < ($1, $2)
     ORDER BY created_at DESC, id DESC
     LIMIT $3
"""


async def list_runs(db: Db, *, after: Position, limit: int) -> list[RetentionRun]:
    """Return a page, newest first."""
    return [_to_run(row) for row in await db.fetch(_LIST, *after, limit)]


_BEGIN_DUE: Final[LiteralString] = """
    INSERT INTO retention_runs (id, state, started_at) VALUES ($1, 'running', clock_timestamp())
"""


async def begin_due(db: Db, run_id: UUID) -> None:
    """Insert a scheduled pass as running."""
    await db.execute(_BEGIN_DUE, run_id)


_BEGIN_ASKED: Final[LiteralString] = """
    UPDATE retention_runs SET state = 'running', started_at = clock_timestamp()
     WHERE id IN (
        SELECT id FROM retention_runs
         WHERE state = 'asked' ORDER BY created_at LIMIT 100 FOR UPDATE SKIP LOCKED)
 RETURNING id
"""


async def begin_asked(db: Db) -> Sequence[UUID]:
    """Mark all requested passes as running, since one pass serves them all; returns their ids."""
    return [row["id"] for row in await db.fetch(_BEGIN_ASKED)]


_IS_ASKED: Final[LiteralString] = """
    SELECT EXISTS (SELECT FROM retention_runs WHERE state = 'asked')
"""


async def is_asked(db: Db) -> bool:
    """Return whether a requested pass has not been started."""
    return bool(await db.fetchval(_IS_ASKED))


_END: Final[LiteralString] = """
    UPDATE retention_runs SET state = $2, ended_at = clock_timestamp(), report = $3::jsonb
     WHERE id = ANY($1::uuid[])
"""


async def end(db: Db, run_ids: Sequence[UUID], *, state: str, removed: Sequence[Removed]) -> None:
    """Record the result of passes."""
    await db.execute(_END, run_ids, state, [each.as_json() for each in removed])


# A pass takes minutes: one that runs for so long has been abandoned.
_INTERRUPT: Final[LiteralString] = """
    UPDATE retention_runs SET state = 'interrupted', ended_at = clock_timestamp()
     WHERE state = 'running' AND started_at < clock_timestamp() - $1::interval
"""


async def interrupt(db: Db, *, after: timedelta) -> None:
    """Mark passes that started so long ago as interrupted."""
    await db.execute(_INTERRUPT, after)


def _to_run(row: Row) -> RetentionRun:
    return RetentionRun(
        id=row["id"],
        state=row["state"],
        requested_by=row["requested_by"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        removed=[
            Removed(
                subject=each["subject"],
                rows=each["rows"],
                is_incomplete=each["incomplete"],
                fault=each["fault"],
                batches=each["batches"],
                longest_ms=each["longest_ms"],
            )
            for each in row["report"]
        ],
    )
