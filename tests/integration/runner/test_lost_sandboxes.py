"""Sandboxes that somebody ends by hand, and a daemon that goes away and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from services.runner.domain.limits import Limits
from services.runner.gateways.docker.host import DockerHost, DockerMissing, DockerSettings
from services.runner.gateways.sandbox.port import Interpreter, SandboxDied, SandboxSpec
from tests.integration.conformance.conftest import (
    IMAGE,
    interpreters,
    short_home,
)
from tests.integration.conformance.test_adapters import until as soon
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.conftest import Box, load_header
from tests.integration.runner.test_attach import attached, run, single, until

__all__ = ["interpreters", "orchestra", "short_home"]

_HELD = """
import os, time
def main(x: int) -> int:
    if os.environ["QFLOW_ATTEMPT"] == "1":
        time.sleep(600)
    return x + 1
"""
_ONCE_MORE = {"max_retries": 1, "initial_delay_ms": 1, "max_delay_ms": 1, "jitter": 0.0}
_THERE = "SELECT container_id FROM containers WHERE status = 'running' AND container_id <> ''"


async def ended_by_hand(orchestra: Orchestra, workflow: str) -> Any:
    """Start a run, end the sandbox of its first attempt, and give the run when it is over."""
    running = asyncio.create_task(run(orchestra, workflow))
    await until(orchestra, _THERE)
    [(name,)] = orchestra.rows(_THERE)
    await asyncio.to_thread(_end_by_hand, str(name))
    return await running


def _end_by_hand(name: str) -> None:
    kind, _, told = name.partition(":")
    if kind == "docker":
        client = docker.from_env()
        client.containers.get(told).remove(force=True)
        client.close()
        return
    # os.walk passes over what other tests' sandboxes take away meanwhile; Path.rglob raises.
    for folder, _, files in os.walk("/sys/fs/cgroup"):
        if Path(folder).name != told or "cgroup.procs" not in files:
            continue
        for pid in Path(folder, "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def told_of(orchestra: Orchestra) -> list[tuple[object, ...]]:
    return orchestra.rows(
        "SELECT n.status, n.retry_count, n.delivery_count, a.error_type"
        "  FROM node_executions n JOIN node_attempts a ON a.node_execution_id = n.id"
    )


async def test_a_sandbox_that_is_killed_by_hand_fails_its_attempt_which_is_made_again(
    orchestra: Orchestra, cgroups: object
) -> None:
    """F32 for processes."""
    if cgroups is None:
        pytest.skip("no control groups here: nothing tells a sandbox's processes")
    workflow = single(orchestra, _HELD, retry=_ONCE_MORE)
    async with orchestra.running(), attached(orchestra):
        done = await ended_by_hand(orchestra, workflow)
    assert {"out": 2} == json.loads(done.output_json)
    assert [("completed", 1, 0, "exited")] == told_of(orchestra)


@pytest.mark.docker
async def test_a_container_that_is_removed_by_hand_fails_its_attempt_which_is_made_again(
    orchestra: Orchestra,
) -> None:
    """F32."""
    workflow = single(orchestra, _HELD, retry=_ONCE_MORE)
    env = {"QFLOW_MINIMUM_TIER": "T3", "QFLOW_DOCKER_IMAGE": IMAGE}
    env |= {name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ}
    async with orchestra.running(), attached(orchestra, **env):
        done = await ended_by_hand(orchestra, workflow)
    assert {"out": 2} == json.loads(done.output_json)
    assert [("completed", 1, 0, "exited")] == told_of(orchestra)


class Relay:
    """Stands before the daemon: as it goes away, hangs, and comes back."""

    def __init__(self, place: Path, daemon: str) -> None:
        self.place = place
        self._daemon = daemon
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.hangs = False

    async def up(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.place))

    async def down(self) -> None:
        """Close what listens and all that goes through it, as a daemon that ends does."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.close()
        self.place.unlink(missing_ok=True)
        if self._serving:
            await asyncio.wait(self._serving, timeout=5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            if self.hangs:
                await reader.read()
                return
            to_reader, to_writer = await asyncio.open_unix_connection(self._daemon)
            self._open.add(to_writer)
            ways = (self._copy(reader, to_writer), self._copy(to_reader, writer))
            await asyncio.gather(*ways, return_exceptions=True)
            self._open.discard(to_writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        writer.close()


async def opened(interpreters: dict[str, Interpreter], home: Path) -> DockerHost:
    """Open the daemon in threads alone: the relay is served by this loop."""
    wanted = {"3.11": interpreters["3.11"]}
    return await DockerHost.open(DockerSettings(image=IMAGE), wanted, home)


@pytest.fixture
async def relay(short_home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Relay]:
    daemon = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    relay = Relay(short_home / f"{uuid.uuid4().hex[:8]}.sock", daemon)
    await relay.up()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{relay.place}")
    yield relay
    await relay.down()


# The library leaves sockets open whose other end goes away in the middle of an answer.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.docker
async def test_what_runs_when_the_daemon_goes_away_goes_on_and_its_end_is_heard_of(
    relay: Relay, interpreters: dict[str, Interpreter], short_home: Path
) -> None:
    """F31: a call needs no daemon; what ends meanwhile is found; what starts meanwhile fails."""
    host = await opened(interpreters, short_home / "restarted")
    python = interpreters["3.11"]
    specs: Iterator[SandboxSpec] = (
        SandboxSpec(
            sandbox_id=uuid.uuid4(),
            python=python.executable,
            prefix=python.prefix,
            agent=python.agent,
            environment=None,
            limits=Limits(),
        )
        for _ in range(4)
    )
    code = "import os\ndef main(x):\n    return os._exit(3) if x else x\n"
    sandbox = await host.start(next(specs))
    try:
        loaded = await sandbox.request(load_header(code, {"x": {"t": "int"}}))
        assert "loaded" == loaded.header["op"]
        box = Box(sandbox)
        await relay.down()
        assert 0 == await box.value(x="0")
        with pytest.raises(SandboxDied, match="daemon"):
            await host.start(next(specs))
        ending = asyncio.create_task(box.call({"x": "1"}))
        await asyncio.sleep(0)
        await relay.up()
        with pytest.raises(SandboxDied, match="exit status 3"):
            async with asyncio.timeout(30):
                await ending
        again = await host.start(next(specs))
        assert {again.spec.sandbox_id} <= await host.living()
        await again.kill()
        await soon(lambda: not again.alive())
        async with asyncio.timeout(30):
            while await host.strays():  # noqa: ASYNC110 - the daemon removes what has ended
                await asyncio.sleep(0.05)
    finally:
        await sandbox.kill()
        await host.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.docker
async def test_a_container_hangs_on_no_network_that_could_be_pruned(
    relay: Relay, interpreters: dict[str, Interpreter], short_home: Path
) -> None:
    """F32: its way out, where it has one, is a socket that is handed out of it."""
    del relay  # the daemon is reached through it
    host = await opened(interpreters, short_home / "pruned")
    python = interpreters["3.11"]
    sandbox = await host.start(
        SandboxSpec(
            sandbox_id=uuid.uuid4(),
            python=python.executable,
            prefix=python.prefix,
            agent=python.agent,
            environment=None,
            limits=Limits(),
        )
    )

    def networks() -> set[str]:
        with contextlib.closing(docker.from_env()) as client:
            container = client.containers.get(sandbox.name.partition(":")[2])
            return set(container.attrs["NetworkSettings"]["Networks"])

    try:
        # Beside the loop, in which the relay works.
        assert await asyncio.to_thread(networks) <= {"none"}
    finally:
        await sandbox.kill()
        await host.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.docker
@pytest.mark.slow
async def test_a_daemon_that_takes_calls_and_answers_none_is_no_daemon(
    relay: Relay, interpreters: dict[str, Interpreter], short_home: Path
) -> None:
    """F31: a hung socket is told as a missing daemon, in bounded time."""
    relay.hangs = True
    with pytest.raises(DockerMissing, match="no Docker daemon responds"):
        async with asyncio.timeout(18):
            await opened(interpreters, short_home / "hung")
