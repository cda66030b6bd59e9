"""Fresh machines: containers of a minimal Debian with what a new user has, and nothing of ours."""

from __future__ import annotations

import io
import os
import secrets
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from docker.errors import ImageNotFound
from docker.models.containers import Container

BASE_IMAGE = "qflow-ci/debian:bookworm"
CHECKOUT = Path(__file__).resolve().parents[2]

# How this machine reaches its package index. Passed on as it is: nothing here knows a host.
_PASSED_ON = ("PIP_", "UV_", "SSL_CERT_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_OF_THIS_MACHINE = {"PIP_CACHE_DIR", "UV_CACHE_DIR", "UV_PYTHON", "UV_PROJECT_ENVIRONMENT"}
_TRUSTED = ("/etc/ssl/certs", "/usr/local/share/ca-certificates")
_CONFIGURATION = {
    "/etc/pip.conf": "/etc/pip.conf",
    "~/.config/pip/pip.conf": "/etc/pip.conf",
    "~/.pip/pip.conf": "/etc/pip.conf",
    "/etc/uv/uv.toml": "/etc/uv/uv.toml",
    "~/.config/uv/uv.toml": "/etc/uv/uv.toml",
}

# Every process but the container's first, its idle one, and the one that looks.
_LOOK = """
import os
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) not in (1, os.getpid()):
        try:
            words = open(f"/proc/{name}/cmdline", "rb").read().split(bytes(1))
        except OSError:
            continue
        if words[0] not in (b"sleep", b""):
            print(b" ".join(words).decode())
"""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command answered."""

    code: int
    text: str


class Machine:
    """A container that idles; commands run in it as a person would type them."""

    def __init__(self, container: Container) -> None:
        self.container = container

    def run(self, command: str, *, user: str = "root", folder: str = "/") -> Said:
        """Run a shell command; stdout and stderr are one text."""
        # A login shell: a new user's own home and PATH.
        argv = ["su", "-", user, "-w", _names_passed_on(), "-c", f"cd {folder} && {command}"]
        return self._execute(argv)

    def must(self, command: str, *, user: str = "root", folder: str = "/") -> str:
        """Run a command that prepares the test."""
        said = self.run(command, user=user, folder=folder)
        assert said.code == 0, f"{command}: exit {said.code}\n{said.text}"
        return said.text

    def add_user(self, name: str) -> None:
        """Add an ordinary person."""
        self.must(f"useradd --create-home --shell /bin/bash {name}")
        self.must(f"mkdir -p /cache/{name} && chown {name}: /cache/{name}")

    def processes(self) -> list[str]:
        """List what runs, by command line."""
        said = self._execute(["python3", "-I", "-S", "-c", _LOOK])
        assert said.code == 0, said.text
        return said.text.splitlines()

    def _execute(self, argv: list[str]) -> Said:
        done = self.container.exec_run(argv, workdir="/")
        assert done.exit_code is not None
        assert isinstance(done.output, bytes)
        return Said(done.exit_code, done.output.decode("utf-8", "replace"))


MachineFactory = Callable[..., Machine]


@pytest.fixture(scope="session")
def daemon() -> Iterator[docker.DockerClient]:
    client = docker.from_env(timeout=580)
    yield client
    client.close()


@pytest.fixture(scope="session")
def base_image(daemon: docker.DockerClient) -> str:
    try:
        daemon.images.get(BASE_IMAGE)
    except ImageNotFound:
        text = f"the Docker image {BASE_IMAGE} is missing: make it with .ci/base-image"
        if os.environ.get("QFLOW_REQUIRE_DOCKER"):
            pytest.fail(text)
        pytest.skip(text)
    return BASE_IMAGE


@pytest.fixture
def machine(daemon: docker.DockerClient, base_image: str) -> Iterator[MachineFactory]:
    """`machine()` gives a fresh one, with this checkout to be cloned from /checkout."""
    started: list[Container] = []

    def start(*, security_opt: list[str] | None = None) -> Machine:
        container = daemon.containers.run(
            base_image,
            ["sleep", "infinity"],
            name=f"qflow-test-{secrets.token_hex(4)}",
            labels={"qflow.test": "1"},
            detach=True,
            init=True,
            # The package index of this machine may answer on this machine only.
            network_mode="host",
            environment=_environment(),
            volumes=_volumes(),
            security_opt=security_opt,
        )
        started.append(container)
        fresh = Machine(container)
        # Another's checkout, which git does not trust by itself; and a cache of one's own.
        done = container.exec_run(["git", "config", "--system", "safe.directory", "*"])
        assert done.exit_code == 0, done.output
        fresh.must("mkdir -p /cache/root")
        return fresh

    yield start
    for container in started:
        container.remove(force=True)


def reaching_the_index(client: docker.DockerClient, base: str) -> str:
    """Build a base image on which pip reaches this machine's package index, and name it."""
    files = {Path("/etc/ssl/certs/ca-certificates.crt"): "/etc/ssl/certs/ca-certificates.crt"}
    files |= {Path(source).expanduser(): place for source, place in _CONFIGURATION.items()}
    files |= {Path(value): value for value in _environment().values() if value.startswith("/")}
    recipe = [f"FROM {base}", *(f'ENV {name}="{value}"' for name, value in _environment().items())]
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for number, (file, place) in enumerate(files.items()):
            if file.is_file():
                archive.add(file.resolve(), str(number))
                recipe.append(f"COPY {number} {place}")
        text = "\n".join(recipe).encode()
        head = tarfile.TarInfo("Dockerfile")
        head.size = len(text)
        archive.addfile(head, io.BytesIO(text))
    context.seek(0)
    tag = "qflow-test/base:index"
    client.images.build(fileobj=context, custom_context=True, tag=tag, rm=True)
    return tag


def _environment() -> dict[str, str]:
    """Give the settings by which pip and uv reach the index."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(_PASSED_ON) or name.upper() in _PROXIES)
        and name not in _OF_THIS_MACHINE
    }


def _names_passed_on() -> str:
    """Give what `su -w` keeps; a login shell forgets the rest."""
    return ",".join(["LANG", *_environment()])


def _volumes() -> dict[str, dict[str, str]]:
    mounted = {str(CHECKOUT): {"bind": "/checkout", "mode": "ro"}}
    mounted["qflow-test-cache"] = {"bind": "/cache", "mode": "rw"}
    for folder in _TRUSTED:
        if Path(folder).is_dir():
            mounted[folder] = {"bind": folder, "mode": "ro"}
    for source, place in _CONFIGURATION.items():
        file = Path(source).expanduser()
        if file.is_file() and place not in {each["bind"] for each in mounted.values()}:
            mounted[str(file)] = {"bind": place, "mode": "ro"}
    # Settings that name files: certificates elsewhere, a folder of wheels.
    for value in _environment().values():
        for word in value.split():
            path = Path(word)
            inside = any(path.is_relative_to(folder) for folder in mounted if folder[0] == "/")
            if path.is_absolute() and path.exists() and not inside:
                mounted[word] = {"bind": word, "mode": "ro"}
    return mounted
