"""An orchestrator in this process over a real database, with a fake runner beside it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import grpc
import psycopg
import pytest
from grpc_health.v1 import health
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub

from services.kit.rpc.channel import open_channel
from services.kit.rpc.server import open_server
from services.orchestrator.app import build
from tests import factories
from tests.fakes.runner import Answer, FakeRunner, register
from tests.support.database import Database
from tests.support.invariants import OF_RUNS, broken

if TYPE_CHECKING:
    from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceAsyncStub

# Of a stop: those who wait have been told by then, and may still have to look at their run.
_GRACE_S = 1.0


@dataclass(slots=True)
class Orchestra:
    """A running orchestrator and what a test says to it."""

    database: Database
    home: Path
    sql: psycopg.Connection
    owner: factories.User
    runner_token: str
    service_token: str = ""
    ttl_s: float = 10.0
    stub: ExecutionServiceAsyncStub = field(init=False, repr=False)
    address: str = ""
    attach_address: str = ""
    more_env: dict[str, str] = field(default_factory=dict)
    # Whether the test itself writes runs, or changes those that are over.
    forges: bool = False
    _channels: list[grpc.aio.Channel] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Orchestra]:
        """Run the orchestrator inside the block; may be entered again: a restart."""
        env = self.database.env | {
            "QFLOW_HOME": str(self.home),
            "QFLOW_LEASE_TTL_S": str(self.ttl_s),
            "QFLOW_ORCHESTRATOR_LISTEN": "127.0.0.1:0",
            "QFLOW_SERVICE_TOKEN": self.service_token,
            **self.more_env,
        }
        stop = asyncio.Event()
        async with AsyncExitStack() as stack:
            app = await stack.enter_async_context(build(env))
            servers = []
            pairs = [(app.listener, app.servicers)]
            assert app.internal_listener is not None
            pairs.append((app.internal_listener, app.internal_servicers))
            for where, servicers in pairs:
                server = await open_server(
                    where,
                    servicers,
                    authenticator=app.authenticator,
                    health_servicer=health.aio.HealthServicer(),
                )
                servers.append(server)
            assert app.join is not None
            await app.join()
            for server in servers:
                await server.start()
            loops = [asyncio.ensure_future(loop(stop)) for loop in app.loops]
            self.address = servers[0].address
            self.attach_address = servers[1].address
            self.stub = ExecutionServiceStub(self.channel(self.owner.token))
            try:
                yield self
            finally:
                stop.set()
                if app.on_drain is not None:
                    await app.on_drain()
                for channel in self._channels:
                    await channel.close()
                self._channels.clear()
                for server in servers:
                    await server.stop(_GRACE_S)
                await asyncio.gather(*loops)

    def channel(self, token: str) -> grpc.aio.Channel:
        """Open a channel to the public listener."""
        channel = open_channel(self.address, token)
        self._channels.append(channel)
        return channel

    async def runner(self, answer: Answer, *, slots: int = 8) -> FakeRunner:
        """Make a fake runner with its row; `async with runner.attached()` begins its stream."""
        channel = open_channel(self.attach_address, self.runner_token)
        self._channels.append(channel)
        runner = FakeRunner(channel, answer, slots=slots)
        await self.renew(runner, ttl_s=3600)
        return runner

    async def renew(self, runner: FakeRunner, *, ttl_s: float) -> None:
        """Give the runner's row a lease."""
        db = await asyncpg.connect(self.database.url())
        try:
            await register(db, runner, ttl_s=ttl_s)
        finally:
            await db.close()

    @contextmanager
    def beside(self) -> Iterator[Orchestra]:
        """Give another orchestrator of the same database, on a home of its own."""
        home = Path(tempfile.mkdtemp(prefix="qfo-", dir="/tmp"))
        yield replace(self, home=home, _channels=[])
        shutil.rmtree(home, ignore_errors=True)

    async def change(self, query: str, *arguments: object) -> None:
        """Change the database as its owner, beside services that go on in this loop.

        They may hold what it waits for, and would for as long as this loop waited with it.
        """
        await asyncio.to_thread(self.sql.execute, query, arguments)

    def rows(self, query: str, *arguments: object) -> list[tuple[object, ...]]:
        """Ask the database as its owner."""
        return self.sql.execute(query, arguments).fetchall()


@pytest.fixture
def orchestra(database: Database) -> Iterator[Orchestra]:
    """An orchestrator that a test runs; what it leaves in the database holds every invariant."""
    home = Path(tempfile.mkdtemp(prefix="qfo-", dir="/tmp"))
    with database.connect() as sql:
        made = Orchestra(
            database,
            home,
            sql,
            factories.user(sql),
            factories.service_token(sql, "runner", ["runner"]),
            factories.service_token(sql, "orchestrator", ["orchestrator"]),
        )
        yield made
        assert made.forges or {} == broken(sql, of=OF_RUNS)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def diamond(orchestra: Orchestra) -> str:
    """a → (b, c) → d, all of one node that adds one; d adds both."""
    one = factories.node(orchestra.sql, orchestra.owner)
    two = factories.node(orchestra.sql, orchestra.owner, inputs=("x", "y"))
    return str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"a": one, "b": one, "c": one, "d": two},
            edges=[
                ("", "x", "a", "x"),
                ("a", "result", "b", "x"),
                ("a", "result", "c", "x"),
                ("b", "result", "d", "x"),
                ("c", "result", "d", "y"),
            ],
            outputs=[("sum", "d")],
        )
    )
