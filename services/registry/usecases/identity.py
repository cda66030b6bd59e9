"""What the use cases of users, sessions and tokens share: what they need, and how they write."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from services.kit.audit import tell_change
from services.kit.caller import Caller
from services.kit.errors import PermissionDenied
from services.kit.idempotency import Replayed, RequestKey, do_once, rehearse
from services.kit.pg import Db, Pool
from services.registry.domain import accounts
from services.registry.gateways.passwords import Passwords
from services.registry.storage import audit

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the use cases of identity need."""

    auth_pool: Pool
    passwords: Passwords
    session_lifetime: timedelta
    # Tells this process's own cache of callers that a token has ended; others learn in 5 seconds.
    forget: Callable[[str], None]
    # The same of what somebody was in a team: the team's id, the user's.
    forget_member: Callable[[UUID, UUID], None] = lambda _team_id, _user_id: None

    def forget_all(self, digests: Iterable[str]) -> None:
        """Forget every token of these digests."""
        for digest in digests:
            self.forget(digest)


async def write(
    deps: Identity,
    caller: Caller,
    key: RequestKey[T] | None,
    change: Callable[[Db], Awaitable[T]],
    *,
    validate_only: bool = False,
) -> T | Replayed:
    """Run a change in one transaction, once for each request id, or only see whether it would go.

    What is only validated is really done and then taken back: the database has its say too.
    """
    if validate_only:
        return await rehearse(deps.auth_pool, caller, change)
    return await do_once(deps.auth_pool, caller, key, change)


async def note(
    db: Db,
    caller: Caller,
    action: str,
    target: tuple[str, UUID],
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write into the audit trail what the caller does, and tell it to the record of the call."""
    tell_change(before or {}, after or {})
    await audit.insert_event(
        db,
        action,
        target,
        actor_id=caller.user_id,
        tenant_id=caller.tenant_id,
        before=before,
        after=after,
    )


def check_reaches(caller: Caller, user_id: UUID, *, scope: str) -> bool:
    """Whether the caller acts as an administrator here; who is none reaches nobody but themselves.

    Another user is to them as absent as one that does not exist.
    """
    if user_id == caller.user_id:
        return False
    if not is_administrator(caller, scope=scope):
        raise accounts.not_found(user_id)
    return True


def is_administrator(caller: Caller, *, scope: str) -> bool:
    """Whether the caller may do to others what the scope is about."""
    return caller.role == "admin" and caller.has_scope(scope)


def not_the_owner() -> PermissionDenied:
    """Make the refusal of what the owner alone may do."""
    return PermissionDenied("NOT_THE_OWNER", "only the owner of the deployment may do this")
