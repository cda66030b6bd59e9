"""CP23: kill -9 of the registry around the commit that opens or ends a session."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from qflow.registry.v1 import session_service_pb2 as pb
from qflow.registry.v1.session_service_pb2_grpc import SessionServiceStub

from services.kit.ids import token_sha256
from services.kit.rpc.channel import open_channel
from services.registry.usecases.bootstrap import create_user
from tests.support.database import Database
from tests.support.registry_process import Moment, RegistryProcess, Wire, sockets_of
from tests.support.suite_fixtures import discard

MOMENTS: tuple[Moment, ...] = ("before the commit", "after the commit")
SIGN_IN = pb.SignInRequest(email="ada@example.org", password="correct horse")


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="qfw-", dir="/tmp"))
    yield made
    discard(made)


@pytest.fixture
async def wire(database: Database, folder: Path) -> AsyncIterator[Wire]:
    made = Wire(f"{sockets_of(database)}/.s.PGSQL.5432")
    server = await asyncio.start_unix_server(made.carry, str(folder / ".s.PGSQL.5432"))
    yield made
    server.close()


@pytest.fixture
async def process(database: Database, wire: Wire, folder: Path) -> AsyncIterator[RegistryProcess]:
    url = database.url("qflow_registry_auth")
    await create_user(url, email="ada@example.org", password="correct horse")
    made = RegistryProcess(database, folder, login="qflow_registry_auth")
    await made.start()
    yield made
    await made.kill()


@asynccontextmanager
async def sessions(process: RegistryProcess, token: str = "nobody") -> AsyncIterator[Any]:
    async with open_channel(process.address, token) as channel:
        yield SessionServiceStub(channel)


def _digests(database: Database) -> set[str]:
    with database.connect() as sql:
        return {row[0] for row in sql.execute("SELECT session_token FROM user_sessions")}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_sign_in_that_was_cut_off_is_made_again(
    process: RegistryProcess, wire: Wire, database: Database, moment: Moment
) -> None:
    """CP23: a session that nobody was told of can be used by nobody, and is seen and ended."""
    wire.arm(b"INSERT INTO user_sessions", moment)
    async with sessions(process) as stub:
        await process.killed_in(wire, stub.SignIn(SIGN_IN, timeout=30))
    orphans = _digests(database)
    assert len(orphans) == (0 if moment == "before the commit" else 1)

    await process.start()
    async with sessions(process) as stub:
        given = await stub.SignIn(SIGN_IN, timeout=30)
    assert _digests(database) == orphans | {token_sha256(given.token)}
    async with sessions(process, given.token) as stub:
        listed = await stub.ListSessions(pb.ListSessionsRequest(), timeout=30)
        assert len(listed.sessions) == len(orphans) + 1
        ended = await stub.RevokeAllSessions(pb.RevokeAllSessionsRequest(), timeout=30)
    assert ended.revoked_sessions == len(orphans)
    assert _digests(database) == {token_sha256(given.token)}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_session_that_was_being_ended_is_wholly_there_or_wholly_gone(
    process: RegistryProcess, wire: Wire, database: Database, moment: Moment
) -> None:
    """CP23: and what was noted of it stands or falls with it."""
    async with sessions(process) as stub:
        token = (await stub.SignIn(SIGN_IN, timeout=30)).token
    async with sessions(process, token) as stub:
        [known] = (await stub.ListSessions(pb.ListSessionsRequest(), timeout=30)).sessions
        wire.arm(b"DELETE FROM user_sessions", moment)
        call = stub.RevokeSession(pb.RevokeSessionRequest(session_id=known.id), timeout=30)
        await process.killed_in(wire, call)

    there = moment == "before the commit"
    assert _digests(database) == ({token_sha256(token)} if there else set())
    with database.connect() as sql:
        assert _noted(sql) == (0 if there else 1)
    await process.start()
    async with sessions(process, token) as stub:
        if there:
            await stub.SignOut(pb.SignOutRequest(), timeout=30)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SignOut(pb.SignOutRequest(), timeout=30)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert _digests(database) == set()


def _noted(sql: psycopg.Connection) -> int:
    [(count,)] = sql.execute("SELECT count(*) FROM audit_events WHERE action = 'session.revoke'")
    return int(count)
