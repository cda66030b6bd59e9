"""Sessions, under the only login that may read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db


@dataclass(frozen=True, slots=True)
class Session:
    """A session without its token."""

    id: UUID
    user_id: UUID
    created_at: datetime
    expires_at: datetime


# Locks the user: a concurrent password change or deactivation either commits first, and no session
# is created, or afterwards, and then finds and ends it.
_OPEN: Final[LiteralString] = """
    WITH admitted AS MATERIALIZED (
        SELECT id FROM users WHERE id = $2 AND is_active AND password_hash = $5 FOR SHARE
    )
    INSERT INTO user_sessions (id, user_id, session_token, expires_at)
    SELECT $1, id, $3, clock_timestamp() + $4::interval FROM admitted
 RETURNING expires_at
"""


async def open_session(
    db: Db,
    session_id: UUID,
    user_id: UUID,
    *,
    digest: str,
    lifetime: timedelta,
    password_hash: str,
) -> datetime | None:
    """Open a session; None if the password hash has changed or the user is not active."""
    expires_at: datetime | None = await db.fetchval(
        _OPEN, session_id, user_id, digest, lifetime, password_hash
    )
    return expires_at


_LIST: Final[LiteralString] = """
    SELECT id, user_id, created_at, expires_at
      FROM user_sessions
     WHERE user_id = $1 AND expires_at > clock_timestamp()
       AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $4
"""


async def list_sessions(
    db: Db, user_id: UUID, *, after: tuple[datetime, UUID] | None, limit: int
) -> Sequence[Session]:
    """List a user's sessions that have not expired, newest first."""
    moment, row_id = after or (None, None)
    rows = await db.fetch(_LIST, user_id, moment, row_id, limit)
    return [Session(*row.values()) for row in rows]


_DELETE: Final[LiteralString] = """
    DELETE FROM user_sessions
     WHERE id = $1 AND ($2::uuid IS NULL OR user_id = $2)
 RETURNING session_token, user_id
"""


async def delete_session(
    db: Db, session_id: UUID, *, user_id: UUID | None
) -> tuple[str, UUID] | None:
    """Delete a session, of one user or of any; returns its digest and user."""
    row = await db.fetchrow(_DELETE, session_id, user_id)
    return None if row is None else (row["session_token"], row["user_id"])


_DELETE_ALL: Final[LiteralString] = """
    DELETE FROM user_sessions
     WHERE user_id = $1 AND ($2::uuid IS NULL OR id <> $2)
 RETURNING session_token
"""


async def delete_sessions(db: Db, user_id: UUID, *, keep: UUID | None = None) -> list[str]:
    """Delete a user's sessions except `keep`; returns their digests, for eviction from caches."""
    return [row["session_token"] for row in await db.fetch(_DELETE_ALL, user_id, keep)]
