"""Users on whose behalf the engine starts runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A user and the rights they have now."""

    id: UUID
    email: str
    role: str
    is_owner: bool
    is_active: bool
    team_role: str | None  # in the tenant in question; None if not a member


_OWNER: Final[LiteralString] = """
    SELECT u.id, u.email, u.role, u.is_owner, u.is_active, m.role AS team_role
      FROM users u
      LEFT JOIN tenant_members m ON m.tenant_id = $2 AND m.user_id = u.id
     WHERE u.id = $1
"""


async def get(db: Db, user_id: UUID, tenant_id: UUID) -> Owner:
    """Return a user and their role in a tenant."""
    row = await db.fetchrow(_OWNER, user_id, tenant_id)
    assert row is not None, "a user who made something is never deleted"
    return Owner(**dict(row))
