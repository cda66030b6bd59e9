"""What the tests of accounts share: callers with a password, and the services that they call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from qflow.registry.v1 import session_service_pb2 as sessions
from qflow.registry.v1.service_token_service_pb2_grpc import ServiceTokenServiceStub
from qflow.registry.v1.session_service_pb2_grpc import SessionServiceStub
from qflow.registry.v1.user_service_pb2_grpc import UserServiceStub

from services.registry.usecases.bootstrap import create_user
from tests.integration.registry.conftest import Registry, change_rows
from tests.support.database import Database

PASSWORD = "correct horse"


@dataclass(frozen=True)
class Account:
    """A caller of the services of identity."""

    id: str
    token: str
    users: Any
    sessions: Any
    tokens: Any


def caller(registry: Registry, token: str = "nobody", user_id: str = "") -> Account:
    channel = registry.client(token).channel
    return Account(
        user_id,
        token,
        UserServiceStub(channel),
        SessionServiceStub(channel),
        ServiceTokenServiceStub(channel),
    )


async def signed_in(
    registry: Registry, database: Database, name: str, *, role: str = "user", is_owner: bool = False
) -> Account:
    """Make a user with a password, and a session of theirs."""
    email = f"{name}@example.org"
    url = database.url("qflow_registry_auth")
    user_id = str(await create_user(url, email=email, password=PASSWORD, role=role))
    if is_owner:
        with database.connect() as db:
            await change_rows(db, "UPDATE users SET is_owner = true WHERE id = %s", (user_id,))
    return await again(registry, name, user_id=user_id)


async def again(
    registry: Registry, name: str, *, user_id: str = "", password: str = PASSWORD
) -> Account:
    """Sign in once more."""
    request = sessions.SignInRequest(email=f"{name}@example.org", password=password)
    answer = await caller(registry).sessions.SignIn(request)
    return caller(registry, answer.token, user_id or answer.caller.user_id)


def trail(sql: psycopg.Connection) -> list[tuple[str, str, Any, Any]]:
    """The audit trail as (actor, action, before, after), in order, without what made the users."""
    return [
        (str(actor), action, before, after)
        for actor, action, before, after in sql.execute(
            "SELECT actor_id, action, before, after FROM audit_events"
            " WHERE action <> 'user.create' ORDER BY id"
        )
    ]
