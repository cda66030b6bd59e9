"""What sandboxes cost: a warm call against a bare one, a fork, a cold start; and containers."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.figures import figure
from services.kit.pythons import find_pythons
from services.runner.domain.limits import Limits
from services.runner.gateways.docker.host import DockerHost, DockerMissing, DockerSettings
from services.runner.gateways.sandbox.bare import BareHost
from services.runner.gateways.sandbox.bubblewrap import BubblewrapHost, find_bubblewrap
from services.runner.gateways.sandbox.cgroups import CgroupHost
from services.runner.gateways.sandbox.interpreters import prepare_interpreters
from services.runner.gateways.sandbox.port import (
    Interpreter,
    Sandbox,
    SandboxHost,
    SandboxSpec,
)

IMAGE: Final = "qflow-ci/debian:bookworm"  # .ci/base-image makes it
_PYTHON: Final = "3.11"  # the image's
_CALLS: Final = 400
_FORKS: Final = 200
_COLD: Final = 100
_COLD_CONTAINERS: Final = 12
_VERSION: Final = str(uuid.UUID(int=1))
_NODE: Final = {
    "code": "def main(x):\n    return x + 1\n",
    "main": "main",
    "inputs": [{"name": "x", "type": {"t": "int"}, "kind": "positional"}],
    "outputs": [{"name": "result", "type": {"t": "int"}}],
}


@contextmanager
def _machine() -> Iterator[tuple[Path, Interpreter, CgroupHost | None]]:
    """Give a home, an interpreter with its agent, and control groups where there are any."""
    home = Path(tempfile.mkdtemp(prefix="qfb-", dir="/tmp"))
    home.chmod(0o755)
    cgroups = CgroupHost.detect(home)
    try:
        found = prepare_interpreters(find_pythons().values(), home / "agent")
        yield home, found[_PYTHON], cgroups
    finally:
        if cgroups is not None:
            cgroups.close()
        shutil.rmtree(home, ignore_errors=True)


async def _start(host: SandboxHost, python: Interpreter) -> Sandbox:
    return await host.start(
        SandboxSpec(
            sandbox_id=uuid.uuid4(),
            python=python.executable,
            prefix=python.prefix,
            agent=python.agent,
            environment=None,
            limits=Limits(),
        )
    )


async def _loaded(host: SandboxHost, python: Interpreter) -> Sandbox:
    sandbox = await _start(host, python)
    reply = await sandbox.request({"op": "load", **_NODE})
    assert reply.header["op"] == "loaded", reply.header
    return sandbox


async def _call_ms(sandbox: Sandbox, number: int, **more: Any) -> float:
    text = b"%d" % number
    header = {"op": "call", "id": number, "inputs": [["x", len(text), []]]}
    header |= {"output_bytes_max": 65536, "context": {}, **more}
    begin = time.perf_counter()
    sandbox.begin_output()
    reply = await sandbox.request(header, text)
    span = (time.perf_counter() - begin) * 1000
    assert reply.body == b"%d" % (number + 1), reply.header
    return span


def _sandboxes(cgroups: CgroupHost | None) -> BubblewrapHost:
    program = find_bubblewrap()
    assert program is not None, "no bubblewrap: run `make setup`"
    return BubblewrapHost(program, cgroups=cgroups)


async def _side_by_side(first: Sandbox, second: Sandbox) -> tuple[list[float], list[float]]:
    """Call both in turns, so that what else the machine does slows both."""
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(_CALLS):
        ours.append(await _call_ms(first, number))
        theirs.append(await _call_ms(second, number))
    warm = _CALLS // 10
    return ours[warm:], theirs[warm:]


async def warm_over_bare() -> dict[str, Any]:
    """How many times as long a warm call takes in a T2 sandbox as in a bare process."""
    with _machine() as (_, python, cgroups):
        host = _sandboxes(cgroups)
        boxed = await _loaded(host, python)
        bare = await _loaded(BareHost(cgroups=None), python)
        try:
            ours, theirs = await _side_by_side(boxed, bare)
        finally:
            await boxed.kill()
            await bare.kill()
    base = statistics.median(theirs)
    ratios = [each / base for each in ours]
    told = {"tier": host.tier.value, "boxed_ms": round(statistics.median(ours), 4)}
    return figure(ratios, "x", "lower", target=1.2, floor=1.0) | told | {"bare_ms": round(base, 4)}


async def fork() -> dict[str, Any]:
    """Milliseconds of a call in a fork of its own, within a T2 sandbox."""
    with _machine() as (_, python, cgroups):
        sandbox = await _start(_sandboxes(cgroups), python)
        try:
            header = {"op": "prepare", "version": _VERSION, "apart": "fork", **_NODE}
            reply = await sandbox.request(header)
            assert reply.header["apart"] == "fork", reply.header
            spans = [await _call_ms(sandbox, number, version=_VERSION) for number in range(_FORKS)][
                _FORKS // 10 :
            ]
        finally:
            await sandbox.kill()
    return figure(spans, "ms", "lower", target=3.0, floor=0.0)


async def cold_sandbox() -> dict[str, Any]:
    """Milliseconds from nothing to a T2 sandbox with a node loaded; the 99th of a hundred."""
    spans: list[float] = []
    bare: list[float] = []
    with _machine() as (_, python, cgroups):
        for _ in range(_COLD):
            spans += await _cold_ms(_sandboxes(cgroups), python, 1)
            bare += await _cold_ms(BareHost(cgroups=None), python, 1)
    # The floor is the same without any wall: a Python that starts and imports what an agent needs.
    floor = statistics.median(bare)
    return figure(spans, "ms", "lower", target=60.0, floor=floor, value=_p99(spans)) | {
        "median": round(statistics.median(spans), 3)
    }


async def _cold_ms(host: SandboxHost, python: Interpreter, times: int) -> list[float]:
    spans = []
    for _ in range(times):
        begin = time.perf_counter()
        sandbox = await _loaded(host, python)
        spans.append((time.perf_counter() - begin) * 1000)
        await sandbox.kill()
    return spans


def _p99(spans: list[float]) -> float:
    return sorted(spans)[int(len(spans) * 0.99) - 1]


async def warm_docker() -> dict[str, Any]:
    """Milliseconds that a warm call in a container takes over one in a T2 sandbox."""
    with _machine() as (home, python, cgroups):
        try:
            host = await _docker(home, python)
        except DockerMissing as missing:
            return {"skipped": str(missing)}
        contained = await _loaded(host, python)
        boxed = await _loaded(_sandboxes(cgroups), python)
        try:
            ours, theirs = await _side_by_side(contained, boxed)
        finally:
            await contained.kill()
            await boxed.kill()
            await host.close()
    base = statistics.median(theirs)
    spans = [each - base for each in ours]
    return figure(spans, "ms", "lower", target=0.5, floor=0.0) | {
        "contained_ms": round(statistics.median(ours), 4),
        "boxed_ms": round(base, 4),
    }


async def cold_docker() -> dict[str, Any]:
    """Milliseconds from nothing to a container with a node loaded, against `docker run`."""
    with _machine() as (home, python, _):
        try:
            host = await _docker(home, python)
        except DockerMissing as missing:
            return {"skipped": str(missing)}
        ours: list[float] = []
        theirs: list[float] = []
        try:
            for _ in range(_COLD_CONTAINERS):
                ours += await _cold_ms(host, python, 1)
                theirs.append(_docker_run_ms())
        finally:
            await host.close()
    floor = statistics.median(theirs)
    return figure(ours, "ms", "lower", target=1.2 * floor, floor=floor)


async def _docker(home: Path, python: Interpreter) -> DockerHost:
    return await DockerHost.open(DockerSettings(image=IMAGE), {_PYTHON: python}, home)


def _docker_run_ms() -> float:
    command = ["docker", "run", "--rm", "--network", "none", "--read-only", IMAGE]
    begin = time.perf_counter()
    subprocess.run([*command, f"python{_PYTHON}", "-I", "-S", "-c", "pass"], check=True)
    return (time.perf_counter() - begin) * 1000
