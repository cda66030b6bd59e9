"""What the use cases of users, sessions and tokens share: dependencies, writes and audit."""

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
    """What the use cases of identity depend on."""

    auth_pool: Pool
    passwords: Passwords
    session_lifetime: timedelta
    # Evicts an ended token from this process's cache of callers. Other processes learn of it within
    # a few seconds.
    forget: Callable[[str], None]
    # Evicts a cached team membership, by team id and user id.
    forget_member: Callable[[UUID, UUID], None] = lambda _team_id, _user_id: None

    def forget_all(self, digests: Iterable[str]) -> None:
        """Evict all tokens with these digests."""
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
    """Run a change in one transaction, once per request id, or only rehearse it.

    With `validate_only` the change is executed and rolled back, so that database constraints are
    checked too.
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
    """Write an audit event for what the caller does, and add it to the call's audit record."""
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
    """Return whether the caller acts on another user as an administrator.

    Raises NotFound for another user if the caller is no administrator, as if the user did not
    exist.
    """
    if user_id == caller.user_id:
        return False
    if not is_administrator(caller, scope=scope):
        raise accounts.not_found(user_id)
    return True


def is_administrator(caller: Caller, *, scope: str) -> bool:
    """Return whether the caller may do to other users what the scope covers."""
    return caller.role == "admin" and caller.has_scope(scope)


def not_the_owner() -> PermissionDenied:
    """Return the error for what only the owner may do."""
    return PermissionDenied("NOT_THE_OWNER", "only the owner of the deployment may do this")
