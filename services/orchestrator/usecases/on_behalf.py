"""Acting for a user who does not call: by the rights that the user has at the moment."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import FailedPrecondition, PermissionDenied
from services.kit.pg import Pool, transaction
from services.orchestrator.storage import owners

_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_NO_SESSION: Final = UUID(int=0)
_MAY_START: Final = frozenset({"user", "admin"})
# Reasons that do not pass by themselves.
LASTING: Final = frozenset({"WORKFLOW_NOT_FOUND", "OWNER_INACTIVE", "NOT_ALLOWED"})


async def caller_of(engine_pool: Pool, user_id: UUID, tenant_id: UUID) -> Caller:
    """Give a user as a caller; refused where the user may start nothing any more."""
    async with transaction(engine_pool) as db:
        owner = await owners.get(db, user_id)
    if not owner.is_active:
        raise FailedPrecondition(
            "OWNER_INACTIVE", "the user who made this was deactivated or anonymised"
        )
    if owner.role not in _MAY_START:
        raise PermissionDenied(
            "NOT_ALLOWED", f"the user who made this is a {owner.role} now and starts nothing"
        )
    return Caller(
        user_id=owner.id,
        tenant_id=tenant_id,
        role="admin" if owner.role == "admin" else "user",
        is_owner=owner.is_owner,
        scopes="all",
        kind="user",
        name=owner.email,
        session_id=_NO_SESSION,
        expires_at=_NEVER,
    )
