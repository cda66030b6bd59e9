"""Teams, their members and invitations, and the errors about them."""

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
    role: str  # the role of that member
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """A tag that changes with each change of the team."""
        return _etag(self.updated_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of a team."""

    user_id: UUID
    email: str
    display_name: str
    role: str
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """A tag that changes with each change of the role."""
        return _etag(self.updated_at)

    def facts(self) -> dict[str, Any]:
        """Return what the audit trail stores."""
        return {"user_id": str(self.user_id), "role": self.role}


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """An open invitation."""

    id: UUID
    team_id: UUID
    team_name: str
    email: str
    role: str
    created_by: UUID
    created_at: datetime
    expires_at: datetime


def check_leads(team: Team, caller: Caller) -> None:
    """Raise unless the caller administers the team; a viewer's account cannot."""
    if team.role != "admin" or caller.role == "viewer":
        raise not_team_admin()


def not_found(team_id: UUID) -> NotFound:
    """Return the error for a team that does not exist or that the caller is not in."""
    return NotFound("TEAM_NOT_FOUND", "there is no such team", resource=("team", str(team_id)))


def member_not_found(user_id: UUID) -> NotFound:
    """Return the error for a user who is not a member of the team."""
    return NotFound(
        "MEMBER_NOT_FOUND", "the team has no such member", resource=("user", str(user_id))
    )


def invitation_not_found(invitation_id: UUID) -> NotFound:
    """Return the error for an invitation that does not exist, or does not concern the caller."""
    return NotFound(
        "INVITATION_NOT_FOUND",
        "there is no such invitation, or it has ended",
        resource=("team_invitation", str(invitation_id)),
    )


def last_admin(team_id: UUID) -> FailedPrecondition:
    """Return the error for what would leave a team without an administrator."""
    return FailedPrecondition(
        "LAST_TEAM_ADMIN",
        "nobody else administers the team; make another member its administrator first",
        resource=("team", str(team_id)),
    )


def not_empty(team_id: UUID) -> FailedPrecondition:
    """Return the error for deleting a team that still owns definitions."""
    return FailedPrecondition(
        "TEAM_NOT_EMPTY",
        "the team has nodes or workflows; delete them, or transfer them to another tenant, first",
        resource=("team", str(team_id)),
    )


def too_many(reason: str, what: str, most: int) -> ResourceExhausted:
    """Return the error for exceeding a limit."""
    return ResourceExhausted(reason, f"{what} at most {most:,}", limit=str(most))


def _etag(moment: datetime) -> str:
    return f"{moment.timestamp() * 1_000_000:.0f}"
