"""The registry in this process, over a migrated database and a runner that only resolves."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import psycopg
import pytest
from argon2 import PasswordHasher, Type
from google.rpc import error_details_pb2
from grpc_health.v1 import health
from grpc_status import rpc_status
from qflow.registry.v1 import node_pb2, workflow_pb2
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1.diff_service_pb2_grpc import DiffServiceStub
from qflow.registry.v1.exchange_service_pb2_grpc import ExchangeServiceStub
from qflow.registry.v1.node_service_pb2_grpc import NodeServiceStub
from qflow.registry.v1.session_service_pb2_grpc import SessionServiceStub
from qflow.registry.v1.type_service_pb2_grpc import TypeServiceStub
from qflow.registry.v1.workflow_service_pb2_grpc import WorkflowServiceStub
from qflow.runner.v1 import environment_service_pb2 as environment_pb
from qflow.runner.v1 import environment_service_pb2_grpc as environment_grpc

from services.kit.rpc.channel import open_channel
from services.kit.rpc.server import open_server
from services.registry.app import build
from services.registry.gateways import passwords
from tests import factories
from tests.support.database import Database


@pytest.fixture
def sql(database: Database) -> Iterator[psycopg.Connection]:
    with database.connect() as connection:
        yield connection


@pytest.fixture
def user(sql: psycopg.Connection) -> factories.User:
    return factories.user(sql)


@pytest.fixture
def full_hashes() -> None:
    """Passwords cost what they cost users: for tests that this decides."""


@pytest.fixture(autouse=True)
def _hashes_cost_little(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash that nobody is to guess from takes no time, which signing in would mostly be."""
    if "full_hashes" not in request.fixturenames:
        little = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1, type=Type.ID)
        monkeypatch.setattr(passwords, "_HASHER", little)


class Resolver(environment_grpc.EnvironmentServiceServicer):
    """Stands for the runner: pins everything to 1.0, or does what it is told."""

    def __init__(self) -> None:
        self.asked: list[environment_pb.ResolveEnvironmentRequest] = []
        self.failure: tuple[grpc.StatusCode, str] | None = None

    async def ResolveEnvironment(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        if self.failure is not None:
            code, text = self.failure
            await context.abort(code, text)
        lock = "\n".join(f"{each}==1.0 --hash=sha256:{'0' * 64}" for each in request.requirements)
        return environment_pb.ResolveEnvironmentResponse(
            lock=lock, lock_digest=hashlib.sha256(lock.encode()).hexdigest()
        )


@pytest.fixture
async def resolver() -> AsyncIterator[Resolver]:
    server = grpc.aio.server()
    make: Any = Resolver  # all else that the service offers is answered UNIMPLEMENTED
    servicer: Resolver = make()
    environment_grpc.add_EnvironmentServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    servicer.address = f"127.0.0.1:{port}"  # type: ignore[attr-defined]
    await server.start()
    yield servicer
    await server.stop(0)


@dataclass
class Client:
    """One caller's way to the registry."""

    channel: grpc.aio.Channel
    nodes: Any
    workflows: Any
    sessions: Any
    exchange: Any
    diffs: Any
    types: Any

    async def node(self, code: str, **fields: Any) -> node_pb2.Node:
        request = node_rpc.CreateNodeRequest(name="a node", code=code, **fields)
        made: node_pb2.Node = (await self.nodes.CreateNode(request)).node
        return made


@dataclass
class Registry:
    """A running registry and ways to ask it."""

    address: str
    clients: list[Client] = field(default_factory=list)

    def client(self, token: str) -> Client:
        channel = open_channel(self.address, token)
        client = Client(
            channel,
            NodeServiceStub(channel),
            WorkflowServiceStub(channel),
            SessionServiceStub(channel),
            ExchangeServiceStub(channel),
            DiffServiceStub(channel),
            TypeServiceStub(channel),
        )
        self.clients.append(client)
        return client


@pytest.fixture
async def registry(database: Database, resolver: Resolver) -> AsyncIterator[Registry]:
    """The whole service with its loops."""
    async with running_registry(database, resolver) as running:
        yield running


@asynccontextmanager
async def running_registry(
    database: Database, resolver: Resolver, **settings: str
) -> AsyncIterator[Registry]:
    """Run the whole service with its loops, and with more settings."""
    env = database.env | {
        "QFLOW_REGISTRY_LISTEN": "127.0.0.1:0",
        "QFLOW_RUNNER_ADDRESS": resolver.address,  # type: ignore[attr-defined]
        "QFLOW_PYTHON_VERSION": "3.11",
        **settings,
    }
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(build(env))
        server = await open_server(
            app.listener,
            app.servicers,
            authenticator=app.authenticator,
            health_servicer=health.aio.HealthServicer(),
            recorder=app.recorder,
        )
        await server.start()
        assert app.recorder is not None
        running_loops = (*app.loops, app.recorder.write_until)
        loops = [asyncio.ensure_future(loop(stop)) for loop in running_loops]
        running = Registry(server.address)
        yield running
        for client in running.clients:
            await client.channel.close()
        stop.set()
        await asyncio.gather(*loops)
        await server.stop(0)


@pytest.fixture
def client(registry: Registry, user: factories.User) -> Client:
    return registry.client(user.token)


async def change_rows(
    sql: psycopg.Connection, query: str | bytes, arguments: Sequence[object] = ()
) -> None:
    """Change the database as its owner, beside the service that goes on in this loop.

    It may hold what this waits for, and would for as long as this loop waited with it.
    """
    await asyncio.to_thread(sql.execute, query, arguments)


@dataclass(frozen=True)
class Refusal:
    """What a refused call said."""

    code: grpc.StatusCode
    reason: str
    facts: dict[str, str]
    violations: list[tuple[str, str]]  # field, reason
    text: str


async def refused(call: Any) -> Refusal:
    """Await a call that must fail, and read its details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]  # typed for sync calls
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details if status else ():
        detail.Unpack(info)
        detail.Unpack(bad)
    return Refusal(
        caught.value.code(),
        info.reason,
        dict(info.metadata),
        [(each.field, each.reason) for each in bad.field_violations],
        "\n".join([caught.value.details() or "", *(v.description for v in bad.field_violations)]),
    )


def place(
    node_id: str, *, on: node_pb2.Node, literals: dict[str, str] | None = None, **fields: Any
) -> workflow_pb2.WorkflowNode:
    return workflow_pb2.WorkflowNode(
        id=node_id,
        node_id=on.id,
        literals=[
            workflow_pb2.LiteralInput(input=name, value_json=text)
            for name, text in (literals or {}).items()
        ],
        **fields,
    )


def edge(text: str, conversion: str = "") -> workflow_pb2.Connection:
    """Read `a.result -> b.x`; `.x -> b.x` starts at the workflow's input x."""
    source, target = (each.strip().rsplit(".", 1) for each in text.split("->"))
    return workflow_pb2.Connection(
        source_node=source[0],
        source_output=source[1],
        target_node=target[0],
        target_input=target[1],
        conversion=conversion,
    )
