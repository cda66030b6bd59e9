"""Starts containers, tracks their ends, and removes those that nobody wants."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import structlog

from services.runner.domain.limits import Tier
from services.runner.domain.network import Reach
from services.runner.gateways.docker.container import Container
from services.runner.gateways.docker.daemon import FAULTS, Daemon
from services.runner.gateways.docker.gate import Gate
from services.runner.gateways.docker.options import Shape, container_name, create_options
from services.runner.gateways.sandbox.bubblewrap import TEMPORARY
from services.runner.gateways.sandbox.port import (
    Interpreter,
    Sandbox,
    SandboxDied,
    SandboxSpec,
)
from services.runner.gateways.sandbox.seccomp import build_filter

log = structlog.get_logger()

# Runtimes whose names begin like this isolate containers with a kernel of their own: T4. All others
# share the machine's kernel, like the daemon's default.
_OWN_KERNEL: Final = ("runsc", "kata")


class DockerMissing(Exception):  # noqa: N818 - it says what to install
    """No daemon, runtime or image is available to run containers with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerSettings:
    """How the deployment configures containers."""

    image: str  # with {version} for the Python
    runtime: str = ""
    cpus: int = 1


def tier_of(runtime: str) -> Tier:
    """Return the isolation tier of containers under this runtime."""
    return Tier.T4 if any(runtime.startswith(name) for name in _OWN_KERNEL) else Tier.T3


def home_name(home: Path) -> str:
    """Return a label for a runner's home that does not reveal its path."""
    return hashlib.sha256(os.path.abspath(home).encode()).hexdigest()[:12]  # noqa: PTH100 - without following links


class DockerHost:
    """Starts sandboxes as containers of a daemon on this machine."""

    def __init__(
        self,
        daemon: Daemon,
        shape: Shape,
        images: Mapping[Path, tuple[str, str]],
        folder: Path,
    ) -> None:
        self.tier = tier_of(shape.runtime)
        # Sockets of a separate kernel cannot be passed out of it, so there is no egress proxy.
        self.networks: Sequence[Reach] = () if self.tier is Tier.T4 else (Reach.EGRESS, Reach.HOST)
        self._daemon = daemon
        self._shape = shape
        self._images = images
        self._folder = folder
        self._containers: dict[str, Container] = {}
        self._filters = {
            reach: base64.b64encode(build_filter(network=reach)).decode() for reach in Reach
        }
        loop = asyncio.get_running_loop()
        daemon.watch(
            on_end=lambda name, container: _in_loop(loop, self._ended, name, container),
            on_gap=lambda: _in_loop(loop, self._look_soon),
        )
        self._looking: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, settings: DockerSettings, interpreters: Mapping[str, Interpreter], home: Path
    ) -> DockerHost:
        """Connect to the daemon and find its images; raises DockerMissing with what to install."""
        name = home_name(home)
        try:
            daemon = await asyncio.to_thread(Daemon, name)
        except FAULTS as problem:
            raise _no_daemon(problem) from None
        try:
            info, images = await daemon.call(_survey, daemon, settings, interpreters)
        except DockerMissing:
            await daemon.call(daemon.close)
            raise
        shape = Shape(
            api_version=daemon.api_version,
            home=name,
            incarnation=str(uuid.uuid4()),
            runtime=settings.runtime,
            cpus=settings.cpus,
            own_kernel=tier_of(settings.runtime) is Tier.T4,
        )
        if not _remapped(info):
            log.warning("docker_users_not_remapped", wants="userns-remap, or a rootless daemon")
        host = cls(daemon, shape, images, home / "gates")
        await host.clear()
        return host

    def pythons(self, interpreters: Mapping[str, Interpreter]) -> dict[str, Interpreter]:
        """Return those interpreters that have an image."""
        return {
            version: each
            for version, each in interpreters.items()
            if each.executable in self._images
        }

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a container whose agent is ready to load code; raises SandboxDied."""
        found = self._images.get(spec.python)
        if found is None:
            raise SandboxDied(f"there is no image for {spec.python.name}")
        image, python = found
        name = str(spec.sandbox_id)
        try:
            gate = await self._daemon.call(Gate, self._folder / name)
        except OSError as problem:
            raise SandboxDied(f"there is no gate for the container: {problem.strerror}") from None
        container = Container(
            spec,
            name=f"docker:{container_name(self._shape, spec)}",
            tier=self.tier,
            daemon=self._daemon,
            gate=gate,
        )
        self._containers[name] = container
        container.ended.add_done_callback(lambda _: self._containers.pop(name, None))
        options = create_options(self._shape, spec, image=image, python=python, gate=gate.folder)
        rlimits = {"CORE": 0, "MEMLOCK": 0}
        bars = self._filters[spec.limits.network.reach]
        setup = {
            "op": "setup",
            "uid": None,
            "rlimits": rlimits,
            "filter": bars,
            "rooms": TEMPORARY,
        }
        await container.begin(options, setup)
        return container

    async def living(self) -> set[UUID]:
        """Return the ids of this home's sandboxes that the daemon has."""
        try:
            found = await self._daemon.call(self._daemon.ours)
        except FAULTS:
            return set()
        return {UUID(each) for each in found}

    async def strays(self) -> set[UUID]:
        """Return those that this host does not know, as after a start that was given up."""
        # Containers are registered before they are created, so an unknown one has no owner.
        return {each for each in await self.living() if str(each) not in self._containers}

    async def remove(self, sandbox_id: UUID) -> None:
        """Remove a sandbox that nobody here wants."""
        try:
            container = (await self._daemon.call(self._daemon.ours)).get(str(sandbox_id))
            if container:
                await self._daemon.call(self._daemon.remove, container)
        except FAULTS as problem:
            log.warning("container_not_removed", fault=type(problem).__name__)

    async def clear(self) -> int:
        """Remove what an earlier runner of this home left; return the number of containers."""
        await self._daemon.call(partial(shutil.rmtree, self._folder, ignore_errors=True))
        left = await self._daemon.call(self._daemon.ours)
        for container in left.values():
            await self._daemon.call(self._daemon.remove, container)
        return len(left)

    async def close(self) -> None:
        """Close the connection to the daemon."""
        if self._looking is not None:
            self._looking.cancel()
        await self._daemon.call(self._daemon.close)

    def _ended(self, name: str, container_id: str) -> None:
        container = self._containers.get(name)
        if container is not None:
            container.told_end(container_id)

    def _look_soon(self) -> None:
        self._looking = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        for container in list(self._containers.values()):
            await container.look()


