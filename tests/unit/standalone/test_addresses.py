from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from services.standalone import addresses
from services.standalone.process import StandaloneError

SOCKETS = Path("/tmp/s")


def _free_base() -> int:
    """Find ports in a row that nobody has, below those that the kernel gives out."""
    for base in random.sample(range(10_000, 32_000, 20), 100):
        with ExitStack() as stack:
            try:
                for port in range(base + 1, base + 15):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise AssertionError("no ports in a row are free")


def test_ports_follow_the_base_in_the_order_of_the_services() -> None:
    base = _free_base()
    planned = addresses.plan({"QFLOW_PORT_BASE": f"{base}"}, ports="fixed", sockets=SOCKETS)
    assert planned.listen == {
        "registry": f"127.0.0.1:{base + 1}",
        "orchestrator": f"127.0.0.1:{base + 2}",
        "runner": f"127.0.0.1:{base + 3}",
        "telemetry": f"127.0.0.1:{base + 4}",
    }
    assert planned.attach == "unix:/tmp/s/attach.sock"
    assert planned.metrics == {
        "registry": f"127.0.0.1:{base + 11}",
        "orchestrator": f"127.0.0.1:{base + 12}",
        "runner": f"127.0.0.1:{base + 13}",
        "telemetry": f"127.0.0.1:{base + 14}",
    }


def test_automatic_ports_are_different_free_ones() -> None:
    planned = addresses.plan({}, ports="auto", sockets=SOCKETS)
    assert len({*planned.listen.values(), *planned.metrics.values()}) == 8


def test_a_client_reaches_a_service_that_listens_everywhere_by_loopback() -> None:
    port = _free_base() + 1
    told = {"QFLOW_REGISTRY_LISTEN": f"0.0.0.0:{port}"}
    planned = addresses.plan(told, ports="auto", sockets=SOCKETS)
    assert planned.client("registry") == f"127.0.0.1:{port}"
    assert planned.env("registry")["QFLOW_REGISTRY_LISTEN"] == f"0.0.0.0:{port}"
    assert planned.env("runner")["QFLOW_REGISTRY_ADDRESS"] == f"127.0.0.1:{port}"


def test_a_service_is_told_its_own_door_only() -> None:
    env = addresses.plan({}, ports="auto", sockets=SOCKETS).env("runner")
    assert [name for name in env if name.endswith("_LISTEN")] == [
        "QFLOW_RUNNER_LISTEN",
        "QFLOW_RUNNER_METRICS_LISTEN",
    ]


def test_a_taken_port_is_named_with_the_setting_that_moves_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(StandaloneError) as refused:
            addresses.plan(
                {"QFLOW_TELEMETRY_LISTEN": f"127.0.0.1:{port}"}, ports="auto", sockets=SOCKETS
            )
    assert f"port {port} is taken" in str(refused.value)
    assert "QFLOW_TELEMETRY_LISTEN" in str(refused.value)
    assert "QFLOW_PORT_BASE" in str(refused.value)


def test_a_listen_host_that_does_not_resolve_is_refused_by_name() -> None:
    """F34."""
    with pytest.raises(StandaloneError, match=r"QFLOW_RUNNER_LISTEN: .*nowhere\.invalid.*DNS"):
        addresses.plan(
            {"QFLOW_RUNNER_LISTEN": "nowhere.invalid:7103"}, ports="auto", sockets=SOCKETS
        )


@pytest.mark.parametrize("text", ["7101", "localhost:", "localhost:x", ":7101", "localhost:70000"])
def test_an_address_that_is_none_is_refused_with_its_form(text: str) -> None:
    with pytest.raises(StandaloneError, match="must be host:port or unix:path"):
        addresses.plan({"QFLOW_REGISTRY_LISTEN": text}, ports="auto", sockets=SOCKETS)


@pytest.mark.parametrize("text", ["0", "65532", "many", "-1"])
def test_a_port_base_without_room_for_four_ports_is_refused(text: str) -> None:
    with pytest.raises(StandaloneError, match="QFLOW_PORT_BASE must be"):
        addresses.plan({"QFLOW_PORT_BASE": text}, ports="fixed", sockets=SOCKETS)
