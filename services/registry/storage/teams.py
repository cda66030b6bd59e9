"""Teams, their members and invitations, under the identity login with a caller set.

Row-level policies enforce what a caller may do to a team as well: a statement that they forbid
affects or returns no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.registry.domain.teams import Invitation, Member, Team

# Serializes membership changes, so that the counts they check are exact.
_LOCK: Final[LiteralString] = """
    SELECT pg_advisory_xact_lock(hashtextextended('team ' || $1::text, 0))
"""


async def lock(db: Db, thing_id: UUID) -> None:
    """Lock the membership of a team, or of a user, until the transaction ends."""
    await db.execute(_LOCK, str(thing_id))


_INSERT_TEAM: Final[LiteralString] = """
    INSERT INTO tenants (id, kind, name, created_by)
    VALUES ($1, 'team', $2, $3)
 RETURNING id, name, 'admin' AS role, created_at, updated_at
"""


async def insert_team(db: Db, team_id: UUID, name: str, *, created_by: UUID) -> Team:
    """Insert a team without members."""
    row = await db.fetchrow(_INSERT_TEAM, team_id, name, created_by)
    assert row is not None
    return Team(**dict(row))


_GET_TEAM: Final[LiteralString] = """
    SELECT t.id, t.name, m.role, t.created_at, t.updated_at
      FROM tenants t
      JOIN tenant_members m ON m.tenant_id = t.id
     WHERE t.id = $1 AND m.user_id = $2 AND t.kind = 'team'
"""


async def get_team(db: Db, team_id: UUID, user_id: UUID) -> Team | None:
    """Return a team that a user is a member of."""
    row = await db.fetchrow(_GET_TEAM, team_id, user_id)
    return None if row is None else Team(**dict(row))


_LIST_TEAMS: Final[LiteralString] = """
    SELECT t.id, t.name, m.role, t.created_at, t.updated_at
      FROM tenant_members m
      JOIN tenants t ON t.id = m.tenant_id
     WHERE m.user_id = $1 AND t.kind = 'team'
       AND ($2::timestamptz IS NULL OR (t.created_at, t.id) < ($2, $3::uuid))
     ORDER BY t.created_at DESC, t.id DESC
     LIMIT $4
"""


async def list_teams(
    db: Db, user_id: UUID, *, after: tuple[datetime, UUID] | None, limit: int
) -> Sequence[Team]:
    """List the teams that a user is a member of, newest first."""
    rows = await db.fetch(_LIST_TEAMS, user_id, *(after or (None, None)), limit)
    return [Team(**dict(row)) for row in rows]


_RENAME: Final[LiteralString] = """
    UPDATE tenants SET name = $2 WHERE id = $1 AND kind = 'team' RETURNING updated_at
"""


async def rename_team(db: Db, team_id: UUID, name: str) -> datetime:
    """Rename a team that the caller administers; returns its update time."""
    changed: datetime | None = await db.fetchval(_RENAME, team_id, name)
    assert changed is not None, "who leads it may"
    return changed


_MEMBER: Final[LiteralString] = """
    m.user_id, u.email, concat_ws(' ', u.first_name, u.last_name) AS display_name, m.role,
    m.created_at, m.updated_at
"""
_GET_MEMBER: Final[LiteralString] = f"""
    SELECT {_MEMBER}
      FROM tenant_members m
      JOIN users u ON u.id = m.user_id
     WHERE m.tenant_id = $1 AND m.user_id = $2
"""


async def get_member(db: Db, team_id: UUID, user_id: UUID) -> Member | None:
    """Return a member of a team."""
    row = await db.fetchrow(_GET_MEMBER, team_id, user_id)
    return None if row is None else Member(**dict(row))


_LIST_MEMBERS: Final[LiteralString] = f"""
    SELECT {_MEMBER}
      FROM tenant_members m
      JOIN users u ON u.id = m.user_id
     WHERE m.tenant_id = $1
       AND ($2::timestamptz IS NULL OR (m.created_at, m.user_id) < ($2, $3::uuid))
     ORDER BY m.created_at DESC, m.user_id DESC
     LIMIT $4
"""


async def list_members(
    db: Db, team_id: UUID, *, after: tuple[datetime, UUID] | None, limit: int
) -> Sequence[Member]:
    """List the members of a team, newest first."""
    rows = await db.fetch(_LIST_MEMBERS, team_id, *(after or (None, None)), limit)
    return [Member(**dict(row)) for row in rows]


_COUNT_MEMBERS: Final[LiteralString] = """
    SELECT count(*) FROM tenant_members WHERE tenant_id = $1
