"""Users in whose names the engine starts runs by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whose rights are used, as they are now."""

    id: UUID
    email: str
    role: str
    is_owner: bool
    is_active: bool


_OWNER: Final[LiteralString] = (
    "SELECT id, email, role, is_owner, is_active FROM users WHERE id = $1"
)


async def get(db: Db, user_id: UUID) -> Owner:
    """Give a user."""
    row = await db.fetchrow(_OWNER, user_id)
    assert row is not None, "a user who made something is never deleted"
    return Owner(**dict(row))
