"""CP23: kill -9 of the registry around the commit that opens or ends a session."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from qflow.registry.v1 import session_service_pb2 as pb
from qflow.registry.v1.session_service_pb2_grpc import SessionServiceStub

from services.kit.ids import token_sha256
from services.kit.rpc.channel import open_channel
from services.registry.usecases.bootstrap import create_user
from tests.support.database import Database
from tests.support.suite_fixtures import discard

pytestmark = [pytest.mark.timeout(120)]

Moment = Literal["before the commit", "after the commit"]
MOMENTS: tuple[Moment, ...] = ("before the commit", "after the commit")
SIGN_IN = pb.SignInRequest(email="ada@example.org", password="correct horse")


@dataclass
class Wire:
    """Between the registry and PostgreSQL: holds the COMMIT after a statement, or its answer.

    What is held is held until the registry is dead: nothing is slow, and no moment is missed.
    """

    server: str
    statement: bytes = b""
    moment: Moment = "before the commit"
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def arm(self, statement: bytes, moment: Moment) -> None:
        self.statement, self.moment = statement, moment
        self.reached.clear()

    async def carry(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        answers, out = await asyncio.open_unix_connection(self.server)
        held = asyncio.Event()
        answering = asyncio.create_task(self._answer(answers, back, held))
        seen = False
        with suppress(ConnectionError):
            while asked := await client.read(65_536):
                seen = seen or bool(self.statement and self.statement in asked)
                if seen and b"COMMIT" in asked:
                    self.statement = b""
                    if self.moment == "before the commit":
                        self.reached.set()
                        break
                    held.set()
                out.write(asked)
                await out.drain()
        if not held.is_set():
            await client.read()  # until the registry is dead
        else:
            while await client.read(65_536):
                pass
        out.close()
        back.close()
        await answering

    async def _answer(
        self, answers: asyncio.StreamReader, back: asyncio.StreamWriter, held: asyncio.Event
    ) -> None:
        with suppress(ConnectionError):
            while said := await answers.read(65_536):
                if held.is_set():
                    self.reached.set()  # committed, and nobody is told
                else:
                    back.write(said)
                    await back.drain()


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="qfw-", dir="/tmp"))
    yield made
    discard(made)


@pytest.fixture
async def wire(database: Database, folder: Path) -> AsyncIterator[Wire]:
    sockets = database.url("qflow_registry_auth").split("host=")[1].split("&")[0]
    made = Wire(f"{sockets}/.s.PGSQL.5432")
    server = await asyncio.start_unix_server(made.carry, str(folder / ".s.PGSQL.5432"))
    yield made
    server.close()


class Process:
    """`python -m services.registry`, whose login for identities goes over the wire."""

    def __init__(self, database: Database, folder: Path) -> None:
        inherited = {name: v for name, v in os.environ.items() if not name.startswith("QFLOW_")}
        auth = database.url("qflow_registry_auth")
        sockets = auth.split("host=")[1].split("&")[0]
        self.address = f"unix:{folder}/registry.sock"
        self._env = inherited | database.env
        self._env["QFLOW_REGISTRY_LISTEN"] = self.address
        self._env["QFLOW_REGISTRY_AUTH_DATABASE_URL"] = auth.replace(sockets, str(folder))
        self._log = folder / "registry.log"
        self._process: subprocess.Popen[bytes] | None = None

    def _spawn(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.registry"],
                env=self._env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    async def start(self) -> None:
        self._spawn()
        async with grpc.aio.insecure_channel(self.address) as channel:
            probe: Any = health_pb2_grpc.HealthStub(channel)
            await probe.Check(health_pb2.HealthCheckRequest(), timeout=40, wait_for_ready=True)

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await asyncio.to_thread(self._process.wait)


@pytest.fixture
async def process(database: Database, wire: Wire, folder: Path) -> AsyncIterator[Process]:
    url = database.url("qflow_registry_auth")
    await create_user(url, email="ada@example.org", password="correct horse")
    made = Process(database, folder)
    await made.start()
    yield made
    await made.kill()


@asynccontextmanager
async def sessions(process: Process, token: str = "nobody") -> AsyncIterator[Any]:
    async with open_channel(process.address, token) as channel:
        yield SessionServiceStub(channel)


async def _killed(process: Process, wire: Wire, call: Any) -> None:
    """Kill the registry where the wire holds it; whoever called is told nothing but that."""
    calling = asyncio.ensure_future(call)
    await wire.reached.wait()
    await process.kill()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await calling
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def _digests(database: Database) -> set[str]:
    with database.connect() as sql:
        return {row[0] for row in sql.execute("SELECT session_token FROM user_sessions")}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_sign_in_that_was_cut_off_is_made_again(
    process: Process, wire: Wire, database: Database, moment: Moment
) -> None:
    """CP23: a session that nobody was told of can be used by nobody, and is seen and ended."""
    wire.arm(b"INSERT INTO user_sessions", moment)
    async with sessions(process) as stub:
        await _killed(process, wire, stub.SignIn(SIGN_IN, timeout=30))
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
    process: Process, wire: Wire, database: Database, moment: Moment
) -> None:
    """CP23: and what was noted of it stands or falls with it."""
    async with sessions(process) as stub:
        token = (await stub.SignIn(SIGN_IN, timeout=30)).token
    async with sessions(process, token) as stub:
        [known] = (await stub.ListSessions(pb.ListSessionsRequest(), timeout=30)).sessions
        wire.arm(b"DELETE FROM user_sessions", moment)
        call = stub.RevokeSession(pb.RevokeSessionRequest(session_id=known.id), timeout=30)
        await _killed(process, wire, call)

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
