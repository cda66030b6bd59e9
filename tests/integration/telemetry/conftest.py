"""Telemetry in this process over a migrated database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import grpc
import psycopg
import pytest
from grpc_health.v1 import health
from qflow.telemetry.v1.telemetry_service_pb2_grpc import TelemetryServiceStub

from services.kit.ids import uuid7
from services.kit.pg import Pool, open_pool
from services.kit.rpc.channel import open_channel
from services.kit.rpc.server import open_server
from services.telemetry.app import build
from tests import factories
from tests.support.database import Database

if TYPE_CHECKING:
    from qflow.telemetry.v1.telemetry_service_pb2_grpc import TelemetryServiceAsyncStub


@pytest.fixture
def sql(database: Database) -> Iterator[psycopg.Connection]:
    """The migrating owner's eyes and hands."""
    with database.connect() as connection:
        yield connection


@pytest.fixture
async def maint(database: Database) -> AsyncIterator[Pool]:
    pool = await open_pool(
        database.url("qflow_telemetry_maint"), application_name="test", size_max=3
    )
    yield pool
    pool.terminate()


@dataclass
class Runs:
    """Finished runs of one user's, as the engine would have written them."""

    sql: psycopg.Connection
    owner: factories.User
    workflow_id: UUID

    def finished(
        self,
        *,
        ago: str = "0 s",
        status: str = "completed",
        nodes: int = 2,
        begun: bool = True,
        queued_after: str = "0 s",
        usage: str = '{"cpu_us": 1500}',
    ) -> UUID:
        execution_id = uuid7()
        self.sql.execute(
            "INSERT INTO workflow_executions (id, workflow_id, workflow_version, status, shard,"
            " created_at, queued_at, started_at, completed_at, tenant_id, created_by,"
            " resource_usage)"
            " SELECT %(id)s, %(workflow)s, 1, %(status)s, 0, t, t + %(queued_after)s::interval,"
            " CASE WHEN %(begun)s THEN t + interval '5 ms' END, t + interval '105 ms', %(owner)s,"
            " %(owner)s, %(usage)s FROM (SELECT now() - %(ago)s::interval AS t) s",
            {
                "id": execution_id,
                "workflow": self.workflow_id,
                "status": status,
                "queued_after": queued_after,
                "begun": begun,
                "owner": self.owner.id,
                "usage": usage,
                "ago": ago,
            },
        )
        for order in range(nodes):
            self.sql.execute(
                "INSERT INTO node_executions (workflow_execution_id, node_id, definition_node_id,"
                " node_type, status, started_at, completed_at, execution_order, retry_count,"
                " max_retries, output_data)"
                " SELECT id, %(node)s, %(node)s, 'python', 'completed', started_at, completed_at,"
                " %(order)s, 1, 3, '{}' FROM workflow_executions WHERE id = %(run)s",
                {"run": execution_id, "node": f"n{order}", "order": order},
            )
        return execution_id


@pytest.fixture
def runs_of(sql: psycopg.Connection) -> Callable[[factories.User], Runs]:
    def make(owner: factories.User) -> Runs:
        node = factories.node(sql, owner)
        workflow_id = factories.workflow(
            sql, owner, nodes={"n0": node}, edges=[("", "x", "n0", "x")], outputs=[("y", "n0")]
        )
        return Runs(sql, owner, workflow_id)

    return make


@pytest.fixture
def owner(sql: psycopg.Connection) -> factories.User:
    return factories.user(sql)


@pytest.fixture
def runs(runs_of: Callable[[factories.User], Runs], owner: factories.User) -> Runs:
    return runs_of(owner)


@dataclass
class Telemetry:
    """A running telemetry and ways to ask it."""

    address: str
    channels: list[grpc.aio.Channel]

    def channel(self, user: factories.User) -> grpc.aio.Channel:
        channel = open_channel(self.address, user.token)
        self.channels.append(channel)
        return channel

    def stub(self, user: factories.User) -> TelemetryServiceAsyncStub:
        return TelemetryServiceStub(self.channel(user))


@pytest.fixture
async def telemetry(
    database: Database, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Telemetry]:
    """The whole service with its loops; a test may set more of its environment indirectly."""
    async with serving(database, tmp_path, getattr(request, "param", {})) as running:
        yield running


@asynccontextmanager
async def serving(database: Database, home: Path, more: dict[str, str]) -> AsyncIterator[Telemetry]:
    """Run telemetry on a home, with more of its environment."""
    env = database.env | {"QFLOW_HOME": str(home), "QFLOW_TELEMETRY_LISTEN": "127.0.0.1:0"}
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(build(env | more))
        server = await open_server(
            app.listener,
            app.servicers,
            authenticator=app.authenticator,
            health_servicer=health.aio.HealthServicer(),
        )
        await server.start()
        # Whatever fails: one that is only forgotten stops the process that collects it.
        stack.push_async_callback(server.stop, 0)
        loops = [asyncio.ensure_future(loop(stop)) for loop in app.loops]
        running = Telemetry(server.address, [])
        yield running
        stop.set()
        for channel in running.channels:
            await channel.close()
        await asyncio.gather(*loops)
