"""Service tokens: a backend acts as its user, no further than the scopes it was given."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.auth.v1 import auth_pb2
from qflow.registry.v1 import node_service_pb2 as nodes
from qflow.registry.v1 import service_token_service_pb2 as pb
from qflow.registry.v1 import session_service_pb2 as sessions
from qflow.registry.v1 import user_service_pb2 as users

from services.kit.errors import Unauthenticated
from services.kit.ids import token_sha256
from services.kit.pg import open_pool
from services.kit.rpc.identity import Authenticator, Credential
from services.registry.rpc.scopes import scopes_of
from tests.integration.registry.accounts import Account, caller, signed_in, trail
from tests.integration.registry.conftest import Registry, change_rows, refused
from tests.support.database import Database

CODE = "def one() -> int:\n    return 1\n"


@pytest.fixture
async def admin(registry: Registry, database: Database) -> Account:
    return await signed_in(registry, database, "admin", role="admin")


@pytest.fixture
async def ada(registry: Registry, database: Database) -> Account:
    return await signed_in(registry, database, "ada")


def _create(*scopes: str, **fields: Any) -> pb.CreateServiceTokenRequest:
    return pb.CreateServiceTokenRequest(**{"name": "ci", "scopes": scopes, **fields})


async def test_a_token_does_what_its_scopes_say_as_its_user_and_nothing_else(
    registry: Registry, ada: Account
) -> None:
    """X17."""
    made = await ada.tokens.CreateServiceToken(_create("nodes:read", "sessions:read"))
    assert made.token.startswith("qf_service_")
    backend = registry.client(made.token)
    known = await backend.sessions.GetCaller(sessions.GetCallerRequest())
    assert (known.caller.user_id, known.caller.tenant_id) == (ada.id, ada.id)
    assert known.expire_time == made.service_token.expire_time
    node = await registry.client(ada.token).node(CODE)
    listed = await backend.nodes.ListNodes(nodes.ListNodesRequest())
    assert [each.id for each in listed.nodes] == [node.id]
    said = await refused(backend.nodes.CreateNode(nodes.CreateNodeRequest(name="n", code=CODE)))
    assert said.code == grpc.StatusCode.PERMISSION_DENIED


async def test_a_token_makes_no_tokens_and_touches_no_account(
    registry: Registry, admin: Account, ada: Account
) -> None:
    """X17: with every scope that an administrator can give."""
    said = await refused(admin.tokens.CreateServiceToken(_create("users:write")))
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SCOPE_REFUSED")
    held_back = {"account:read", "account:write", "sessions:write", "users:write", "teams:write"}
    scopes = scopes_of("admin") - held_back
    made = await admin.tokens.CreateServiceToken(_create(*scopes))
    backend = caller(registry, made.token)
    for call in (
        backend.tokens.CreateServiceToken(_create("nodes:read", name="other")),
        backend.tokens.ListServiceTokens(pb.ListServiceTokensRequest()),
        backend.sessions.SignOut(sessions.SignOutRequest()),
        backend.sessions.RevokeAllSessions(sessions.RevokeAllSessionsRequest()),
        backend.users.ChangePassword(
            users.ChangePasswordRequest(old_password="correct horse", new_password="x" * 8)
        ),
        backend.users.DeactivateUser(users.DeactivateUserRequest(user_id=ada.id)),
        backend.users.TransferOwnership(users.TransferOwnershipRequest(user_id=ada.id)),
    ):
        assert (await refused(call)).code == grpc.StatusCode.PERMISSION_DENIED
    assert (await backend.users.GetUser(users.GetUserRequest(user_id=ada.id))).user.id == ada.id


@pytest.mark.parametrize("scope", ["all", "runner", "nodes:run", "users:read", "account:write"])
async def test_a_scope_that_is_not_the_users_to_give_is_refused_at_its_place(
    registry: Registry, database: Database, scope: str
) -> None:
    viewer = await signed_in(registry, database, "vic", role="viewer")
    scopes = ["nodes:read", scope]
    if scope == "users:read":  # everybody's: GetUser gives the caller
        scopes = ["nodes:read", "nodes:write"]
    said = await refused(viewer.tokens.CreateServiceToken(_create(*scopes)))
    assert said.code == grpc.StatusCode.INVALID_ARGUMENT
    assert said.violations == [("scopes[1]", "SCOPE_REFUSED")]
    assert "nodes:read" in said.text


async def test_a_token_is_shown_once_stored_as_a_digest_and_its_use_noted_by_the_hour(
    registry: Registry, ada: Account, sql: psycopg.Connection
) -> None:
    """X53."""
    request = _create("nodes:read", request_id=str(uuid.uuid4()))
    made = await ada.tokens.CreateServiceToken(request)
    repeated = await ada.tokens.CreateServiceToken(request)
    assert (repeated.service_token, repeated.token) == (made.service_token, "")
    [(digest,)] = sql.execute("SELECT token_sha256 FROM user_service_tokens")
    assert digest == token_sha256(made.token)

    async def last_used() -> Any:
        listed = await ada.tokens.ListServiceTokens(pb.ListServiceTokensRequest())
        [known] = listed.service_tokens
        return known.last_use_time if known.HasField("last_use_time") else None

    def ask() -> None:
        sql.execute("SELECT authenticate(%s)", (digest,))

    assert await last_used() is None
    ask()
    first = await last_used()
    ask()
    assert first is not None
    assert await last_used() == first  # no write for each call
    await change_rows(
        sql, "UPDATE user_service_tokens SET last_used_at = last_used_at - interval '61 min'"
    )
    ask()
    assert (await last_used()).ToDatetime() >= first.ToDatetime()


async def test_that_a_use_cannot_be_noted_keeps_nobody_out(
    database: Database, ada: Account
) -> None:
    """Read-only, as a full disk or a standby is; and while another holds the row."""
    made = await ada.tokens.CreateServiceToken(_create("nodes:read"))
    asked = ("SELECT user_id::text FROM authenticate(%s)", (token_sha256(made.token),))
    with database.connect() as holder, database.connect("qflow_runner") as runner:
        runner.execute("SET default_transaction_read_only = on")
        assert runner.execute(*asked).fetchone() == (ada.id,)
        runner.execute("SET default_transaction_read_only = off")
        holder.autocommit = False
        await change_rows(holder, "SELECT 1 FROM user_service_tokens FOR UPDATE")
        runner.execute("SET lock_timeout = '1s'")
        assert runner.execute(*asked).fetchone() == (ada.id,)


async def test_a_revoked_token_is_refused_here_at_once_and_elsewhere_within_five_seconds(
    registry: Registry, database: Database, ada: Account
) -> None:
    """X4, F21: no cache besides each process's own, so whether Redis is up is no matter."""
    made = await ada.tokens.CreateServiceToken(_create("nodes:read"))
    backend = registry.client(made.token)
    await backend.nodes.ListNodes(nodes.ListNodesRequest())
    pool = await open_pool(database.url("qflow_orchestrator"), application_name="test", size_max=1)
    now = 100.0
    elsewhere = Authenticator(pool, clock=lambda: now)
    await elsewhere.authenticate(Credential(token_sha256(made.token)))

    request = pb.RevokeServiceTokenRequest(service_token_id=made.service_token.id)
    await ada.tokens.RevokeServiceToken(request)
    said = await refused(backend.nodes.ListNodes(nodes.ListNodesRequest()))
    assert said.code == grpc.StatusCode.UNAUTHENTICATED
    now += 5.0
    with pytest.raises(Unauthenticated):
        await elsewhere.authenticate(Credential(token_sha256(made.token)))
    await pool.close()
    gone = await refused(ada.tokens.RevokeServiceToken(request))
    assert (gone.code, gone.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_TOKEN_NOT_FOUND")


@pytest.mark.parametrize("change", ["expired", "deactivated", "anonymised", "a viewer now"])
async def test_a_token_ends_with_its_time_and_reaches_no_further_than_its_user(
    registry: Registry, admin: Account, ada: Account, sql: psycopg.Connection, change: str
) -> None:
    """X3, X5: by the database's clock, to the second."""
    made = await ada.tokens.CreateServiceToken(
        _create("nodes:write", lifetime=Duration(seconds=60))
    )
    expected = grpc.StatusCode.UNAUTHENTICATED
    match change:
        case "expired":
            await change_rows(
                sql, "UPDATE user_service_tokens SET expires_at = now() - interval '1 s'"
            )
        case "deactivated":
            await admin.users.DeactivateUser(users.DeactivateUserRequest(user_id=ada.id))
        case "anonymised":
            await admin.users.AnonymizeUser(users.AnonymizeUserRequest(user_id=ada.id))
            assert sql.execute("SELECT count(*) FROM user_service_tokens").fetchone() == (0,)
        case _:
            expected = grpc.StatusCode.PERMISSION_DENIED
            await admin.users.UpdateUser(
                users.UpdateUserRequest(
                    user_id=ada.id,
                    role=auth_pb2.ROLE_VIEWER,
                    update_mask=FieldMask(paths=["role"]),
                )
            )
    backend = registry.client(made.token)
    said = await refused(backend.nodes.CreateNode(nodes.CreateNodeRequest(name="n", code=CODE)))
    assert said.code == expected


async def test_tokens_of_others_are_an_administrators_to_see_and_end(
    admin: Account, ada: Account, sql: psycopg.Connection
) -> None:
    """X21, X23."""
    mine = await admin.tokens.CreateServiceToken(_create("nodes:read"))
    theirs = await ada.tokens.CreateServiceToken(_create("nodes:read"))
    for call in (
        ada.tokens.ListServiceTokens(pb.ListServiceTokensRequest(user_id=admin.id)),
        ada.tokens.RevokeServiceToken(
            pb.RevokeServiceTokenRequest(service_token_id=mine.service_token.id)
        ),
    ):
        assert (await refused(call)).code == grpc.StatusCode.NOT_FOUND
    listed = await admin.tokens.ListServiceTokens(pb.ListServiceTokensRequest(user_id=ada.id))
    assert [each.id for each in listed.service_tokens] == [theirs.service_token.id]
    await admin.tokens.RevokeServiceToken(
        pb.RevokeServiceTokenRequest(service_token_id=theirs.service_token.id)
    )
    actor, action, before, _ = trail(sql)[-1]
    assert (actor, action) == (admin.id, "service_token.revoke")
    assert before == {"user_id": ada.id, "scopes": ["nodes:read"]}


async def test_a_user_has_fifty_tokens_at_most_and_one_of_each_name(
    ada: Account, sql: psycopg.Connection
) -> None:
    await ada.tokens.CreateServiceToken(_create("nodes:read"))
    same = await refused(ada.tokens.CreateServiceToken(_create("nodes:read")))
    assert (same.code, same.reason) == (grpc.StatusCode.ALREADY_EXISTS, "SERVICE_TOKEN_EXISTS")
    calls = [
        ada.tokens.CreateServiceToken(_create("nodes:read", name=f"ci {number}"))
        for number in range(52)
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    failed = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert {each.code() for each in failed} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert sql.execute("SELECT count(*) FROM user_service_tokens").fetchone() == (50,)


async def test_a_token_that_is_only_validated_does_not_exist(
    ada: Account, sql: psycopg.Connection
) -> None:
    answer = await ada.tokens.CreateServiceToken(_create("nodes:read", validate_only=True))
    assert (answer.token, answer.service_token.id) == ("", "")
    assert list(answer.service_token.scopes) == ["nodes:read"]
    assert sql.execute("SELECT count(*) FROM user_service_tokens").fetchone() == (0,)
