"""Acts on behalf of a user, with the rights the user has now."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, cast
from uuid import UUID

from services.kit.caller import Caller, TeamRole
from services.kit.errors import FailedPrecondition, PermissionDenied
from services.kit.pg import Pool, transaction
from services.orchestrator.storage import owners

_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_NO_SESSION: Final = UUID(int=0)
_MAY_START: Final = frozenset({"user", "admin"})
# Reasons that do not go away by themselves.
LASTING: Final = frozenset(
    {"WORKFLOW_NOT_FOUND", "OWNER_INACTIVE", "OWNER_NOT_A_MEMBER", "NOT_ALLOWED"}
)


async def caller_of(engine_pool: Pool, user_id: UUID, tenant_id: UUID) -> Caller:
    """Return a user as a caller; refuses users who may not start runs any more."""
    async with transaction(engine_pool) as db:
        owner = await owners.get(db, user_id, tenant_id)
    if not owner.is_active:
        raise FailedPrecondition(
            "OWNER_INACTIVE", "the user who made this was deactivated or anonymised"
        )
    in_team = tenant_id != user_id
    if in_team and owner.team_role is None:
        raise FailedPrecondition(
            "OWNER_NOT_A_MEMBER", "the user who made this is no longer in the team"
        )
    if in_team and owner.team_role not in _MAY_START:
        raise PermissionDenied(
            "NOT_ALLOWED", f"the user who made this is now a {owner.team_role} in the team"
        )
    if owner.role not in _MAY_START:
        raise PermissionDenied(
            "NOT_ALLOWED", f"the user who made this is now a {owner.role} and may start nothing"
        )
    return Caller(
        user_id=owner.id,
        tenant_id=tenant_id,
        role="admin" if owner.role == "admin" and not in_team else "user",
        is_owner=owner.is_owner and not in_team,
        team_role=cast("TeamRole", owner.team_role or "") if in_team else "",
        scopes="all",
        kind="user",
        name=owner.email,
        session_id=_NO_SESSION,
        expires_at=_NEVER,
    )
