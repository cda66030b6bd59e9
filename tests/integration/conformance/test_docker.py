"""What is Docker's alone: what is missing is told, what is left is removed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import uuid
from pathlib import Path

import docker
import pytest

from services.runner.domain.limits import Limits
from services.runner.gateways.docker.host import DockerHost, DockerMissing, DockerSettings
from services.runner.gateways.docker.options import HOME_LABEL, SANDBOX_LABEL
from services.runner.gateways.sandbox.exchange import make_exchange
from services.runner.gateways.sandbox.port import Interpreter, SandboxSpec
from tests.integration.conformance.conftest import GVISOR, IMAGE, open_docker
from tests.integration.runner.conftest import load_header

_LEAVES = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.integration.conformance.conftest import open_docker
from services.runner.domain.limits import Limits
from services.runner.gateways.sandbox.interpreters import prepare_interpreters
from services.runner.gateways.sandbox.port import SandboxSpec
from services.kit.pythons import find_pythons
import uuid

async def main():
    home = Path(sys.argv[1])
    found = prepare_interpreters(find_pythons().values(), home / "agent")
    host = await open_docker(found, home)
    python = found["3.11"]
    spec = SandboxSpec(sandbox_id=uuid.UUID(sys.argv[2]), python=python.executable,
        prefix=python.prefix, agent=python.agent, environment=None, limits=Limits())
    await host.start(spec)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_without_a_daemon_it_says_what_to_install(
    interpreters: dict[str, Interpreter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(DockerMissing, match="install docker"):
        await DockerHost.open(DockerSettings(image=IMAGE), interpreters, tmp_path)
    gc.collect()  # a socket that was left open would be told of here


@pytest.mark.docker
async def test_without_its_runtime_or_image_it_says_which(
    interpreters: dict[str, Interpreter], tmp_path: Path
) -> None:
    with pytest.raises(DockerMissing, match="no runtime runsc-of-tests"):
        await DockerHost.open(
            DockerSettings(image=IMAGE, runtime="runsc-of-tests"), interpreters, tmp_path
        )
    with pytest.raises(DockerMissing, match="no image qflow-tests/none"):
        await DockerHost.open(
            DockerSettings(image="qflow-tests/none:{version}"), interpreters, tmp_path
        )


_GIVES_A_FILE = """
from pathlib import Path
def main(x):
    Path("/tmp/given").write_text("x")
    return Path("/tmp/given")
"""


@pytest.mark.docker
async def test_a_kernel_that_lets_no_open_file_out_is_told_as_the_nodes_error(
    interpreters: dict[str, Interpreter], short_home: Path
) -> None:
    """And the sandbox serves the next call."""
    host = await open_docker(interpreters, short_home, runtime=GVISOR)
    python, sandbox_id = interpreters["3.11"], uuid.uuid4()
    sandbox = await host.start(
        SandboxSpec(
            sandbox_id=sandbox_id,
            python=python.executable,
            prefix=python.prefix,
            agent=python.agent,
            environment=None,
            limits=Limits(),
            exchange=make_exchange(short_home / "exchange", sandbox_id),
        )
    )
    load = load_header(_GIVES_A_FILE, {"x": {"t": "int"}}, {"result": {"t": "file"}})
    call = {"op": "call", "id": 1, "output_bytes_max": 65536, "file_ids": [str(uuid.uuid4())]}
    call |= {"inputs": [["x", 1, []]]}
    try:
        loaded = await sandbox.request(load)
        assert "loaded" == loaded.header["op"], loaded.header
        for _ in range(2):
            reply = await sandbox.request(call, b"1", descriptors_max=1)
            assert "serialization_error" == reply.header["error"]["type"]
            assert "files cannot leave this sandbox" in reply.header["error"]["message"]
            assert () == tuple(reply.descriptors)
    finally:
        await sandbox.kill()
        await host.close()


@pytest.mark.docker
async def test_what_a_killed_runner_left_is_removed_when_the_next_one_starts(
    interpreters: dict[str, Interpreter], short_home: Path
) -> None:
    """G5, R30."""
    name = str(uuid.uuid4())
    home = short_home / "left"
    home.mkdir()
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(  # noqa: ASYNC221 - nothing else goes on
        [sys.executable, "-c", _LEAVES, str(home), name], env=env, check=False, timeout=60
    )
    assert -9 == ended.returncode
    client = docker.from_env()
    try:
        label: dict[str, str | list[str] | bool] = {"label": f"{SANDBOX_LABEL}={name}"}
        # Its agent may have ended already, as nobody is at the other end: it is there anyway.
        [left] = client.containers.list(all=True, filters=label)
        assert left.labels[HOME_LABEL] in str(left.name)
        host = await open_docker(interpreters, home)
        try:
            assert [] == client.containers.list(all=True, filters=label)
            assert set() == await host.living() == await host.strays()
        finally:
            await host.close()
    finally:
        client.close()
