from __future__ import annotations

import asyncio
import math
import time
from collections import Counter

import grpc
import psycopg
import pytest
from qflow.auth.v1 import auth_pb2
from qflow.registry.v1 import session_service_pb2 as pb

from services.registry.usecases.bootstrap import create_user
from tests.integration.registry.conftest import Registry, change_rows, refused
from tests.support.database import Database

PASSWORD = "correct horse"


def _sign_in(email: str = "ada@example.org", password: str = PASSWORD) -> pb.SignInRequest:
    return pb.SignInRequest(email=email, password=password)


@pytest.fixture
async def ada(database: Database) -> str:
    url = database.url("qflow_registry_auth")
    return str(await create_user(url, email="ada@example.org", password=PASSWORD, role="admin"))


async def test_a_password_buys_a_token_that_ends_with_the_session(
    registry: Registry, ada: str, sql: psycopg.Connection
) -> None:
    """I25: what is stored is a digest."""
    anonymous = registry.client("nobody")
    signed_in = await anonymous.sessions.SignIn(_sign_in("ADA@example.org"))
    assert signed_in.caller.user_id == signed_in.caller.tenant_id == ada
    client = registry.client(signed_in.token)
    known = await client.sessions.GetCaller(pb.GetCallerRequest())
    assert known.caller == signed_in.caller
    assert known.caller.role == auth_pb2.ROLE_ADMIN
    assert known.expire_time == signed_in.expire_time
    row = sql.execute("SELECT session_token FROM user_sessions").fetchone()
    assert row is not None
    assert signed_in.token not in row[0]

    await client.sessions.SignOut(pb.SignOutRequest())
    said = await refused(client.sessions.GetCaller(pb.GetCallerRequest()))
    assert said.code == grpc.StatusCode.UNAUTHENTICATED


async def test_all_ways_not_to_sign_in_look_alike(
    registry: Registry, ada: str, sql: psycopg.Connection
) -> None:
    """X51."""
    client = registry.client("nobody")
    unknown = await refused(client.sessions.SignIn(_sign_in("eve@example.org")))
    wrong = await refused(client.sessions.SignIn(_sign_in(password="wrong horse")))
    malformed = await refused(client.sessions.SignIn(_sign_in("a@b@c")))
    await change_rows(sql, "UPDATE users SET is_active = false WHERE id = %s", (ada,))
    inactive = await refused(client.sessions.SignIn(_sign_in()))
    assert unknown == wrong == malformed == inactive
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.UNAUTHENTICATED, "SIGN_IN_REFUSED")


@pytest.mark.parametrize("password", ["", "x" * 1_000_000, "a\0b"])
async def test_a_password_that_is_none_is_refused_before_hashing(
    registry: Registry, password: str
) -> None:
    """B81."""
    said = await refused(registry.client("nobody").sessions.SignIn(_sign_in(password=password)))
    assert said.code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.usefixtures("full_hashes")
async def test_a_flood_of_sign_ins_is_told_to_come_later(
    registry: Registry, ada: str, sql: psycopg.Connection
) -> None:
    """B83, X51: no matter how many come at once, ten are tried; after the wait one gets in.

    One more is tried after each wait that ends meanwhile, which on a slow machine may be some.
    """
    client = registry.client("nobody")

    async def attempt() -> grpc.StatusCode:
        try:
            await client.sessions.SignIn(_sign_in(password="wrong horse"))
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    started = time.monotonic()
    codes = Counter(await asyncio.gather(*[attempt() for _ in range(80)]))
    waits_over = math.floor(math.log2(time.monotonic() - started + 1))
    assert set(codes) == {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert 10 <= codes[grpc.StatusCode.UNAUTHENTICATED] <= 10 + waits_over
    assert codes.total() == 80
    await change_rows(sql, "UPDATE sign_in_attempts SET failed_at = failed_at - interval '5 min'")
    assert (await client.sessions.SignIn(_sign_in())).token


async def test_a_role_that_changed_holds_within_seconds(
    registry: Registry, ada: str, sql: psycopg.Connection
) -> None:
    """X5: an authenticator remembers for five seconds at most; a fresh one sees it at once."""
    token = (await registry.client("nobody").sessions.SignIn(_sign_in())).token
    await change_rows(sql, "UPDATE users SET role = 'viewer' WHERE id = %s", (ada,))
    known = await registry.client(token).sessions.GetCaller(pb.GetCallerRequest())
    assert known.caller.role == auth_pb2.ROLE_VIEWER
