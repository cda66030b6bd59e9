"""Codec for users."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from qflow.auth.v1 import auth_pb2
from qflow.registry.v1 import user_service_pb2 as pb

from services.kit.rpc import codec
from services.registry.domain.accounts import Account

ROLES: Final = {
    "viewer": auth_pb2.ROLE_VIEWER,
    "user": auth_pb2.ROLE_USER,
    "admin": auth_pb2.ROLE_ADMIN,
}
_NAMES: Final = {number: name for name, number in ROLES.items()}
_STATES: Final = {
    "invited": pb.USER_STATE_INVITED,
    "active": pb.USER_STATE_ACTIVE,
    "deactivated": pb.USER_STATE_DEACTIVATED,
    "anonymized": pb.USER_STATE_ANONYMIZED,
}


def role_from(number: auth_pb2.Role.ValueType, *, field: str = "role") -> str:
    """Decode a role, which must be set."""
    name = _NAMES.get(number)
    if name is None:
        raise codec.invalid(field, "must be a role of users", "ROLE_INVALID")
    return name


def user_to_pb(account: Account) -> pb.User:
    """Encode a user; a validated-only one has no id."""
    exists = account.id.int != 0
    return pb.User(
        id=str(account.id) if exists else "",
        email=account.email,
        first_name=account.first_name,
        last_name=account.last_name,
        role=ROLES[account.role],
        is_owner=account.is_owner,
        state=_STATES[account.state],
        etag=account.etag if exists else "",
        create_time=codec.timestamp(account.created_at) if exists else None,
        update_time=codec.timestamp(account.updated_at) if exists else None,
    )


def lifetime_from(request: Any, default: timedelta) -> timedelta:
    """Decode a lifetime; the default if the request has none."""
    if not request.HasField("lifetime"):
        return default
    return timedelta(milliseconds=codec.milliseconds_from(request.lifetime, field="lifetime"))
