"""User accounts as administrators and the users themselves see them, under the identity login."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.registry.domain.accounts import Account, state_of

# The user of services and builtin rows; nobody's account.
SYSTEM_USER: Final = UUID(int=1)

_COLUMNS: Final[LiteralString] = """
    id, email, COALESCE(first_name, '') AS first_name, COALESCE(last_name, '') AS last_name, role,
    is_owner, is_active, password_hash IS NOT NULL AS has_password,
    anonymized_at IS NOT NULL AS is_anonymized, created_at, updated_at
"""

_GET: Final[LiteralString] = f"""
    SELECT {_COLUMNS} FROM users WHERE id = $1 AND id <> $2
"""


async def get_user(db: Db, user_id: UUID) -> Account | None:
    """Return a user."""
    row = await db.fetchrow(_GET, user_id, SYSTEM_USER)
    return None if row is None else _to_account(row)


# In a fixed order, so that concurrent changes of the same users cannot deadlock.
_LOCK: Final[LiteralString] = f"""
    SELECT {_COLUMNS}
      FROM users
     WHERE (id = $1 OR (is_owner AND $3)) AND id <> $2
     ORDER BY id
       FOR UPDATE
"""


async def lock_user(db: Db, user_id: UUID) -> Account | None:
    """Lock and return a user."""
    row = await db.fetchrow(_LOCK, user_id, SYSTEM_USER, False)
    return None if row is None else _to_account(row)


async def lock_user_and_owner(db: Db, user_id: UUID) -> tuple[Account | None, Account | None]:
    """Lock and return a user and the owner."""
    found = [_to_account(row) for row in await db.fetch(_LOCK, user_id, SYSTEM_USER, True)]
    user = next((each for each in found if each.id == user_id), None)
    return user, next((each for each in found if each.is_owner), None)


_LIST: Final[LiteralString] = f"""
    SELECT {_COLUMNS}
      FROM users
     WHERE id <> $4
       AND ($1::timestamptz IS NULL OR (created_at, id) < ($1, $2::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $3
"""


async def list_users(
    db: Db, *, after: tuple[datetime, UUID] | None, limit: int
) -> Sequence[Account]:
    """List users, newest first."""
    moment, row_id = after or (None, None)
    rows = await db.fetch(_LIST, moment, row_id, limit, SYSTEM_USER)
    return [_to_account(row) for row in rows]


_INSERT: Final[LiteralString] = f"""
    INSERT INTO users (id, email, first_name, last_name, role)
    VALUES ($1, $2, NULLIF($3, ''), NULLIF($4, ''), $5)
        ON CONFLICT DO NOTHING
 RETURNING {_COLUMNS}
"""


async def insert_invited(
    db: Db, user_id: UUID, email: str, *, first_name: str, last_name: str, role: str
) -> Account | None:
    """Insert a user without a password; None if the address is taken."""
    row = await db.fetchrow(_INSERT, user_id, email, first_name, last_name, role)
    return None if row is None else _to_account(row)


_UPDATE: Final[LiteralString] = f"""
    UPDATE users
       SET first_name = NULLIF($2, ''), last_name = NULLIF($3, ''), role = $4, is_owner = $5,
           is_active = $6
     WHERE id = $1
 RETURNING {_COLUMNS}
"""


async def update_user(db: Db, account: Account, *, is_active: bool | None = None) -> Account:
    """Update a user's names, role, ownership and whether the user is active."""
    active = account.state in {"invited", "active"} if is_active is None else is_active
    row = await db.fetchrow(
        _UPDATE,
        account.id,
        account.first_name,
        account.last_name,
        account.role,
        account.is_owner,
        active,
    )
    assert row is not None
    return _to_account(row)


_SET_PASSWORD: Final[LiteralString] = f"""
    UPDATE users SET password_hash = $2
     WHERE id = $1 AND is_active AND ($3::text IS NULL OR password_hash = $3)
 RETURNING {_COLUMNS}
"""


async def set_password(
    db: Db, user_id: UUID, password_hash: str, *, was: str | None = None
) -> Account | None:
    """Set a user's password; None if the old one has changed or the user is not active."""
    row = await db.fetchrow(_SET_PASSWORD, user_id, password_hash, was)
    return None if row is None else _to_account(row)


_GET_HASH: Final[LiteralString] = """
    SELECT email, password_hash FROM users WHERE id = $1 AND is_active
"""


async def get_password(db: Db, user_id: UUID) -> tuple[str, str | None] | None:
    """Return an active user's address and password hash."""
    row = await db.fetchrow(_GET_HASH, user_id)
    return None if row is None else (row["email"], row["password_hash"])


_ANONYMIZE: Final[LiteralString] = f"""
    UPDATE users
       SET email = $2, first_name = NULL, last_name = NULL, password_hash = NULL,
           is_active = false, anonymized_at = clock_timestamp()
     WHERE id = $1
 RETURNING {_COLUMNS}
"""
_RENAME_TENANT: Final[LiteralString] = """
    UPDATE tenants SET name = $2 WHERE id = $1
"""


async def anonymize_user(db: Db, user_id: UUID, email: str) -> Account:
    """Erase a user's personal data, including the copy in the personal tenant's name."""
    row = await db.fetchrow(_ANONYMIZE, user_id, email)
    assert row is not None
    await db.execute(_RENAME_TENANT, user_id, email)
    return _to_account(row)


def _to_account(row: Row) -> Account:
    return Account(
        id=row["id"],
        email=row["email"],
        first_name=row["first_name"],
        last_name=row["last_name"],
        role=row["role"],
        is_owner=row["is_owner"],
        state=state_of(
            is_active=row["is_active"],
            has_password=row["has_password"],
            is_anonymized=row["is_anonymized"],
        ),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