"""
_OTHER_ADMIN: Final[LiteralString] = """
    SELECT EXISTS (SELECT 1 FROM tenant_members m
                     JOIN users u ON u.id = m.user_id
                    WHERE m.tenant_id = $1 AND m.user_id <> $2 AND m.role = 'admin' AND u.is_active)
"""
_COUNT_TEAMS: Final[LiteralString] = """
    SELECT count(*) FROM tenant_members WHERE user_id = $1
"""


async def count_members(db: Db, team_id: UUID) -> int:
    """Count the members of a team."""
    count: int = await db.fetchval(_COUNT_MEMBERS, team_id)
    return count


async def is_led_without(db: Db, team_id: UUID, user_id: UUID) -> bool:
    """Return whether somebody else who can sign in administers a team."""
    found: bool = await db.fetchval(_OTHER_ADMIN, team_id, user_id)
    return found


async def count_teams(db: Db, user_id: UUID) -> int:
    """Count the teams that a user is a member of."""
    count: int = await db.fetchval(_COUNT_TEAMS, user_id)
    return count


_INSERT_MEMBER: Final[LiteralString] = """
    INSERT INTO tenant_members (tenant_id, user_id, role) VALUES ($1, $2, $3)
"""
_UPDATE_MEMBER: Final[LiteralString] = """
    UPDATE tenant_members SET role = $3 WHERE tenant_id = $1 AND user_id = $2 RETURNING user_id
"""
_DELETE_MEMBER: Final[LiteralString] = """
    DELETE FROM tenant_members WHERE tenant_id = $1 AND user_id = $2 RETURNING user_id
"""
_DELETE_TOKENS: Final[LiteralString] = """
    DELETE FROM user_service_tokens
     WHERE tenant_id = $1 AND user_id = $2
 RETURNING token_sha256
"""


async def insert_member(db: Db, team_id: UUID, user_id: UUID, role: str) -> None:
    """Add the caller to a team that they created or are invited to."""
    await db.execute(_INSERT_MEMBER, team_id, user_id, role)


async def update_member(db: Db, team_id: UUID, user_id: UUID, role: str) -> None:
    """Change the role of a member of a team that the caller administers."""
    changed = await db.fetchval(_UPDATE_MEMBER, team_id, user_id, role)
    assert changed is not None, "who leads it may"


async def delete_member(db: Db, team_id: UUID, user_id: UUID) -> list[str]:
    """Remove a member and their tokens for the team; returns the digests of those."""
    gone = await db.fetchval(_DELETE_MEMBER, team_id, user_id)
    assert gone is not None, "who leads it may, and everybody themselves"
    return [row["token_sha256"] for row in await db.fetch(_DELETE_TOKENS, team_id, user_id)]


_HAS_DEFINITIONS: Final[LiteralString] = """
    SELECT EXISTS (SELECT FROM workflows WHERE tenant_id = $1 AND deleted_at IS NULL)
        OR EXISTS (SELECT FROM python_nodes WHERE tenant_id = $1 AND deleted_at IS NULL)
"""


async def has_definitions(db: Db, team_id: UUID) -> bool:
    """Return whether a team that the caller administers has nodes or workflows."""
    return bool(await db.fetchval(_HAS_DEFINITIONS, team_id))


_MARK_DELETED: Final[LiteralString] = """
    UPDATE tenants SET deleted_at = clock_timestamp()
     WHERE id = $1 AND kind = 'team' AND deleted_at IS NULL RETURNING id
"""
_DELETE_ALL_INVITATIONS: Final[LiteralString] = """
    DELETE FROM tenant_invitations WHERE tenant_id = $1
"""
_DELETE_ALL_TOKENS: Final[LiteralString] = """
    DELETE FROM user_service_tokens WHERE tenant_id = $1 RETURNING token_sha256
"""
_DELETE_ALL_MEMBERS: Final[LiteralString] = """
    DELETE FROM tenant_members WHERE tenant_id = $1 RETURNING user_id
"""


async def delete_team(db: Db, team_id: UUID) -> tuple[list[UUID], list[str]]:
    """Mark a team as deleted and remove its invitations, tokens and members.

    Members last, since the policies require the caller's membership. Returns the members' ids and
    the digests of the removed tokens.
    """
    marked = await db.fetchval(_MARK_DELETED, team_id)
    assert marked is not None, "who leads it may"
    await db.execute(_DELETE_ALL_INVITATIONS, team_id)
    ended = [row["token_sha256"] for row in await db.fetch(_DELETE_ALL_TOKENS, team_id)]
    return [row["user_id"] for row in await db.fetch(_DELETE_ALL_MEMBERS, team_id)], ended


_INVITATION: Final[LiteralString] = """
    i.id, i.tenant_id AS team_id, t.name AS team_name, i.email, i.role, i.created_by,
    i.created_at, i.expires_at
