"""Teams and their members and invitations; the database enforces membership rules too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.idempotency import Replayed, RequestKey
from services.kit.ids import uuid7
from services.kit.pg import Db, as_caller
from services.kit.updates import check_etag
from services.registry.domain import teams
from services.registry.domain.identity import email_from
from services.registry.domain.teams import Invitation, Member, Team
from services.registry.domain.texts import name_from
from services.registry.storage import teams as stored
from services.registry.usecases.identity import Identity, note, write

log = structlog.get_logger()

INVITATION: Final = timedelta(days=7)
After = tuple[datetime, UUID] | None


async def create_team(
    deps: Identity, caller: Caller, name: str, *, key: RequestKey[Team] | None = None
) -> Team | Replayed:
    """Create a team with the caller as its administrator."""
    name_from(name)

    async def change(db: Db) -> Team:
        await _check_room_for(db, caller)
        team = await stored.insert_team(db, uuid7(), name, created_by=caller.user_id)
        await stored.insert_member(db, team.id, caller.user_id, "admin")
        await note(db, caller, "team.create", ("team", team.id))
        return team

    return await write(deps, caller, key, change)


async def get_team(deps: Identity, caller: Caller, team_id: UUID) -> Team:
    """Return a team that the caller is a member of."""
    async with as_caller(deps.auth_pool, caller) as db:
        return await _team(db, caller, team_id)


async def list_teams(deps: Identity, caller: Caller, *, after: After, limit: int) -> Sequence[Team]:
    """List the teams that the caller is a member of."""
    async with as_caller(deps.auth_pool, caller) as db:
        return await stored.list_teams(db, caller.user_id, after=after, limit=limit)


async def rename_team(
    deps: Identity,
    caller: Caller,
    team_id: UUID,
    name: str,
    *,
    etag: str = "",
    key: RequestKey[Team] | None = None,
) -> Team | Replayed:
    """Rename a team that the caller administers."""
    name_from(name)

    async def change(db: Db) -> Team:
        team = await _led(db, caller, team_id)
        check_etag("team", team.etag, etag)
        updated_at = await stored.rename_team(db, team_id, name)
        await note(db, caller, "team.rename", ("team", team_id))
        return replace(team, name=name, updated_at=updated_at)

    return await write(deps, caller, key, change)


async def delete_team(
    deps: Identity,
    caller: Caller,
    team_id: UUID,
    *,
    etag: str = "",
    key: RequestKey[Team] | None = None,
) -> Team | Replayed:
    """Delete an empty team that the caller administers; all memberships end."""
    members: list[UUID] = []
    ended: list[str] = []

    async def change(db: Db) -> Team:
        team = await _led(db, caller, team_id)
        check_etag("team", team.etag, etag)
        if await stored.has_definitions(db, team_id):
            raise teams.not_empty(team_id)
        before = {"name": team.name}
        await note(db, caller, "team.delete", ("team", team_id), before=before)
        gone, tokens = await stored.delete_team(db, team_id)
        members.extend(gone)
        ended.extend(tokens)
        return team

    answer = await write(deps, caller, key, change)
    for user_id in members:
        deps.forget_member(team_id, user_id)
    deps.forget_all(ended)
    log.info("team_deleted", team_id=str(team_id), members=len(members))
    return answer


async def list_members(
    deps: Identity, caller: Caller, team_id: UUID, *, after: After, limit: int
) -> Sequence[Member]:
    """List the members of a team; only for its members."""
    async with as_caller(deps.auth_pool, caller) as db:
        await _team(db, caller, team_id)
        return await stored.list_members(db, team_id, after=after, limit=limit)


async def update_member(
    deps: Identity,
    caller: Caller,
    team_id: UUID,
    user_id: UUID,
    role: str,
    *,
    etag: str = "",
    key: RequestKey[Member] | None = None,
) -> Member | Replayed:
    """Change a member's role; a team always keeps an administrator."""

    async def change(db: Db) -> Member:
        await _led(db, caller, team_id)
        before = await _member(db, team_id, user_id)
        check_etag("member", before.etag, etag)
        if before.role == role:
            return before
        if before.role == "admin":
            await _check_led_without(db, team_id, user_id)
        await stored.update_member(db, team_id, user_id, role)
        after = await _member(db, team_id, user_id)
        await note(
            db,
            caller,
            "team.update_member",
            ("team", team_id),
            before=before.facts(),
            after=after.facts(),
        )
        return after

    answer = await write(deps, caller, key, change)
    deps.forget_member(team_id, user_id)
    return answer


async def remove_member(
    deps: Identity,
    caller: Caller,
    team_id: UUID,
    user_id: UUID,
    *,
    key: RequestKey[Member] | None = None,
) -> Member | Replayed:
    """Remove a member, or leave; the member's tokens for the team end."""
    ended: list[str] = []

    async def change(db: Db) -> Member:
        if user_id == caller.user_id:
            await stored.lock(db, team_id)
            await _team(db, caller, team_id)
        else:
            await _led(db, caller, team_id)
        before = await _member(db, team_id, user_id)
        if before.role == "admin":
            await _check_led_without(db, team_id, user_id)
        ended.extend(await stored.delete_member(db, team_id, user_id))
        await note(db, caller, "team.remove_member", ("team", team_id), before=before.facts())
        return before

    answer = await write(deps, caller, key, change)
    deps.forget_member(team_id, user_id)
    deps.forget_all(ended)
    log.info("team_member_removed", team_id=str(team_id), user_id=str(user_id))
    return answer


