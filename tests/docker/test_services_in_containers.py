"""The images of the services: an ordinary user, a read-only root, healthy, and gone when asked."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from services.standalone.postgres import Binaries, Postgres
from services.standalone.probe import serving
from tests.docker.conftest import CHECKOUT, reaching_the_index

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

_SERVICES = ("registry", "telemetry")
_READY_S = 60.0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def prepared() -> Iterator[dict[str, Any]]:
    """A migrated database on loopback: the services' logins and tokens."""
    folder = Path(tempfile.mkdtemp(prefix="qft-", dir="/tmp"))
    server = Postgres(
        folder / "postgres",
        binaries=Binaries.find(os.environ),
        sockets=folder,
        password=secrets.token_hex(8),
        log=folder / "postgres.log",
        tcp_port=free_port(),
    )
    server.start()
    try:
        # Over TCP: the socket lies in a folder that is closed to the image's user.
        _, _, rest = server.url().partition("@/")
        database, _, query = rest.partition("?")
        credentials = server.url().partition("@/")[0]
        port = query.rpartition("=")[2]
        asked = {
            "database_url": f"{credentials}@127.0.0.1:{port}/{database}",
            "home": str(folder),
            "create": True,
        }
        (folder / "secrets").mkdir(mode=0o700)
        done = subprocess.run(
            [sys.executable, "-m", "services.standalone.prepare"],
            input=json.dumps(asked) + "\n",
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            cwd=CHECKOUT,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        assert "error" not in answer, answer
        yield answer
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def images(daemon: docker.DockerClient, base_image: str) -> dict[str, str]:
    base = reaching_the_index(daemon, base_image)
    tags = {name: f"qflow-test/{name}:latest" for name in _SERVICES}
    for name, tag in tags.items():
        daemon.images.build(
            path=str(CHECKOUT),
            dockerfile="deploy/Dockerfile",
            buildargs={"BASE": base, "SERVICE": name},
            network_mode="host",
            tag=tag,
            forcerm=True,  # also what a failed build leaves
        )
    return tags


@pytest.mark.parametrize("service", _SERVICES)
def test_a_service_serves_from_its_image_and_drains_when_told_to_stop(
    daemon: docker.DockerClient, images: dict[str, str], prepared: dict[str, Any], service: str
) -> None:
    address = f"127.0.0.1:{free_port()}"
    urls = {
        f"{login.upper()}_DATABASE_URL": url
        for login, url in prepared["urls"].items()
        if f"{login}_".startswith(f"qflow_{service}_")
    }
    container = daemon.containers.run(
        images[service],
        detach=True,
        network_mode="host",
        read_only=True,
        tmpfs={"/tmp": "mode=1777", "/var/lib/qflow": "uid=10001,gid=10001,mode=0700"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        labels={"qflow.test": "1"},
        environment={
            **urls,
            f"QFLOW_{service.upper()}_LISTEN": address,
            "QFLOW_SERVICE_TOKEN": prepared["tokens"][service],
        },
    )
    try:
        wait_serving(container, address)
        assert "10001" == user_of(container)
        container.stop(timeout=40)
        said = container.logs().decode()
        assert {"StatusCode": 0, "Error": None} == container.wait(), said
        assert "service_stopped" in said
    finally:
        container.remove(force=True)


def wait_serving(container: Container, address: str) -> None:
    deadline = time.monotonic() + _READY_S
    while not asyncio.run(serving(address)):
        container.reload()
        assert "running" == container.status, container.logs().decode()
        assert time.monotonic() < deadline, container.logs().decode()


def user_of(container: Container) -> str:
    """Give the user that the container's first process really is."""
    container.reload()
    pid = container.attrs["State"]["Pid"]
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next(line.split()[1] for line in lines if line.startswith("Uid:"))


def test_an_image_of_no_service_is_not_built(
    daemon: docker.DockerClient, images: dict[str, str], base_image: str
) -> None:
    with pytest.raises(docker.errors.BuildError):
        daemon.images.build(
            path=str(CHECKOUT),
            dockerfile="deploy/Dockerfile",
            buildargs={"BASE": reaching_the_index(daemon, base_image), "SERVICE": "nothing"},
            network_mode="host",
            forcerm=True,  # also what a failed build leaves
        )
