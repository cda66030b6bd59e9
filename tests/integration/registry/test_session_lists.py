"""Sessions, listed and ended: one's own, and by administrators anybody's."""

from __future__ import annotations

import asyncio
import uuid

import grpc
import psycopg
import pytest
from qflow.registry.v1 import session_service_pb2 as pb

from services.kit.ids import new_token, token_sha256
from services.kit.pg import open_pool
from services.kit.rpc.identity import Authenticator, Credential
from services.registry.gateways.passwords import Passwords
from tests.integration.registry.accounts import Account, again, caller, signed_in, trail
from tests.integration.registry.conftest import Registry, change_rows, refused
from tests.support.database import Database


@pytest.fixture
async def admin(registry: Registry, database: Database) -> Account:
    return await signed_in(registry, database, "admin", role="admin")


@pytest.fixture
async def ada(registry: Registry, database: Database) -> Account:
    return await signed_in(registry, database, "ada")


async def _ids(account: Account, user_id: str = "") -> list[str]:
    answer = await account.sessions.ListSessions(pb.ListSessionsRequest(user_id=user_id))
    return [session.id for session in answer.sessions]


async def _code(account: Account) -> grpc.StatusCode:
    try:
        await account.sessions.GetCaller(pb.GetCallerRequest())
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_sessions_are_listed_newest_first_in_pages_without_those_that_ended(
    registry: Registry, ada: Account, sql: psycopg.Connection
) -> None:
    """X3."""
    await again(registry, "ada")
    await change_rows(
        sql,
        "UPDATE user_sessions SET expires_at = now() - interval '1 s' WHERE id IN"
        " (SELECT id FROM user_sessions ORDER BY created_at DESC LIMIT 1)",
    )
    await again(registry, "ada")
    first = await ada.sessions.ListSessions(pb.ListSessionsRequest(page_size=1))
    rest = await ada.sessions.ListSessions(
        pb.ListSessionsRequest(page_size=1, page_token=first.next_page_token)
    )
    found = [*first.sessions, *rest.sessions]
    assert [session.current for session in found] == [False, True]
    assert {session.user_id for session in found} == {ada.id}
    assert rest.next_page_token == ""
    assert found[0].create_time.ToDatetime() > found[1].create_time.ToDatetime()


async def test_a_session_that_expired_a_second_ago_is_none(
    registry: Registry, ada: Account, sql: psycopg.Connection
) -> None:
    """X3: by the database's clock."""
    other = await again(registry, "ada")
    change = "UPDATE user_sessions SET expires_at = clock_timestamp() + %s::interval"
    sql.execute(change, ("-1 s",))
    assert await _code(ada) == grpc.StatusCode.UNAUTHENTICATED
    sql.execute(change, ("1 min",))
    assert await _code(other) == grpc.StatusCode.OK


async def test_one_session_is_ended_and_the_others_go_on(registry: Registry, ada: Account) -> None:
    """X4: at once in the process that was asked."""
    other = await again(registry, "ada")
    [newest, _] = await _ids(ada)
    request = pb.RevokeSessionRequest(session_id=newest, request_id=str(uuid.uuid4()))
    await ada.sessions.RevokeSession(request)
    await ada.sessions.RevokeSession(request)  # told the same again
    assert [await _code(each) for each in (ada, other)] == [
        grpc.StatusCode.OK,
        grpc.StatusCode.UNAUTHENTICATED,
    ]
    said = await refused(ada.sessions.RevokeSession(pb.RevokeSessionRequest(session_id=newest)))
    assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")


async def test_all_other_sessions_are_ended_at_once(registry: Registry, ada: Account) -> None:
    others = [await again(registry, "ada") for _ in range(3)]
    ended = await ada.sessions.RevokeAllSessions(pb.RevokeAllSessionsRequest())
    assert ended.revoked_sessions == 3
    assert [await _code(each) for each in (ada, *others)] == [
        grpc.StatusCode.OK,
        *[grpc.StatusCode.UNAUTHENTICATED] * 3,
    ]


