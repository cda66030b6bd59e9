"""Every RPC times every kind of caller; what each is told follows from the rule in the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID, uuid4

import grpc
import psycopg
import pytest
from qflow.auth.v1 import auth_pb2

from services.kit.ids import new_token, token_sha256
from tests import factories
from tests.contracts.test_every_rpc import Rpc, code_of, codes, every_rpc
from tests.support.suite import Suite

_DENIED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
_ROLES = {
    "viewer": auth_pb2.ROLE_VIEWER,
    "user": auth_pb2.ROLE_USER,
    "admin": auth_pb2.ROLE_ADMIN,
}
_AT_ONCE = 16
# What watches something that never comes is let in as well; whoever is to be refused may wait for
# that as long as a busy machine takes.
_WATCHED_S, _REFUSED_S = 2.0, 20.0
# What only the owner may, an administrator is denied by the use case and not by the rule.
_OWNERS_ALONE = {"/qflow.registry.v1.UserService/TransferOwnership"}


def _expired(sql: psycopg.Connection) -> str:
    user = factories.user(sql)
    sql.execute(
        "UPDATE user_sessions SET created_at = now() - interval '1 hour',"
        " expires_at = now() - interval '1 second' WHERE user_id = %s",
        (user.id,),
    )
    return user.token


def _revoked(sql: psycopg.Connection) -> str:
    user = factories.user(sql, role="admin")
    sql.execute("DELETE FROM user_sessions WHERE user_id = %s", (user.id,))
    return user.token


def _deactivated(sql: psycopg.Connection) -> str:
    user = factories.user(sql, role="admin")
    sql.execute("UPDATE users SET is_active = false WHERE id = %s", (user.id,))
    return user.token


def _of_a_lapsed_service_token(sql: psycopg.Connection) -> str:
    user, token = factories.user(sql, role="admin"), new_token()
    sql.execute(
        "INSERT INTO user_service_tokens (tenant_id, user_id, name, token_sha256, scopes,"
        " created_at, expires_at) VALUES (%s, %s, 'a', %s, '{nodes:read}',"
        " now() - interval '2 hours', now() - interval '1 second')",
        (user.id, user.id, token_sha256(token)),
    )
    return token


@pytest.mark.parametrize(
    "make", [_expired, _revoked, _deactivated, _of_a_lapsed_service_token], ids=lambda f: f.__name__
)
async def test_whose_token_no_longer_holds_is_nobody_to_every_rpc(
    suite: Suite, make: Callable[[psycopg.Connection], str]
) -> None:
    """E14, X3, X4, X5."""
    with suite.sql() as sql:
        token = make(sql)
    guarded = [
        rpc
        for rpc in await every_rpc(suite)
        if auth_pb2.AUDIENCE_ANONYMOUS not in rpc.rule.audiences
    ]
    expected = dict.fromkeys((rpc.path for rpc in guarded), grpc.StatusCode.UNAUTHENTICATED)
    assert expected == await codes(guarded, token)


@pytest.mark.parametrize("role", _ROLES)
async def test_a_role_opens_what_its_rule_says_and_nothing_else(suite: Suite, role: str) -> None:
    """E14, X17: each call by a user of its own, since some of them end what they were made with."""
    rpcs = [rpc for rpc in await every_rpc(suite) if auth_pb2.AUDIENCE_USER in rpc.rule.audiences]
    room = asyncio.Semaphore(_AT_ONCE)
    with suite.sql() as sql:
        tokens = [factories.user(sql, role=role).token for _ in rpcs]

    async def told(rpc: Rpc, token: str) -> grpc.StatusCode:
        admitted = _ROLES[role] in rpc.rule.roles and rpc.path not in _OWNERS_ALONE
        async with room:
            return await code_of(rpc, token, timeout_s=_patience_s(rpc, admitted=admitted))

    found = await asyncio.gather(*map(told, rpcs, tokens))
    let_in = {
        rpc.path
        for rpc, code in zip(rpcs, found, strict=True)
        if code not in _DENIED or rpc.path in _OWNERS_ALONE
    }
    meant = {rpc.path for rpc in rpcs if _ROLES[role] in rpc.rule.roles}
    if role != "admin":
        let_in -= _OWNERS_ALONE
    assert meant == let_in
    refused = [
        code for rpc, code in zip(rpcs, found, strict=True) if _ROLES[role] not in rpc.rule.roles
    ]
    assert {*refused} <= {grpc.StatusCode.PERMISSION_DENIED}


@pytest.mark.parametrize("account", ["admin", "viewer"])
@pytest.mark.parametrize("role", _ROLES)
async def test_a_member_may_in_a_team_what_account_and_role_both_allow(
    suite: Suite, role: str, account: str
) -> None:
    """E14, X17: and no RPC that administers the deployment is let in from within a team."""
    rpcs = [rpc for rpc in await every_rpc(suite) if auth_pb2.AUDIENCE_USER in rpc.rule.audiences]
    room = asyncio.Semaphore(_AT_ONCE)
    with suite.sql() as sql:
        members = [factories.user(sql, role=account) for _ in rpcs]
        teams = [factories.team(sql, **{role: member}) for member in members]

    acts_as = auth_pb2.ROLE_VIEWER if "viewer" in {role, account} else auth_pb2.ROLE_USER

    async def told(rpc: Rpc, token: str, team: UUID) -> grpc.StatusCode:
        patience_s = _patience_s(rpc, admitted=acts_as in rpc.rule.roles)
        async with room:
            return await code_of(rpc, token, timeout_s=patience_s, tenant=team)

    found = await asyncio.gather(*map(told, rpcs, [each.token for each in members], teams))
    let_in = {rpc.path for rpc, code in zip(rpcs, found, strict=True) if code not in _DENIED}
    assert {rpc.path for rpc in rpcs if acts_as in rpc.rule.roles} == let_in


def _patience_s(rpc: Rpc, *, admitted: bool) -> float:
    return _WATCHED_S if admitted and "stream" in rpc.kind else _REFUSED_S


async def test_a_team_of_others_and_one_that_is_not_there_are_the_same_to_every_rpc(
    suite: Suite,
) -> None:
    """E14, X14."""
    with suite.sql() as sql:
        stranger = factories.user(sql, role="admin")
        team = factories.team(sql, admin=factories.user(sql))
    meant = [rpc for rpc in await every_rpc(suite) if auth_pb2.AUDIENCE_USER in rpc.rule.audiences]
    for tenant in (team, uuid4()):
        expected = dict.fromkeys((rpc.path for rpc in meant), grpc.StatusCode.PERMISSION_DENIED)
        assert expected == await codes(meant, stranger.token, tenant=tenant)


async def test_a_token_that_calls_itself_a_runner_is_no_runner(suite: Suite) -> None:
    """E14, X46: a name or a scope of somebody's making opens no door of services."""
    with suite.sql() as sql:
        user, made_up = factories.user(sql, role="admin"), new_token()
        sql.execute(
            "INSERT INTO user_service_tokens (tenant_id, user_id, name, token_sha256, scopes,"
            " expires_at) VALUES (%s, %s, 'runner', %s, '{runner}', 'tomorrow')",
            (user.id, user.id, token_sha256(made_up)),
        )
        narrow = factories.service_token(sql, "runner-of-nobody", ["nodes:read"])
    meant = [
        rpc for rpc in await every_rpc(suite) if [auth_pb2.AUDIENCE_SERVICE] == rpc.rule.audiences
    ]
    assert meant
    for token in (made_up, narrow):
        expected = dict.fromkeys((rpc.path for rpc in meant), grpc.StatusCode.PERMISSION_DENIED)
        assert expected == await codes(meant, token)
