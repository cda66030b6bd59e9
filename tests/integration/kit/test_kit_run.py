"""A process of the suite: how it starts, drains and fails, seen from outside."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

TINY = Path(__file__).with_name("tiny_service.py")
ROOT = Path(__file__).parents[3]


@asynccontextmanager
async def tiny(limits: str = "", **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start it; `limits` are the shell's words for what it may have."""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "clients/python")))
    shell = ["sh", "-c", f'ulimit {limits} && exec "$@"', "sh"] if limits else []
    process = await asyncio.create_subprocess_exec(
        *shell,
        sys.executable,
        str(TINY),
        env={**os.environ, "PYTHONPATH": paths, "TINY_DATABASE_URL": "postgresql://x@/x", **env},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def events_until(process: asyncio.subprocess.Process, event: str) -> list[dict[str, Any]]:
    """Read log lines until one is this event; until the end of output when it is empty."""
    assert process.stdout is not None
    lines = []
    while raw := await process.stdout.readline():
        lines.append(json.loads(raw))
        if lines[-1]["event"] == event:
            break
    return lines


def names(lines: list[dict[str, Any]]) -> list[str]:
    return [line["event"] for line in lines]


CRASH = """
import structlog
from services.kit import log

def fail(token):
    password = "canary-in-a-local"
    raise RuntimeError("it failed")

log.configure("tiny")
try:
    fail("canary-in-an-argument")
except RuntimeError:
    structlog.get_logger().exception("call_crashed")
"""


def test_no_local_variable_is_shown_on_a_terminal() -> None:
    """I37, X8."""
    reader, terminal = pty.openpty()
    subprocess.run([sys.executable, "-c", CRASH], stdout=terminal, cwd=ROOT, check=True)
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # how a terminal says that nobody writes any more
        while part := os.read(reader, 65536):
            shown += part
    os.close(reader)
    assert b"call_crashed" in shown
    assert b"it failed" in shown
    assert b"canary" not in shown


async def test_a_service_without_files_left_goes_on_for_those_it_has_and_takes_others_later() -> (
    None
):
    """F41, X50: whoever opens all the connections that there are takes nobody's."""
    async with tiny(limits="-n 256") as process:
        [*_, started] = await events_until(process, "service_started")
        [address] = started["addresses"]
        host, _, port = address.rpartition(":")
        check = health_pb2.HealthCheckRequest()
        async with grpc.aio.insecure_channel(address) as channel:
            known: Any = health_pb2_grpc.HealthStub(channel)
            await known.Check(check, timeout=10)
            taken = [await asyncio.open_connection(host, int(port)) for _ in range(400)]
            for _ in range(5):
                await known.Check(check, timeout=10)
            assert process.returncode is None
            for _, writer in taken:
                writer.close()
            async with grpc.aio.insecure_channel(address) as other:
                new: Any = health_pb2_grpc.HealthStub(other)
                await new.Check(check, timeout=20, wait_for_ready=True)
            await known.Check(check, timeout=10)
        process.send_signal(signal.SIGTERM)
        await events_until(process, "")
        assert await process.wait() == 0


async def test_a_service_that_can_open_next_to_nothing_ends_and_does_not_hang() -> None:
    """F41."""
    async with tiny(limits="-n 12") as process:
        async with asyncio.timeout(30):
            assert await process.wait() != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_the_service_and_ends_it_with_success(
    number: signal.Signals,
) -> None:
    """CP27."""
    async with tiny() as process:
        [*_, started] = await events_until(process, "service_started")
        [address] = started["addresses"]
        channel = grpc.aio.insecure_channel(address)
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(number)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        ends = names(await events_until(process, ""))
        await channel.close()
        assert [e for e in ends if e != "loop_ended"][:2] == ["service_draining", "drained"]
        assert ends[-2:] == ["closed", "service_stopped"]
        assert "loop_ended" in ends
        assert await process.wait() == 0


async def test_a_drain_that_fails_still_ends_the_service() -> None:
    async with tiny(TINY_DRAIN="fail") as process:
        await events_until(process, "service_started")
        process.terminate()
        assert "drain_failed" in names(await events_until(process, ""))
        assert await process.wait() == 0


async def test_what_cannot_be_closed_does_not_keep_the_service_alive() -> None:
    """CP27, F15."""
    async with tiny(TINY_CLOSE="hang") as process:
        await events_until(process, "service_started")
        process.terminate()
        assert "close_timed_out" in names(await events_until(process, ""))
        assert 0 == await process.wait()


async def test_a_loop_that_crashes_takes_the_process_down_loudly() -> None:
    async with tiny(TINY_LOOP="crash") as process:
        lines = await events_until(process, "")
        [failure] = [line for line in lines if line["event"] == "service_failed"]
        assert "ZeroDivisionError" in failure["exception"]
        assert await process.wait() == 1


async def test_a_start_that_waits_for_its_database_ends_at_once_when_told(tmp_path: Path) -> None:
    """F11, F20."""
    nobody = f"postgresql://nobody@/none?host={tmp_path}"
    async with tiny(TINY_POOL_MIN="1", TINY_DATABASE_URL=nobody) as process:
        await events_until(process, "database_awaited")
        process.terminate()
        assert ["start_given_up", "service_stopped"] == names(await events_until(process, ""))
        assert await process.wait() == 0


@pytest.mark.parametrize(
    ("env", "word"),
    [
        ({"QFLOW_TINY_LISTEN": "0.0.0.0:0"}, "plain text"),
        ({"QFLOW_TINY_LISTEN": "unix:/dev/null/sock"}, "cannot listen"),
        ({"QFLOW_TINY_LISTEN": "no-such-host.invalid:7"}, "plain text"),
        ({"QFLOW_REFLECTION": "perhaps"}, "QFLOW_REFLECTION"),
        ({"QFLOW_TLS_KEY_FILE": "/nowhere"}, "go together"),
    ],
)
async def test_a_wrong_setting_is_named_and_nothing_starts(env: dict[str, str], word: str) -> None:
    """F34."""
    async with tiny(**env) as process:
        lines = await events_until(process, "")
        [fault] = [line for line in lines if line["event"] == "service_misconfigured"]
        assert word in fault["fault"]
        assert await process.wait() == 2


@pytest.mark.parametrize("setting", ["QFLOW_TINY_LISTEN", "QFLOW_TINY_METRICS_LISTEN"])
async def test_a_service_whose_port_is_taken_never_joined(setting: str) -> None:
    """Others would reckon with it, and give it of their work."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        async with tiny(**{setting: f"127.0.0.1:{other.getsockname()[1]}"}) as process:
            lines = await events_until(process, "")
            assert 2 == await process.wait()
    assert "service_misconfigured" in names(lines)
    assert "joined" not in names(lines)


async def test_a_start_that_waits_to_join_ends_at_once_when_told() -> None:
    """F20: as one does that waits for its database; it is let go of in order."""
    async with tiny(TINY_JOIN="wait") as process:
        await events_until(process, "joined")
        process.terminate()
        told = names(await events_until(process, ""))
        assert ["start_given_up", "closed", "service_stopped"] == told
        assert 0 == await process.wait()


async def test_reflection_can_be_switched_off() -> None:
    async with tiny(QFLOW_REFLECTION="0") as process:
        [*_, started] = await events_until(process, "service_started")
        channel: Any = grpc.aio.insecure_channel(started["addresses"][0])
        async with channel:
            for version in ("v1", "v1alpha"):
                path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(path)(b"", timeout=5)
                assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_health_tells_of_what_a_service_leans_on_when_it_is_asked(tmp_path: Path) -> None:
    """F11, F13: what is away stops those who ask for it, and not the process that takes calls."""
    leaned_on = tmp_path / "leaned-on"
    leaned_on.touch()
    async with tiny(TINY_FILE=str(leaned_on)) as process:
        [*_, started] = await events_until(process, "service_started")
        [address] = started["addresses"]
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service="qflow.tiny"))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            leaned_on.unlink()
            async with asyncio.timeout(30):
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            # Without the database it may still do something useful.
            assert {
                "": True,
                "qflow.tiny": False,
                "qflow.tiny.file": False,
                "qflow.tiny.postgres": False,
            } == {name: await _serves(stub, name) for name in _NAMES}
            leaned_on.touch()
            async with asyncio.timeout(30):
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
                await _serves(stub, "qflow.nobody")
        process.send_signal(signal.SIGTERM)
        await events_until(process, "")
        assert await process.wait() == 0


_NAMES = ("", "qflow.tiny", "qflow.tiny.file", "qflow.tiny.postgres")


async def _serves(stub: Any, name: str) -> bool:
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