async def test_an_administrator_sees_and_ends_anybodys_and_that_is_noted(
    registry: Registry, admin: Account, ada: Account, sql: psycopg.Connection
) -> None:
    """X23."""
    await again(registry, "ada")
    [one, _] = await _ids(admin, ada.id)
    await admin.sessions.RevokeSession(pb.RevokeSessionRequest(session_id=one))
    ended = await admin.sessions.RevokeAllSessions(pb.RevokeAllSessionsRequest(user_id=ada.id))
    assert ended.revoked_sessions == 1
    assert await _code(ada) == grpc.StatusCode.UNAUTHENTICATED
    assert await _code(admin) == grpc.StatusCode.OK
    assert [(actor, action, before) for actor, action, before, _ in trail(sql)] == [
        (admin.id, "sessions.list", {}),
        (admin.id, "session.revoke", {"user_id": ada.id}),
        (admin.id, "sessions.revoke_all", {"count": 1}),
    ]


async def test_another_users_sessions_are_as_absent_as_those_of_nobody(
    admin: Account, ada: Account
) -> None:
    """X21."""
    [theirs] = await _ids(admin)
    for call in (
        ada.sessions.ListSessions(pb.ListSessionsRequest(user_id=admin.id)),
        ada.sessions.RevokeSession(pb.RevokeSessionRequest(session_id=theirs)),
        ada.sessions.RevokeAllSessions(pb.RevokeAllSessionsRequest(user_id=admin.id)),
        admin.sessions.ListSessions(pb.ListSessionsRequest(user_id=str(uuid.uuid4()))),
        admin.sessions.RevokeAllSessions(pb.RevokeAllSessionsRequest(user_id=str(uuid.uuid4()))),
    ):
        assert (await refused(call)).code == grpc.StatusCode.NOT_FOUND
    assert await _code(admin) == grpc.StatusCode.OK


async def test_no_caller_chooses_a_token(
    registry: Registry, ada: Account, sql: psycopg.Connection
) -> None:
    """X10: what was brought along to signing in is no session afterwards."""
    chosen = new_token()
    anybody = caller(registry, chosen)
    request = pb.SignInRequest(email="ada@example.org", password="correct horse")
    given = await anybody.sessions.SignIn(request)
    assert given.token != chosen
    assert await _code(anybody) == grpc.StatusCode.UNAUTHENTICATED
    digests = {row[0] for row in sql.execute("SELECT session_token FROM user_sessions")}
    assert token_sha256(chosen) not in digests
    assert token_sha256(given.token) in digests


async def test_another_service_refuses_an_ended_session_within_five_seconds(
    ada: Account, admin: Account, database: Database
) -> None:
    """X4, X5, F21: there is no cache to be down, but the one of each process."""
    pool = await open_pool(database.url("qflow_telemetry"), application_name="test", size_max=1)
    now = 100.0
    elsewhere = Authenticator(pool, clock=lambda: now)
    digest = token_sha256(ada.token)
    assert str((await elsewhere.authenticate(Credential(digest))).user_id) == ada.id
    await admin.sessions.RevokeAllSessions(pb.RevokeAllSessionsRequest(user_id=ada.id))
    now += 5.0
    with pytest.raises(Exception, match="a valid token is needed"):
        await elsewhere.authenticate(Credential(digest))
    await pool.close()


async def test_a_password_that_changes_during_a_sign_in_leaves_no_session_behind(
    registry: Registry, database: Database, ada: Account, sql: psycopg.Connection
) -> None:
    """X52: checked with the old password, opened after the change."""
    changed = await Passwords().hash("another horse")
    with database.connect() as other:
        other.autocommit = False
        await change_rows(
            other, "UPDATE users SET password_hash = %s WHERE id = %s", (changed, ada.id)
        )
        request = pb.SignInRequest(email="ada@example.org", password="correct horse")
        signing_in = asyncio.ensure_future(refused(caller(registry).sessions.SignIn(request)))
        while not sql.execute(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND application_name = 'qflow-registry-auth' AND datname = current_database()"
        ).fetchone():
            assert not signing_in.done()
            await asyncio.sleep(0.01)
        await change_rows(other, "DELETE FROM user_sessions WHERE user_id = %s", (ada.id,))
        other.commit()
    assert (await signing_in).reason == "SIGN_IN_REFUSED"
    assert sql.execute("SELECT count(*) FROM user_sessions").fetchone() == (0,)
