"""Service tokens of users, under the only login that may read their digests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceToken:
    """A token without its secret."""

    id: UUID
    user_id: UUID
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None


_COLUMNS: Final[LiteralString] = """
    id, user_id, name, scopes, created_at, expires_at, last_used_at
"""

# Serializes the creation of one user's tokens, so that concurrent calls cannot exceed the limit.
_LOCK_USER: Final[LiteralString] = """
    SELECT id FROM users WHERE id = $1 AND is_active FOR NO KEY UPDATE
"""
_COUNT: Final[LiteralString] = """
    SELECT count(*) FROM user_service_tokens WHERE user_id = $1
"""


async def count_held(db: Db, user_id: UUID) -> int | None:
    """Lock a user and count their tokens; None if the user is not active."""
    if await db.fetchval(_LOCK_USER, user_id) is None:
        return None
    count: int = await db.fetchval(_COUNT, user_id)
    return count


_INSERT: Final[LiteralString] = f"""
    INSERT INTO user_service_tokens (id, tenant_id, user_id, name, token_sha256, scopes, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp() + $7::interval)
        ON CONFLICT (user_id, name) DO NOTHING
 RETURNING {_COLUMNS}
"""


async def insert_token(
    db: Db,
    token_id: UUID,
    name: str,
    *,
    user_id: UUID,
    tenant_id: UUID,
    digest: str,
    scopes: Sequence[str],
    lifetime: timedelta,
) -> ServiceToken | None:
    """Insert a token; None if the user already has one with this name."""
    row = await db.fetchrow(
        _INSERT, token_id, tenant_id, user_id, name, digest, list(scopes), lifetime
    )
    return None if row is None else _to_token(row)


_LIST: Final[LiteralString] = f"""
    SELECT {_COLUMNS} FROM user_service_tokens WHERE user_id = $1 ORDER BY created_at DESC, id DESC
"""


async def list_tokens(db: Db, user_id: UUID) -> Sequence[ServiceToken]:
    """List all tokens of a user, newest first."""
    return [_to_token(row) for row in await db.fetch(_LIST, user_id)]


_DELETE: Final[LiteralString] = """
    DELETE FROM user_service_tokens
     WHERE id = $1 AND ($2::uuid IS NULL OR user_id = $2)
 RETURNING token_sha256, user_id, scopes
"""


async def delete_token(
    db: Db, token_id: UUID, *, user_id: UUID | None
) -> tuple[str, UUID, list[str]] | None:
    """Delete a token, of one user or of any; returns its digest, user and scopes."""
    row = await db.fetchrow(_DELETE, token_id, user_id)
    return None if row is None else (row["token_sha256"], row["user_id"], row["scopes"])


_DELETE_ALL: Final[LiteralString] = """
    DELETE FROM user_service_tokens WHERE user_id = $1 RETURNING token_sha256
"""


async def delete_tokens(db: Db, user_id: UUID) -> list[str]:
    """Delete all tokens of a user; returns their digests, so that caches can evict them."""
    return [row["token_sha256"] for row in await db.fetch(_DELETE_ALL, user_id)]


def _to_token(row: Row) -> ServiceToken:
    return ServiceToken(
        id=row["id"],
        user_id=row["user_id"],
        name=row["name"],
        scopes=tuple(row["scopes"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        last_used_at=row["last_used_at"],
    )
