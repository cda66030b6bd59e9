"""One suite for all adapters: each host starts what a test asks for, and ends it afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import ImageNotFound

from services.kit.pythons import ask, find_pythons
from services.runner.domain.limits import Limits, Tier
from services.runner.gateways.docker.host import DockerHost, DockerSettings
from services.runner.gateways.sandbox.bare import BareHost
from services.runner.gateways.sandbox.bubblewrap import BubblewrapHost, find_bubblewrap
from services.runner.gateways.sandbox.cgroups import CgroupHost
from services.runner.gateways.sandbox.groups import ProcessGroups
from services.runner.gateways.sandbox.interpreters import prepare_interpreters
from services.runner.gateways.sandbox.landlock import LandlockHost
from services.runner.gateways.sandbox.port import Interpreter, Sandbox, SandboxHost, SandboxSpec
from tests.integration.runner.conftest import Box, load_header

IMAGE = "qflow-ci/debian:bookworm"  # .ci/base-image makes it
GVISOR = "runsc"  # as .ci/docker names it
_IMAGE_PYTHON = "3.11"
ADAPTERS = (
    "process",
    "landlock",
    "sandbox",
    pytest.param("docker", marks=pytest.mark.docker),
    pytest.param("gvisor", marks=pytest.mark.docker),
)


@pytest.fixture(scope="session")
def short_home() -> Iterator[Path]:
    """Give a home that every user may pass through, as /opt or /var are: pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="qfc-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def interpreters(short_home: Path) -> dict[str, Interpreter]:
    return prepare_interpreters(find_pythons().values(), short_home / "agent")


@pytest.fixture(scope="session")
def cgroups(short_home: Path) -> Iterator[CgroupHost | None]:
    found = CgroupHost.detect(short_home)
    yield found
    if found is not None:
        found.close()


@pytest.fixture
async def host(
    request: pytest.FixtureRequest,
    short_home: Path,
    cgroups: CgroupHost | None,
    interpreters: dict[str, Interpreter],
) -> AsyncIterator[SandboxHost]:
    """The adapter that the test is run with."""
    match request.param:
        case "process":
            yield BareHost(cgroups=cgroups)
        case "landlock":
            groups = ProcessGroups(short_home / "groups")
            yield LandlockHost(short_home / "boxes", cgroups=cgroups, groups=groups)
        case "sandbox":
            program = find_bubblewrap()
            assert program is not None, "no bubblewrap: run `make setup`"
            yield BubblewrapHost(program, cgroups=cgroups)
        case name:
            runtime = GVISOR if name == "gvisor" else ""
            docker_host = await open_docker(interpreters, short_home, runtime=runtime)
            yield docker_host
            await docker_host.close()


async def open_docker(
    interpreters: dict[str, Interpreter], home: Path, *, runtime: str = ""
) -> DockerHost:
    client = docker.from_env()
    try:
        client.images.get(IMAGE)
        if runtime and runtime not in client.info()["Runtimes"]:
            without_gvisor()
    except ImageNotFound:
        pytest.fail(f"the daemon has no image {IMAGE}: run .ci/base-image")
    finally:
        client.close()
    wanted = {_IMAGE_PYTHON: interpreters[_IMAGE_PYTHON]}
    return await DockerHost.open(DockerSettings(image=IMAGE, runtime=runtime), wanted, home)


def without_gvisor() -> None:
    """Skip, or fail where the machine was prepared for it."""
    text = f"the Docker daemon has no runtime {GVISOR}: .ci/docker starts one that has"
    if os.environ.get("QFLOW_REQUIRE_GVISOR"):
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture
def python(
    host: SandboxHost, short_home: Path, interpreters: dict[str, Interpreter]
) -> Interpreter:
    """A Python that the adapter can run: for T1 under root, one that every user may enter."""
    if isinstance(host, DockerHost):
        return interpreters[_IMAGE_PYTHON]
    if host.tier is not Tier.T1:
        return interpreters[max(interpreters, key=lambda version: int(version.split(".")[1]))]
    system = ask(Path("/usr/bin/python3"))
    if system is None:
        pytest.skip("the system has no Python of its own")
    return prepare_interpreters([system], short_home / "agent")[system.version]


Start = Callable[..., Awaitable[Box]]


@pytest.fixture
async def start(host: SandboxHost, python: Interpreter) -> AsyncIterator[Start]:
    """`await start(code, inputs={"x": type})` gives a Box."""
    started: list[Sandbox] = []

    async def starting(
        code: str,
        *,
        inputs: dict[str, Any] | None = None,
        limits: Limits | None = None,
        binds: Sequence[tuple[Path, str]] = (),
        environment: Path | None = None,
        load: bool = True,
    ) -> Box:
        sandbox = await host.start(
            SandboxSpec(
                sandbox_id=uuid.uuid4(),
                python=python.executable,
                prefix=python.prefix,
                agent=python.agent,
                environment=environment,
                limits=limits or Limits(),
                binds=binds,
            )
        )
        started.append(sandbox)
        if not load:
            return Box(sandbox)
        header = load_header(code, inputs) | {"env": sandbox.environment_path}
        reply = await sandbox.request(header)
        assert "loaded" == reply.header["op"], reply.header
        return Box(sandbox)

    yield starting
    for sandbox in started:
        await sandbox.kill()
