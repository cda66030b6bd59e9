"""A small service inside the kit's server, over a real database that knows a few tokens."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health

from services.kit.ids import token_sha256
from services.kit.pg import Pool, open_pool
from services.kit.rpc.call import Limits
from services.kit.rpc.channel import open_channel
from services.kit.rpc.identity import Authenticator
from services.kit.rpc.listener import Listener
from services.kit.rpc.server import BoundServer, open_server
from tests.support.database import Database

ROOT = Path(__file__).parents[3]
USER, VIEWER, SERVICE = "qf_user", "qf_viewer", "qf_service"

# Stands for the migrations' function of the same name: same columns, rows the tests can change.
_IDENTITIES = """
    CREATE TABLE identities (digest text PRIMARY KEY, role text, kind text, scopes text[],
                             expires_at timestamptz DEFAULT 'infinity',
                             user_id uuid DEFAULT gen_random_uuid());
    CREATE TABLE members (tenant_id uuid, user_id uuid, role text);
    CREATE FUNCTION authenticate(sha256 text, for_tenant uuid)
    RETURNS TABLE (user_id uuid, tenant_id uuid, role text, is_owner boolean, kind text, name text,
                   scopes text[], session_id uuid, expires_at timestamptz, team_role text)
    LANGUAGE sql STABLE AS $$
        SELECT i.user_id, CASE WHEN for_tenant IS NULL THEN i.user_id ELSE m.tenant_id END,
               COALESCE(m.role, i.role), false, i.kind, i.role, i.scopes, NULL::uuid,
               i.expires_at, COALESCE(m.role, '')
          FROM identities i
          LEFT JOIN members m ON m.tenant_id = for_tenant AND m.user_id = i.user_id
         WHERE i.digest = sha256
    $$;
"""


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The compiled test proto: `.pb` and `.grpc`."""
    target = tmp_path_factory.mktemp("stubs")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{Path(__file__).parent}"]
    command += [f"-I{ROOT / 'protos'}", f"-I{ROOT / 'protos/vendor'}"]
    command += [f"--python_out={target}", f"--grpc_python_out={target}", "kit_test.proto"]
    subprocess.run(command, check=True)
    sys.path.insert(0, str(target))
    try:
        yield Stubs(
            importlib.import_module("kit_test_pb2"), importlib.import_module("kit_test_pb2_grpc")
        )
    finally:
        sys.path.remove(str(target))


@dataclass(frozen=True)
class Stubs:
    pb: Any
    grpc: Any


Behavior = Callable[[Any, Any], Awaitable[Any]]


@dataclass
class Behaviors:
    """What the servicer does; a test replaces what it needs."""

    unary: Behavior
    stream: Callable[[Any, Any], AsyncIterator[Any]]
    seen: list[Any] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Service:
    """The running test service and the ways to reach it."""

    server: BoundServer
    stubs: Stubs
    behaviors: Behaviors
    pool: Pool
    authenticator: Authenticator
    health: health.aio.HealthServicer

    @property
    def pb(self) -> Any:
        return self.stubs.pb

    def channel(self, token: str = USER) -> grpc.aio.Channel:
        return open_channel(self.server.address, token)

    def bare(self, options: Any = ()) -> Any:
        """A channel that adds nothing by itself."""
        return grpc.aio.insecure_channel(self.server.address, options=[*options])


@pytest.fixture
async def pool(empty_database: Database) -> AsyncIterator[Pool]:
    pool = await open_pool(empty_database.url(), application_name="kit-test", size_max=4)
    yield pool
    pool.terminate()


@pytest.fixture
async def identities(pool: Pool) -> None:
    await pool.execute(_IDENTITIES)
    rows = [
        (token_sha256(USER), "user", "user", []),
        (token_sha256(VIEWER), "viewer", "user", []),
        (token_sha256(SERVICE), "service", "service", ["runner"]),
    ]
    await pool.executemany(
        "INSERT INTO identities (digest, role, kind, scopes) VALUES ($1, $2, $3, $4)", rows
    )


@pytest.fixture
async def service(
    stubs: Stubs, pool: Pool, identities: None, request: pytest.FixtureRequest
) -> AsyncIterator[Service]:
    """The service on a port of its own; a test changes its behaviors, and indirectly its limits."""
    options = getattr(request, "param", {})
    behaviors = _echo(stubs.pb)
    authenticator = Authenticator(pool, recheck_s=options.get("recheck_s", 60.0))
    probe = health.aio.HealthServicer()
    server = await open_server(
        Listener(
            address="127.0.0.1:0",
            public=options.get("public", True),
            concurrent_max=options.get("concurrent_max", 1000),
            limits=options.get("limits", Limits()),
        ),
        [(stubs.grpc.add_KitTestServiceServicer_to_server, _servicer(stubs, behaviors))],
        authenticator=authenticator,
        health_servicer=probe,
    )
    await server.start()
    yield Service(server, stubs, behaviors, pool, authenticator, probe)
    await server.stop(0)


def _echo(pb: Any) -> Behaviors:
    async def unary(request: Any, _context: Any) -> Any:
        if hasattr(request, "__aiter__"):
            texts = [note.text async for note in request]
            return pb.Note(text=",".join(texts))
        return pb.Note(text=request.text if isinstance(request, pb.Note) else request.name)

    async def stream(request: Any, _context: Any) -> AsyncIterator[Any]:
        if hasattr(request, "__aiter__"):
            async for note in request:
                yield note
        else:
            for number in range(3):
                yield pb.Note(text=f"{request.text}{number}")

    return Behaviors(unary, stream)


def _servicer(stubs: Stubs, behaviors: Behaviors) -> Any:
    class Servicer(stubs.grpc.KitTestServiceServicer):  # type: ignore[misc, name-defined]
        async def Say(self, request: Any, context: Any) -> Any:  # noqa: N802  # the RPC's name
            behaviors.seen.append(request)
            return await behaviors.unary(request, context)

        Need = Change = Greet = Peer = Say

        async def Collect(self, request: Any, context: Any) -> Any:  # noqa: N802  # the RPC's name
            return await behaviors.unary(request, context)

        async def Count(self, request: Any, context: Any) -> Any:  # noqa: N802  # the RPC's name
            try:
                async for note in behaviors.stream(request, context):
                    yield note
            finally:
                behaviors.ended.set()

        Chat = Count

    return Servicer()
