"""A suite that speaks TLS: with its users, and between its services."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace
from typing import Any

import grpc
import pytest
import qflow

from tests.support.client import Step, connected
from tests.support.suite import Suite
from tests.support.suite_fixtures import SuiteFactory

ADD = "def add(x: int, y: int) -> int:\n    return x + y\n"


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


async def added(suite: Suite) -> str:
    """Store a node and run it: the registry asks the runner, the runner has attached."""
    async with connected(suite) as client:
        node = await client.create_node("add", ADD)
        workflow = await client.create_workflow(
            "add",
            [Step("a", node, literals={"y": 2})],
            [".x > a.x"],
            inputs={"x": "int"},
            outputs=["sum = a.result"],
        )
        execution = await client.run(workflow, {"x": 40})
    return str(execution.output_json)


@pytest.mark.slow
async def test_a_suite_speaks_tls_and_takes_renewed_certificates_while_it_runs(
    suite_factory: SuiteFactory,
) -> None:
    """X48: services prove to each other who they are, here over TCP."""
    attach, internal = free_ports(2)
    suite = suite_factory(
        env={
            "QFLOW_TLS": "1",
            "QFLOW_ORCHESTRATOR_ATTACH_LISTEN": f"127.0.0.1:{attach}",
            "QFLOW_RUNNER_INTERNAL_LISTEN": f"127.0.0.1:{internal}",
        }
    )
    assert '{"sum":42}' == await added(suite)
    for address in (*suite.endpoints.values(), f"127.0.0.1:{internal}"):
        if not address.startswith("/"):
            assert await refuses_plain_text(address)
    async with qflow.connect(home=str(suite.home.root)) as client:
        assert "owner@localhost" == (await client.caller()).email
        plain = replace(client.context, tls=None)
    async with qflow.Client(plain) as stranger:
        with pytest.raises(qflow.UnavailableError):
            await stranger.caller()
    before = suite.marks()
    assert "certificates for registry, orchestrator, runner, telemetry" in renewed(suite)
    assert '{"sum":42}' == await added(suite)
    assert before == suite.marks()
    # One that starts anew shows the new certificate to those that were there before.
    suite.wait_restarted("runner", suite.kill_service("runner"))
    assert '{"sum":42}' == await added(suite)
    assert "certificate_renewed" in suite.log("registry")


def renewed(suite: Suite) -> str:
    """What an operator is told who has certificates made anew."""
    command = [sys.executable, "-m", "services.standalone", "certificates", "--renew"]
    home = {"QFLOW_HOME": str(suite.home.root)}
    return subprocess.run(command, env=home, capture_output=True, text=True, check=True).stdout


async def refuses_plain_text(address: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=5)
    return grpc.StatusCode.UNAVAILABLE == caught.value.code()