def _survey(
    daemon: Daemon, settings: DockerSettings, interpreters: Mapping[str, Interpreter]
) -> tuple[Mapping[str, Any], dict[Path, tuple[str, str]]]:
    """Return facts about the daemon, and its image and program name for each Python."""
    try:
        info = daemon.info()
        found = {
            version: daemon.image_id(settings.image.replace("{version}", version))
            for version in interpreters
        }
    except FAULTS as problem:
        raise _no_daemon(problem) from None
    if settings.runtime and settings.runtime not in info.get("Runtimes", {}):
        raise DockerMissing(
            f"the daemon has no runtime {settings.runtime}: install it and name it under"
            " `runtimes` in /etc/docker/daemon.json"
        )
    # By digest: tags move, but containers must all have the same image.
    images = {
        interpreters[version].executable: (image, f"python{version}")
        for version, image in found.items()
        # A name without {version} is the same image for all: it only counts for the Python that it
        # has.
        if image and daemon.has_program(image, f"python{version}")
    }
    if not images:
        raise DockerMissing(
            f"the daemon has no image {settings.image} with its Python for any of"
            f" {', '.join(interpreters)}: make or pull one, or set QFLOW_DOCKER_IMAGE"
        )
    return info, images


def _no_daemon(problem: BaseException) -> DockerMissing:
    return DockerMissing(
        f"no Docker daemon responds ({type(problem).__name__}): install docker and start it, or set"
        " DOCKER_HOST"
    )


def _remapped(info: Mapping[str, object]) -> bool:
    options = info.get("SecurityOptions")
    words = str(options) if options else ""
    return "name=userns" in words or "name=rootless" in words


def _in_loop(loop: asyncio.AbstractEventLoop, action: Callable[..., None], *arguments: str) -> None:
    """Schedule a call from the events' thread; does nothing once the loop is closed."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(action, *arguments)