"""
# A repeated invitation gets a new id, so that an earlier one cannot be accepted with the new terms.
_INSERT_INVITATION: Final[LiteralString] = """
    INSERT INTO tenant_invitations (id, tenant_id, email, role, created_by, expires_at)
    VALUES ($1, $2, $3, $4, $5, clock_timestamp() + $6::interval)
"""
_DELETE_BEFORE: Final[LiteralString] = """
    DELETE FROM tenant_invitations
     WHERE tenant_id = $1 AND (email = $2 OR expires_at < clock_timestamp())
"""
_COUNT_INVITATIONS: Final[LiteralString] = """
    SELECT count(*) FROM tenant_invitations WHERE tenant_id = $1
"""
_GET_INVITATION: Final[LiteralString] = f"""
    SELECT {_INVITATION}
      FROM tenant_invitations i
      JOIN tenants t ON t.id = i.tenant_id
     WHERE i.id = $1 AND i.expires_at > clock_timestamp()
"""
_DELETE_INVITATION: Final[LiteralString] = """
    DELETE FROM tenant_invitations WHERE id = $1
"""


async def clear_invitations(db: Db, team_id: UUID, email: str) -> int:
    """Delete expired invitations and those of an address; returns how many remain."""
    await db.execute(_DELETE_BEFORE, team_id, email)
    count: int = await db.fetchval(_COUNT_INVITATIONS, team_id)
    return count


async def insert_invitation(
    db: Db,
    invitation_id: UUID,
    *,
    team_id: UUID,
    email: str,
    role: str,
    created_by: UUID,
    lifetime: timedelta,
) -> Invitation:
    """Insert an invitation to a team that the caller administers."""
    await db.execute(_INSERT_INVITATION, invitation_id, team_id, email, role, created_by, lifetime)
    made = await get_invitation(db, invitation_id)
    assert made is not None
    return made


async def get_invitation(db: Db, invitation_id: UUID) -> Invitation | None:
    """Return an open invitation, of a team that the caller administers or to the caller."""
    row = await db.fetchrow(_GET_INVITATION, invitation_id)
    return None if row is None else _to_invitation(row)


_IS_TO: Final[LiteralString] = """
    SELECT i.id
      FROM tenant_invitations i
      JOIN users u ON lower(u.email) = i.email
     WHERE i.id = $1 AND u.id = $2 AND i.expires_at > clock_timestamp()
"""


async def is_to(db: Db, invitation_id: UUID, user_id: UUID) -> bool:
    """Return whether an open invitation is addressed to a user."""
    return await db.fetchval(_IS_TO, invitation_id, user_id) is not None


async def delete_invitation(db: Db, invitation_id: UUID) -> None:
    """Delete an invitation."""
    await db.execute(_DELETE_INVITATION, invitation_id)


_LIST_INVITATIONS: Final[LiteralString] = f"""
    SELECT {_INVITATION}
      FROM tenant_invitations i
      JOIN tenants t ON t.id = i.tenant_id
     WHERE i.tenant_id = $1 AND i.expires_at > clock_timestamp()
       AND ($2::timestamptz IS NULL OR (i.created_at, i.id) < ($2, $3::uuid))
     ORDER BY i.created_at DESC, i.id DESC
     LIMIT $4
"""
_LIST_RECEIVED: Final[LiteralString] = f"""
    SELECT {_INVITATION}
      FROM tenant_invitations i
      JOIN tenants t ON t.id = i.tenant_id
     WHERE i.email = (SELECT lower(u.email) FROM users u WHERE u.id = $1)
       AND i.expires_at > clock_timestamp()
       AND ($2::timestamptz IS NULL OR (i.created_at, i.id) < ($2, $3::uuid))
     ORDER BY i.created_at DESC, i.id DESC
     LIMIT $4
"""


async def list_invitations(
    db: Db, team_id: UUID, *, after: tuple[datetime, UUID] | None, limit: int
) -> Sequence[Invitation]:
    """List the open invitations of a team, newest first."""
    rows = await db.fetch(_LIST_INVITATIONS, team_id, *(after or (None, None)), limit)
    return [_to_invitation(row) for row in rows]


async def list_received(
    db: Db, user_id: UUID, *, after: tuple[datetime, UUID] | None, limit: int
) -> Sequence[Invitation]:
    """List the open invitations to a user, newest first."""
    rows = await db.fetch(_LIST_RECEIVED, user_id, *(after or (None, None)), limit)
    return [_to_invitation(row) for row in rows]


def _to_invitation(row: Row) -> Invitation:
    return Invitation(**dict(row))
