"""People who use a running suite, and what servers answer them."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from qflow.registry.v1 import session_service_pb2 as sessions_pb
from qflow.registry.v1.session_service_pb2_grpc import SessionServiceStub

from migrations.logins import login_urls
from tests.support import commands
from tests.support.client import Client, connected
from tests.support.suite import Suite

Qflow = Callable[..., subprocess.CompletedProcess[str]]


class Refusal:
    """How a call was refused: its code, its reason and the fields that were at fault."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.message = error.details() or ""
        self.raw = b""
        self.reason = ""
        self.fields: dict[str, str] = {}
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin" and isinstance(value, bytes):
                self.raw = value
        for detail in status_pb2.Status.FromString(self.raw).details:
            info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                self.reason = info.reason
            elif detail.Unpack(request):
                self.fields |= {each.field: each.description for each in request.field_violations}


async def refusal(call: Awaitable[Any]) -> Refusal:
    """Make a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return Refusal(refused.value)


@pytest.fixture
async def client(suite: Suite) -> AsyncIterator[Client]:
    """Talk to the suite as its owner."""
    async with connected(suite) as one:
        yield one


@pytest.fixture(scope="session")
def stranger_credentials(suite: Suite) -> tuple[str, str]:
    """Another user, made as an operator makes one: email and password."""
    email, password = f"zoë-{uuid.uuid4().hex[:8]}@example.org", "a-long-enough-password"
    url = login_urls(suite.database_url, suite.home.root)["qflow_registry_auth"]
    command = [sys.executable, "-m", "services.registry", "create-user", email]
    made = subprocess.run(
        [*command, "--password", password],
        env={**os.environ, "QFLOW_REGISTRY_AUTH_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert uuid.UUID(made.stdout.splitlines()[-1])
    return email, password


async def sign_in(suite: Suite, email: str, password: str) -> sessions_pb.SignInResponse:
    """Trade a password for a token, as anybody may."""
    async with grpc.aio.insecure_channel(suite.endpoints["registry"]) as anybody:
        return await SessionServiceStub(anybody).SignIn(
            sessions_pb.SignInRequest(email=email, password=password), timeout=15
        )


@pytest.fixture
async def stranger(suite: Suite, stranger_credentials: tuple[str, str]) -> AsyncIterator[Client]:
    """Talk to the suite as the other user."""
    token = (await sign_in(suite, *stranger_credentials)).token
    async with (
        suite.channel("registry", token=token) as registry,
        suite.channel("orchestrator", token=token) as orchestrator,
    ):
        yield Client(registry, orchestrator)


@pytest.fixture
def env(suite: Suite, tmp_path: Path) -> dict[str, str]:
    kept = {name: each for name, each in os.environ.items() if not name.startswith("QFLOW_")}
    return {**kept, "HOME": str(tmp_path), "QFLOW_HOME": str(suite.home.root)}


@pytest.fixture
def qflow(env: dict[str, str]) -> Qflow:
    def called(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return commands.qflow(arguments, {**env, **more})

    return called
