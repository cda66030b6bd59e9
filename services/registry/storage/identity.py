"""Users, sessions and service tokens, under the only login that may read them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.registry.domain.identity import User

_GET_USER_BY_EMAIL: Final[LiteralString] = """
    SELECT id, email, role, is_owner, is_active, password_hash
      FROM users
     WHERE lower(email) = lower($1)
"""


async def get_user_by_email(db: Db, email: str) -> User | None:
    """Return the user with this address, compared without case."""
    row = await db.fetchrow(_GET_USER_BY_EMAIL, email)
    return None if row is None else _to_user(row)


_GET_OWNER: Final[LiteralString] = """
    SELECT id, email, role, is_owner, is_active, password_hash
      FROM users
     WHERE is_owner
"""


async def get_owner(db: Db) -> User | None:
    """Return the owner of the deployment."""
    row = await db.fetchrow(_GET_OWNER)
    return None if row is None else _to_user(row)


# Of two concurrent inserts of one address, or of an owner, one inserts nothing.
_INSERT_USER: Final[LiteralString] = """
    INSERT INTO users (id, email, role, is_owner, password_hash)
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT DO NOTHING
 RETURNING id
"""


async def insert_user(db: Db, user: User) -> bool:
    """Insert a user; False if the address, or the role of owner, is taken."""
    inserted = await db.fetchval(
        _INSERT_USER, user.id, user.email, user.role, user.is_owner, user.password_hash
    )
    return inserted is not None


_UPDATE_HASH: Final[LiteralString] = """
    UPDATE users
       SET password_hash = $2
     WHERE id = $1 AND password_hash = $3
"""


async def update_password_hash(db: Db, user_id: UUID, password_hash: str, *, was: str) -> None:
    """Replace a hash that was made with weaker settings, unless it changed meanwhile."""
    await db.execute(_UPDATE_HASH, user_id, password_hash, was)


_INSERT_SESSION: Final[LiteralString] = """
    INSERT INTO user_sessions (id, user_id, session_token, expires_at)
    VALUES ($1, $2, $3, clock_timestamp() + $4)
 RETURNING id, expires_at
"""


async def insert_session(
    db: Db, session_id: UUID, user_id: UUID, *, digest: str, lifetime: timedelta
) -> Row:
    """Insert a session for a token's digest; returns a row with its id and `expires_at`."""
    row = await db.fetchrow(_INSERT_SESSION, session_id, user_id, digest, lifetime)
    assert row is not None
    return row


_DELETE_SESSION: Final[LiteralString] = """
    DELETE FROM user_sessions WHERE id = $1 AND user_id = $2
 RETURNING session_token
"""


async def delete_session(db: Db, session_id: UUID, *, user_id: UUID) -> str | None:
    """Delete a session of a user; returns its digest, so that caches can evict it."""
    digest: str | None = await db.fetchval(_DELETE_SESSION, session_id, user_id)
    return digest


_DELETE_SESSION_BY_DIGEST: Final[LiteralString] = """
    DELETE FROM user_sessions WHERE session_token = $1
"""


async def delete_session_by_digest(db: Db, digest: str) -> None:
    """Delete the session of a token, if there is one."""
    await db.execute(_DELETE_SESSION_BY_DIGEST, digest)


_UPSERT_SERVICE: Final[LiteralString] = """
    INSERT INTO service_tokens (id, name, token_sha256, scopes)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT (name) DO UPDATE
       SET token_sha256 = excluded.token_sha256, scopes = excluded.scopes, expires_at = NULL
"""


async def upsert_service_token(
    db: Db, token_id: UUID, name: str, *, digest: str, scopes: Sequence[str]
) -> None:
    """Store a service's token, replacing an earlier one."""
    await db.execute(_UPSERT_SERVICE, token_id, name, digest, list(scopes))


def _to_user(row: Row) -> User:
    return User(
        id=row["id"],
        email=row["email"],
        role=row["role"],
        is_owner=row["is_owner"],
        is_active=row["is_active"],
        password_hash=row["password_hash"],
    )
