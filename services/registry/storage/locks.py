"""Lock files of node versions: the exact distributions that a version runs with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row


@dataclass(frozen=True, slots=True)
class PendingLock:
    """A lock file that has yet to be resolved."""

    node_version_id: UUID
    tenant_id: UUID
    python_version: str
    requirements: tuple[str, ...]
    attempts: int


# The condition on the state makes this idempotent: only the first writer changes the row.
_SAVE_LOCKED: Final[LiteralString] = """
    UPDATE node_version_locks
       SET state = 'locked', lock = $2, lock_digest = $3, error = NULL, attempts = attempts + 1
     WHERE node_version_id = $1 AND state = 'pending'
"""


async def save_locked(db: Db, node_version_id: UUID, *, lock: str, digest: str) -> None:
    """Store a resolved lock file."""
    await db.execute(_SAVE_LOCKED, node_version_id, lock, digest)


_SAVE_FAILED: Final[LiteralString] = """
    UPDATE node_version_locks
       SET state = CASE WHEN $3 THEN 'failed' ELSE 'pending' END, error = $2,
           attempts = attempts + 1
     WHERE node_version_id = $1 AND state = 'pending'
"""


async def save_failed(db: Db, node_version_id: UUID, *, error: str, final: bool) -> None:
    """Store why a lock failed, finally or until the next attempt."""
    await db.execute(_SAVE_FAILED, node_version_id, error, final)


# The delay doubles from 8 s to 5 min. The update claims a row by touching it: other replicas skip
# it while it is locked, and then see it as not due.
_CLAIM_DUE: Final[LiteralString] = """
    WITH due AS (
        SELECT node_version_id
          FROM node_version_locks
         WHERE state = 'pending'
           AND updated_at <= clock_timestamp()
               - make_interval(secs => LEAST(8 * power(2, LEAST(attempts, 6)), 300))
         ORDER BY updated_at
         LIMIT $1
           FOR UPDATE SKIP LOCKED
    )
    UPDATE node_version_locks l
       SET attempts = l.attempts
      FROM due, python_node_versions v
     WHERE l.node_version_id = due.node_version_id AND v.id = due.node_version_id
 RETURNING l.node_version_id, l.tenant_id, l.attempts, v.python_version, v.dependencies
"""


async def claim_due(db: Db, *, limit: int) -> list[PendingLock]:
    """Claim pending locks that are due; a claim restarts the row's delay."""
    return [_to_pending(row) for row in await db.fetch(_CLAIM_DUE, limit)]


_NEXT_DUE: Final[LiteralString] = """
    SELECT min(updated_at + make_interval(secs => LEAST(8 * power(2, LEAST(attempts, 6)), 300)))
           - clock_timestamp()
      FROM node_version_locks
     WHERE state = 'pending'
"""


async def next_due_in(db: Db) -> timedelta | None:
    """Return the time until a pending lock is due, None without any; by the database's clock."""
    wait: timedelta | None = await db.fetchval(_NEXT_DUE)
    return wait


def _to_pending(row: Row) -> PendingLock:
    return PendingLock(
        row["node_version_id"],
        row["tenant_id"],
        row["python_version"],
        tuple(each["requirement"] for each in row["dependencies"] or ()),
        row["attempts"],
    )
