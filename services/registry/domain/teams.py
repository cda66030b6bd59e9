"""Teams: what is known of them and of who is in them, and how they refuse."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from services.kit.caller import Caller, not_team_admin
from services.kit.errors import (
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
)

TEAMS_MAX: Final = 100
MEMBERS_MAX: Final = 1_000
INVITATIONS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """A team as one of its members sees it."""

    id: UUID
    name: str
    role: str  # of that member
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """What changes with every change of the name."""
        return _etag(self.updated_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Somebody in a team."""

    user_id: UUID
    email: str
    display_name: str
    role: str
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """What changes with every change of the role."""
        return _etag(self.updated_at)

    def facts(self) -> dict[str, Any]:
        """Return what the audit trail keeps."""
        return {"user_id": str(self.user_id), "role": self.role}


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """An invitation that is open."""

    id: UUID
    team_id: UUID
    team_name: str
    email: str
    role: str
    created_by: UUID
    created_at: datetime
    expires_at: datetime


def check_leads(team: Team, caller: Caller) -> None:
    """Refuse what only those who lead a team may do; a viewer's account leads none."""
    if team.role != "admin" or caller.role == "viewer":
        raise not_team_admin()


def not_found(team_id: UUID) -> NotFound:
    """Make the answer to an id of no team, or of one that the caller is not in."""
    return NotFound("TEAM_NOT_FOUND", "there is no such team", resource=("team", str(team_id)))


def member_not_found(user_id: UUID) -> NotFound:
    """Make the answer to somebody who is not in the team."""
    return NotFound(
        "MEMBER_NOT_FOUND", "the team has no such member", resource=("user", str(user_id))
    )


def invitation_not_found(invitation_id: UUID) -> NotFound:
    """Make the answer to an invitation that is not there, or neither to nor from the caller."""
    return NotFound(
        "INVITATION_NOT_FOUND",
        "there is no such invitation, or no longer",
        resource=("team_invitation", str(invitation_id)),
    )


def last_admin(team_id: UUID) -> FailedPrecondition:
    """Make the refusal of what would leave a team without anybody who leads it."""
    return FailedPrecondition(
        "LAST_TEAM_ADMIN",
        "nobody else administers the team; make another member its administrator first",
        resource=("team", str(team_id)),
    )


def not_empty(team_id: UUID) -> FailedPrecondition:
    """Make the refusal to delete a team that has something."""
    return FailedPrecondition(
        "TEAM_NOT_EMPTY",
        "the team has nodes or workflows; delete them, or transfer them to another tenant, first",
        resource=("team", str(team_id)),
    )


def too_many(reason: str, what: str, most: int) -> ResourceExhausted:
    """Make the refusal of one more."""
    return ResourceExhausted(reason, f"{what} at most {most:,}", limit=str(most))


def _etag(moment: datetime) -> str:
    return f"{moment.timestamp() * 1_000_000:.0f}"
