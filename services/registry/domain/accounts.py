"""User accounts: their data, their states, and the errors about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from services.kit.errors import (
    FailedPrecondition,
    NotFound,
    QflowError,
)
from services.registry.domain.texts import name_from

State = Literal["invited", "active", "deactivated", "anonymized"]

PROFILE_FIELDS: Final = ("first_name", "last_name")
USER_FIELDS: Final = (*PROFILE_FIELDS, "role")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user as callers see one; of the password only whether there is one."""

    id: UUID
    email: str
    first_name: str
    last_name: str
    role: str
    is_owner: bool
    state: State
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """A tag that changes with each change of the user."""
        return f"{self.updated_at.timestamp() * 1_000_000:.0f}"

    def facts(self) -> dict[str, Any]:
        """Return what the audit trail stores: no address or name, which could never be removed."""
        return {"role": self.role, "is_owner": self.is_owner, "state": self.state}


def state_of(*, is_active: bool, has_password: bool, is_anonymized: bool) -> State:
    """Return the state of an account."""
    if is_anonymized:
        return "anonymized"
    if not is_active:
        return "deactivated"
    return "active" if has_password else "invited"


def personal_name_from(text: str, *, field: str) -> str:
    """Return a valid first or last name; empty if left out."""
    return name_from(text, field=field) if text else ""


def merged(before: Account, changes: Account, mask: Sequence[str]) -> Account:
    """Apply the fields in the mask; raises if the owner would not stay an administrator."""
    after = replace(before, **{name: getattr(changes, name) for name in mask})
    if before.is_owner and after.role != "admin":
        raise is_owner(before)
    return after


def check_not_anonymized(account: Account) -> None:
    """Raise if the user was anonymized."""
    if account.state == "anonymized":
        raise FailedPrecondition(
            "USER_ANONYMIZED",
            "the user was anonymised, which cannot be undone",
            resource=("user", str(account.id)),
        )


def is_owner(account: Account) -> QflowError:
    """Return the error for what would leave the deployment without an owner."""
    return FailedPrecondition(
        "USER_IS_OWNER",
        "the user owns the deployment; make another the owner first (TransferOwnership)",
        resource=("user", str(account.id)),
    )


def not_active(account: Account) -> QflowError:
    """Return the error for what only an active user may get."""
    return FailedPrecondition(
        "USER_NOT_ACTIVE",
        f"the user is {account.state}",
        resource=("user", str(account.id)),
    )


def not_found(user_id: UUID) -> NotFound:
    """Return the error for a user that does not exist or that the caller may not see."""
    return NotFound("USER_NOT_FOUND", "there is no such user", resource=("user", str(user_id)))


def anonymous_email(user_id: UUID) -> str:
    """Return the address of an anonymized user; its host cannot exist."""
    return f"anonymized-{user_id}@qflow.invalid"
