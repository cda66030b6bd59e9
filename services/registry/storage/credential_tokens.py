"""Single-use tokens for setting a password, by invitation or reset; at most one per user."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Literal, LiteralString
from uuid import UUID

from services.kit.pg import Db

Purpose = Literal["invitation", "password_reset"]

_UPSERT: Final[LiteralString] = """
    INSERT INTO credential_tokens
           (user_id, tenant_id, purpose, token_sha256, expires_at, created_by)
    VALUES ($1, $1, $2, $3, clock_timestamp() + $4::interval, $5)
        ON CONFLICT (user_id) DO UPDATE
       SET purpose = excluded.purpose, token_sha256 = excluded.token_sha256,
           expires_at = excluded.expires_at, created_by = excluded.created_by,
           created_at = clock_timestamp()
 RETURNING expires_at
"""


async def upsert_token(
    db: Db, user_id: UUID, purpose: Purpose, *, digest: str, lifetime: timedelta, created_by: UUID
) -> datetime:
    """Store a user's token, replacing an earlier one; returns when it expires."""
    expires_at: datetime = await db.fetchval(
        _UPSERT, user_id, purpose, digest, lifetime, created_by
    )
    return expires_at


_IS_OPEN: Final[LiteralString] = """
    SELECT EXISTS (
        SELECT 1 FROM credential_tokens
         WHERE token_sha256 = $1 AND purpose = $2 AND expires_at > clock_timestamp())
"""


async def is_open(db: Db, digest: str, purpose: Purpose) -> bool:
    """Return whether a token is valid now."""
    found: bool = await db.fetchval(_IS_OPEN, digest, purpose)
    return found


# Of two concurrent calls with the same token, only one deletes it.
_TAKE: Final[LiteralString] = """
    DELETE FROM credential_tokens
     WHERE token_sha256 = $1 AND purpose = $2 AND expires_at > clock_timestamp()
 RETURNING user_id
"""


async def take(db: Db, digest: str, purpose: Purpose) -> UUID | None:
    """Use up a token; returns its user's id, None if it is not valid."""
    user_id: UUID | None = await db.fetchval(_TAKE, digest, purpose)
    return user_id


_DELETE: Final[LiteralString] = """
    DELETE FROM credential_tokens WHERE user_id = $1
"""


async def delete_token(db: Db, user_id: UUID) -> None:
    """Delete a user's token, if there is one."""
    await db.execute(_DELETE, user_id)
