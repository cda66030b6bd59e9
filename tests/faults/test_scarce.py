"""F41: few descriptors, threads or little memory."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import psutil
import pytest

from services.kit.rpc.channel import open_channel
from tests.support.suite import Suite
from tests.support.suite_fixtures import SuiteFactory

# A service, and a call that asks the database.
_ASKS = {
    "registry": "/qflow.registry.v1.SessionService/GetCaller",
    "orchestrator": "/qflow.orchestrator.v1.ExecutionService/ListExecutions",
    "runner": "/qflow.runner.v1.FileService/ListFiles",
    "telemetry": "/qflow.telemetry.v1.TelemetryService/ListErrors",
}
_SHED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
_CALL_S = 5.0
_AGAIN_S = 30.0


@pytest.mark.parametrize("service", _ASKS)
@pytest.mark.parametrize(
    ("limit", "most", "told"),
    [
        (resource.RLIMIT_NOFILE, 64, "64 descriptors (ulimit -n); a service needs at least 256"),
        (resource.RLIMIT_AS, 1536 << 20, "1536 MiB of addresses (ulimit -v)"),
    ],
    ids=["descriptors", "memory"],
)
def test_a_service_that_may_have_too_little_says_so_and_does_not_start(
    service: str, limit: int, most: int, told: str
) -> None:
    """F41."""
    program = f"""
import resource, runpy
resource.setrlimit({limit}, ({most}, {most}))
runpy.run_module("services.{service}", run_name="__main__")
"""
    begun = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (2, True) == (begun.returncode, told in begun.stdout + begun.stderr), begun


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives up being root")
def test_a_service_that_may_have_few_threads_says_so_and_does_not_start() -> None:
    """F41: root is not held to that number, others are."""
    program = """
import os, resource
from services.kit import env, machine
resource.setrlimit(resource.RLIMIT_NPROC, (20, 20))
machine.claim()
os.setuid(65534)
try:
    machine.claim()
except env.EnvError as error:
    print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert "20 threads (ulimit -u); a service needs at least 64" in told.stdout


@contextmanager
def _crowd(address: str, count: int) -> Iterator[None]:
    """Connections that say nothing; as many as come about."""
    host, port = address.rsplit(":", 1)
    with ExitStack() as held:
        for _ in range(count):
            sock = held.enter_context(socket.socket())
            sock.settimeout(0.2)
            sock.connect_ex((host, int(port)))
        yield


async def _code(channel: grpc.aio.Channel, path: str) -> grpc.StatusCode:
    method: Any = channel.unary_unary(path)
    call = method(b"", timeout=_CALL_S)
    try:
        async with asyncio.timeout(2 * _CALL_S):
            await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_a_service_without_descriptors_sheds_what_comes_and_then_serves_as_before(
    suite_factory: SuiteFactory,
) -> None:
    """F41, I39: no call hangs, none fails as if it were at fault, and nobody dies of it."""
    suite = suite_factory()
    marks = suite.marks()
    for service, path in _ASKS.items():
        await _starve(suite, service, path)
        assert marks[service] == suite.marks()[service]
    assert marks == suite.marks()


async def _starve(suite: Suite, service: str, path: str) -> None:
    process = psutil.Process(suite.marks()[service].pid)
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    address = suite.endpoints[service]
    async with suite.channel(service) as known:
        assert grpc.StatusCode.OK == await _code(known, path), service
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + 2, before[1]))
        try:
            with _crowd(address, 40):
                codes = await asyncio.gather(*(_code(known, path) for _ in range(30)))
                async with open_channel(address, suite.owner_token) as late:
                    codes.append(await _code(late, path))
        finally:
            process.rlimit(psutil.RLIMIT_NOFILE, before)
        assert set(codes) <= _SHED, (service, codes)
    async with asyncio.timeout(_AGAIN_S), suite.channel(service) as fresh:
        while grpc.StatusCode.OK != await _code(fresh, path):  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.1)
