"""The authenticated caller: set once per call by the auth stage, readable anywhere below it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from services.kit.errors import PermissionDenied, Unauthenticated

Role = Literal["admin", "user", "viewer", "service"]
Kind = Literal["user", "service"]
TeamRole = Literal["", "admin", "user", "viewer"]
# "all" is explicit because an empty list of scopes allows nothing.
Scopes = frozenset[str] | Literal["all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An authenticated user or service, as of the last look-up, at most seconds ago."""

    user_id: UUID
    tenant_id: UUID
    role: Role
    is_owner: bool
    scopes: Scopes
    kind: Kind
    name: str
    session_id: UUID
    expires_at: datetime
    # Their role in the team that they act for; empty when they act for themselves. `role` is the
    # lesser of this and their account's role, and never admin within a team.
    team_role: TeamRole = ""
    # Digest of the token in use; empty outside of calls. Another process of the service can
    # identify the caller by it.
    token_digest: str = field(default="", repr=False, compare=False)

    @property
    def administers_tenant(self) -> bool:
        """Whether they may manage the tenant: their own one, or a team of which they are admin."""
        return self.role != "viewer" and self.team_role in {"", "admin"}

    @property
    def team_id(self) -> UUID | None:
        """The team that they act for; None when they act for themselves."""
        return self.tenant_id if self.team_role else None

    def has_scope(self, scope: str) -> bool:
        """Return whether the token has a scope; the role is checked separately."""
        return self.scopes == "all" or scope in self.scopes


CALLER: Final[ContextVar[Caller]] = ContextVar("qflow_caller")


def current_caller() -> Caller:
    """Return the caller of this call; `Unauthenticated` in an anonymous call or outside of any."""
    try:
        return CALLER.get()
    except LookupError:
        raise Unauthenticated("NO_CALLER", "this needs a signed-in caller") from None


def check_administers(caller: Caller) -> None:
    """Raise unless the caller administers the tenant that they act for."""
    if not caller.administers_tenant:
        raise not_team_admin()


def not_team_admin() -> PermissionDenied:
    """Return the error for what only an administrator of the team may do."""
    return PermissionDenied(
        "NOT_TEAM_ADMIN", "only administrators of the team may do this; ask one of them"
    )


@contextmanager
def caller_scope(caller: Caller) -> Iterator[Caller]:
    """Act as this caller inside the block; for loops and tests."""
    token = CALLER.set(caller)
    try:
        yield caller
    finally:
        CALLER.reset(token)
