"""`deploy/compose.yaml` on a real daemon: brought up, used, hurt, taken down, and nothing lost."""

from __future__ import annotations

import asyncio
import io
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import docker
import pytest
from docker.models.containers import Container
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as executions_pb
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub
from rich.console import Console

from examples import demo
from services.standalone.addresses import SERVICES
from services.standalone.probe import serving
from services.standalone.reach import open_local
from tests.clients.builds import generate, insist
from tests.docker import stand_ins
from tests.docker.conftest import CHECKOUT, reaching_the_index
from tests.support.tools import tool

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]

_FILE: Final = CHECKOUT / "deploy" / "compose.yaml"
_READY_S: Final = 240.0
_RESULT: Final = "It rained on 34.6 % of the days."


@dataclass(frozen=True, slots=True)
class Project:
    """One deployment, by its name; every command is the one that an operator gives."""

    name: str
    files: tuple[Path, ...]
    env: dict[str, str]
    endpoints: dict[str, str]
    gateway: str
    daemon: docker.DockerClient

    def compose(self, *arguments: str) -> str:
        files = [part for each in self.files for part in ("--file", str(each))]
        done = subprocess.run(
            [tool("docker-compose"), "--project-name", self.name, *files, *arguments],
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert 0 == done.returncode, done.stdout + done.stderr
        return done.stdout

    def container(self, service: str) -> Container:
        label = [f"com.docker.compose.project={self.name}", f"com.docker.compose.service={service}"]
        [found] = self.daemon.containers.list(all=True, filters={"label": label})
        return found

    def logs(self) -> str:
        label = f"com.docker.compose.project={self.name}"
        found = self.daemon.containers.list(all=True, filters={"label": label})
        return "\n".join(f"{c.name} {c.status}: {c.logs(tail=15).decode()}" for c in found)


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope="module")
def images(
    daemon: docker.DockerClient, base_image: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    base = reaching_the_index(daemon, base_image)
    tags = {name: f"qflow-test/{name}:latest" for name in SERVICES}
    for name, tag in tags.items():
        daemon.images.build(
            path=str(CHECKOUT),
            dockerfile="deploy/Dockerfile",
            buildargs={"BASE": base, "SERVICE": name},
            network_mode="host",
            tag=tag,
            forcerm=True,  # also what a failed build leaves
        )
    return {
        **tags,
        **stand_ins.build(daemon, tags["registry"]),
        "gateway": build_gateway(daemon, base_image, tmp_path_factory.mktemp("go")),
    }


def build_gateway(daemon: docker.DockerClient, base: str, folder: Path) -> str:
    """The gateway's own image, compiled within a Go image that is made here."""
    insist("go")
    generate("gateway")
    module = CHECKOUT / "deploy" / "gateway"
    subprocess.run(["go", "build", "-o", os.devnull, "."], cwd=module, check=True)
    tag = "qflow-test/gateway:latest"
    daemon.images.build(
        path=str(CHECKOUT),
        dockerfile="deploy/gateway/Dockerfile",
        buildargs={"GO_IMAGE": stand_ins.build_go(daemon, base, module=module, folder=folder)},
        network_mode="none",
        tag=tag,
        forcerm=True,
    )
    return tag


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the demo's one node with dependencies needs: containers may reach no package index."""
    folder = tmp_path_factory.mktemp("wheels")
    arguments = ["--only-binary", ":all:", "--no-deps", "--python-version", "3.11"]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", *arguments, "-d", folder, "numpy>=2,<3"],
        check=True,
    )
    for each in (folder, *folder.parents):
        if each.is_relative_to("/tmp/pytest-of-root"):
            each.chmod(0o755)
    return folder


@pytest.fixture
def project(
    daemon: docker.DockerClient, images: dict[str, str], wheels: Path, tmp_path: Path
) -> Iterator[Project]:
    override = tmp_path / "override.yaml"
    # What the base image says of an index holds for building alone.
    nowhere = dict.fromkeys(["PIP_FIND_LINKS", "UV_FIND_LINKS"], "")
    offline = {"QFLOW_WHEELHOUSE": "/wheels", "QFLOW_PACKAGES_OFFLINE": "1", **nowhere}
    runner = {"environment": offline, "volumes": [f"{wheels}:/wheels:ro"]}
    override.write_text(json.dumps({"services": {"runner": runner}}))
    doors = (*SERVICES, "gateway")
    ports = dict(zip(doors, free_ports(len(doors)), strict=True))
    made = Project(
        name=f"qflow-test-{secrets.token_hex(4)}",
        files=(_FILE, override),
        env={
            **{f"QFLOW_{name.upper()}_IMAGE": tag for name, tag in images.items()},
            **{f"QFLOW_{name.upper()}_PORT": str(port) for name, port in ports.items()},
            "COMPOSE_PROFILES": "gateway",
        },
        endpoints={name: f"127.0.0.1:{ports[name]}" for name in SERVICES},
        gateway=f"127.0.0.1:{ports['gateway']}",
        daemon=daemon,
    )
    try:
        yield made
    finally:
        made.compose("down", "--volumes", "--timeout", "40")