async def invite(
    deps: Identity,
    caller: Caller,
    team_id: UUID,
    *,
    email: str,
    role: str,
    lifetime: timedelta = INVITATION,
    key: RequestKey[Invitation] | None = None,
) -> Invitation | Replayed:
    """Invite an email address to a team that the caller administers."""
    address = email_from(email)

    async def change(db: Db) -> Invitation:
        await _led(db, caller, team_id)
        if await stored.clear_invitations(db, team_id, address) >= teams.INVITATIONS_MAX:
            raise teams.too_many(
                "TOO_MANY_INVITATIONS", "a team has open invitations,", teams.INVITATIONS_MAX
            )
        made = await stored.insert_invitation(
            db,
            uuid7(),
            team_id=team_id,
            email=address,
            role=role,
            created_by=caller.user_id,
            lifetime=lifetime,
        )
        after = {"invitation_id": str(made.id), "role": role}
        await note(db, caller, "team.invite", ("team", team_id), after=after)
        return made

    return await write(deps, caller, key, change)


async def list_invitations(
    deps: Identity, caller: Caller, team_id: UUID, *, after: After, limit: int
) -> Sequence[Invitation]:
    """List the open invitations of a team that the caller administers."""
    async with as_caller(deps.auth_pool, caller) as db:
        teams.check_leads(await _team(db, caller, team_id), caller)
        return await stored.list_invitations(db, team_id, after=after, limit=limit)


async def list_received(
    deps: Identity, caller: Caller, *, after: After, limit: int
) -> Sequence[Invitation]:
    """List the open invitations addressed to the caller."""
    async with as_caller(deps.auth_pool, caller) as db:
        return await stored.list_received(db, caller.user_id, after=after, limit=limit)


async def delete_invitation(
    deps: Identity,
    caller: Caller,
    invitation_id: UUID,
    *,
    key: RequestKey[Invitation] | None = None,
) -> Invitation | Replayed:
    """Withdraw an invitation, or decline it."""

    async def change(db: Db) -> Invitation:
        found = await _invitation(db, invitation_id)
        await stored.delete_invitation(db, invitation_id)
        before = {"invitation_id": str(invitation_id), "role": found.role}
        await note(db, caller, "team.delete_invitation", ("team", found.team_id), before=before)
        return found

    return await write(deps, caller, key, change)


async def accept(
    deps: Identity, caller: Caller, invitation_id: UUID, *, key: RequestKey[Team] | None = None
) -> Team | Replayed:
    """Join the team of an invitation to the caller; an invitation can be used once."""
    joined: list[UUID] = []

    async def change(db: Db) -> Team:
        found = await _invitation(db, invitation_id)
        await stored.lock(db, found.team_id)
        if not await stored.is_to(db, invitation_id, caller.user_id):
            raise teams.invitation_not_found(invitation_id)
        before = await stored.get_member(db, found.team_id, caller.user_id)
        if before is None:
            await _check_room_for(db, caller)
            if await stored.count_members(db, found.team_id) >= teams.MEMBERS_MAX:
                raise teams.too_many("TOO_MANY_MEMBERS", "a team has members,", teams.MEMBERS_MAX)
        else:
            # Accepting changes a member's role as if they had left and joined again.
            if before.role == "admin" and found.role != "admin":
                await _check_led_without(db, found.team_id, caller.user_id)
            await stored.delete_member(db, found.team_id, caller.user_id)
        await stored.insert_member(db, found.team_id, caller.user_id, found.role)
        await stored.delete_invitation(db, invitation_id)
        await note(
            db,
            caller,
            "team.accept_invitation",
            ("team", found.team_id),
            before=before.facts() if before else None,
            after={"user_id": str(caller.user_id), "role": found.role},
        )
        joined.append(found.team_id)
        return await _team(db, caller, found.team_id)

    answer = await write(deps, caller, key, change)
    for team_id in joined:
        deps.forget_member(team_id, caller.user_id)
    return answer


async def _team(db: Db, caller: Caller, team_id: UUID) -> Team:
    found = await stored.get_team(db, team_id, caller.user_id)
    if found is None:
        raise teams.not_found(team_id)
    return found


async def _led(db: Db, caller: Caller, team_id: UUID) -> Team:
    """Lock a team's membership and check that the caller administers it."""
    await stored.lock(db, team_id)
    team = await _team(db, caller, team_id)
    teams.check_leads(team, caller)
    return team


async def _member(db: Db, team_id: UUID, user_id: UUID) -> Member:
    found = await stored.get_member(db, team_id, user_id)
    if found is None:
        raise teams.member_not_found(user_id)
    return found


async def _invitation(db: Db, invitation_id: UUID) -> Invitation:
    found = await stored.get_invitation(db, invitation_id)
    if found is None:
        raise teams.invitation_not_found(invitation_id)
    return found


async def _check_room_for(db: Db, caller: Caller) -> None:
    await stored.lock(db, caller.user_id)
    if await stored.count_teams(db, caller.user_id) >= teams.TEAMS_MAX:
        raise teams.too_many("TOO_MANY_TEAMS", "a user is in teams,", teams.TEAMS_MAX)


async def _check_led_without(db: Db, team_id: UUID, user_id: UUID) -> None:
    """Raise if nobody else who can sign in administers the team."""
    if not await stored.is_led_without(db, team_id, user_id):
        raise teams.last_admin(team_id)