def until(project: Project, holds: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + _READY_S
    while not holds():
        assert time.monotonic() < ends_at, project.logs()
        time.sleep(0.2)


def serve(project: Project, authority: Path) -> bool:
    return all(
        asyncio.run(serving(address, str(authority))) for address in project.endpoints.values()
    )


def run_demo(project: Project, token: Path, authority: Path) -> str:
    told = io.StringIO()
    code = asyncio.run(
        demo.run(
            project.endpoints,
            token,
            Console(file=told, highlight=False, soft_wrap=True),
            connect=partial(open_local, authorities=str(authority)),
            authorities=str(authority),
        )
    )
    assert 0 == code, told.getvalue() + project.logs()
    return told.getvalue()


def executions(project: Project, token: Path, authority: Path) -> dict[str, tuple[int, str]]:
    metadata = (("authorization", f"Bearer {token.read_text().strip()}"),)

    async def asked() -> dict[str, tuple[int, str]]:
        async with open_local(project.endpoints["orchestrator"], str(authority)) as channel:
            stub: Any = ExecutionServiceStub(channel)
            listed = await stub.ListExecutions(
                executions_pb.ListExecutionsRequest(), metadata=metadata, timeout=30
            )
            found = {}
            for each in listed.executions:
                got = await stub.GetExecution(
                    executions_pb.GetExecutionRequest(execution_id=each.id),
                    metadata=metadata,
                    timeout=30,
                )
                found[each.id] = (got.execution.status, got.execution.output_json)
            return found

    return asyncio.run(asked())


def by_http(project: Project, token: Path, authority: Path) -> set[str]:
    """What the gateway says of the executions that there are."""
    asked = urllib.request.Request(
        f"https://{project.gateway}/qflow.orchestrator.v1.ExecutionService/ListExecutions",
        data=b"{}",
        headers={
            "Authorization": f"Bearer {token.read_text().strip()}",
            "Content-Type": "application/json",
        },
    )
    trusting = ssl.create_default_context(cafile=str(authority))
    with urllib.request.urlopen(asked, timeout=30, context=trusting) as answer:
        return {each["id"] for each in json.load(answer)["executions"]}


def is_healthy(container: Container) -> bool:
    container.reload()
    return bool(container.attrs["State"]["Health"]["Status"] == "healthy")


def kill(container: Container) -> None:
    """As the kernel would for want of memory: nobody told the daemon that it should end."""
    container.reload()
    os.kill(container.attrs["State"]["Pid"], signal.SIGKILL)


def was_replaced(container: Container) -> bool:
    container.reload()
    return container.attrs["RestartCount"] > 0 and container.status == "running"


def secrets_of(container: Container) -> list[str]:
    """Names of the files it was given; the daemon may lose the words of what ends at once."""
    for _ in range(5):
        code, listed = container.exec_run(["ls", "-a", "/run/qflow"])
        assert 0 == code
        assert isinstance(listed, bytes)
        *_, names = listed.decode().partition("..")
        if listed:
            return names.split()
    raise AssertionError("the daemon told nothing")


def test_a_deployment_serves_survives_and_keeps_what_it_was_given(
    project: Project, tmp_path: Path
) -> None:
    project.compose("up", "--detach", "--no-build")
    token, authority = tmp_path / "owner.token", tmp_path / "authority.crt"
    for file, path in ((token, "secrets/owner.token"), (authority, "tls/authority.crt")):
        shown = ("run", "--rm", "--no-deps", "-T", "provision", "cat", f"/var/lib/qflow/{path}")
        file.write_text(project.compose(*shown))
    until(project, lambda: serve(project, authority))

    for service in SERVICES:
        container = project.container(service)
        assert container.attrs["HostConfig"]["ReadonlyRootfs"], service
        assert "10001:10001" == container.attrs["Config"]["User"], service
        # What it may know came as files: whoever inspects the container reads no secret.
        secret = [each for each in container.attrs["Config"]["Env"] if "://qflow_" in each]
        assert [] == secret
        logins = [each for each in secrets_of(container) if each.endswith("_DATABASE_URL")]
        assert logins, service
        foreign = [name for name in SERVICES if name != service]
        assert not [each for each in logins if each.split("_")[1].lower() in foreign]

    assert _RESULT in run_demo(project, token, authority)

    for service in ("orchestrator", "runner"):
        container = project.container(service)
        kill(container)
        until(project, partial(was_replaced, container))
    until(project, lambda: serve(project, authority))
    assert _RESULT in run_demo(project, token, authority)
    before = executions(project, token, authority)
    assert 2 == len(before)
    assert {execution_pb2.EXECUTION_STATUS_COMPLETED} == {status for status, _ in before.values()}
    gateway = project.container("gateway")
    assert gateway.attrs["HostConfig"]["ReadonlyRootfs"]
    assert "10001:10001" == gateway.attrs["Config"]["User"]
    until(project, partial(is_healthy, gateway))
    assert {*before} == by_http(project, token, authority)

    project.compose("down", "--timeout", "40")
    project.compose("up", "--detach", "--no-build")
    until(project, lambda: serve(project, authority))

    assert before == executions(project, token, authority)


def test_the_file_is_one_that_compose_reads_with_all_that_may_be_added() -> None:
    done = subprocess.run(
        [
            tool("docker-compose"),
            "--file",
            str(_FILE),
            "--profile",
            "monitoring",
            "--profile",
            "gateway",
            "config",
            "--format",
            "json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    services = json.loads(done.stdout)["services"]
    beside = {"keys", "provision", "postgres", "redis", "prometheus", "grafana", "gateway"}
    assert {*SERVICES, *beside} == {*services}
    for name, each in services.items():
        assert "privileged" not in each
        published = [port for port in each.get("ports", []) if port["host_ip"] != "127.0.0.1"]
        assert [] == published, f"{name} is open to the network"
        mounted = [each for each in each.get("volumes", []) if "docker.sock" in each["source"]]
        assert [] == mounted
