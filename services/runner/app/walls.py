"""The isolation of user code: chosen, attacked by the canary, and reported."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from services.kit.env import EnvError
from services.kit.pythons import find_pythons
from services.runner.domain.limits import ProbeCheck, Tier, meets
from services.runner.gateways.sandbox.bare import BareHost
from services.runner.gateways.sandbox.bubblewrap import BubblewrapHost, find_bubblewrap
from services.runner.gateways.sandbox.canary import Probe, probe
from services.runner.gateways.sandbox.cgroups import CgroupHost
from services.runner.gateways.sandbox.groups import ProcessGroups
from services.runner.gateways.sandbox.interpreters import prepare_interpreters
from services.runner.gateways.sandbox.landlock import LandlockHost
from services.runner.gateways.sandbox.port import Interpreter, SandboxHost
from services.runner.settings import Settings

if TYPE_CHECKING:
    from services.runner.gateways.docker.host import DockerHost

log = structlog.get_logger()


def found_interpreters(home: Path) -> dict[str, Interpreter]:
    """Return this machine's Pythons that can run the agent, by version."""
    found = prepare_interpreters(find_pythons().values(), home / "run" / "agent")
    if not found:
        raise EnvError("no Python from 3.9 to 3.14 can run the agent on this machine")
    return found


async def prove(
    settings: Settings, interpreters: Mapping[str, Interpreter], cgroups: CgroupHost | None
) -> tuple[SandboxHost, Probe]:
    """Return the strongest host that withstands the canary, with the canary's results."""
    began = time.monotonic()
    groups = ProcessGroups(settings.home / "run" / f"{settings.name}.sandboxes")
    left = await asyncio.to_thread(groups.reap)
    if cgroups is not None:
        left += await asyncio.to_thread(cgroups.reap)
    if left:
        log.warning("sandboxes_reaped", groups=left)
    if settings.unsafe:
        log.error("sandbox_disabled", setting="QFLOW_UNSAFE_NO_SANDBOX")
        none = ProbeCheck("sandbox", held=False, detail="none: the unsafe switch is set")
        return BareHost(cgroups=cgroups), Probe(Tier.T0, [none])
    docker, missing = await _docker(settings, interpreters)
    hosts: list[SandboxHost] = []
    if docker is not None:
        hosts.append(docker)
        interpreters = docker.pythons(interpreters)
    newest = interpreters[max(interpreters, key=lambda version: int(version.split(".")[1]))]
    bubblewrap = find_bubblewrap(settings.bubblewrap)
    if bubblewrap is not None:
        hosts.append(BubblewrapHost(bubblewrap, cgroups=cgroups))
    boxes = settings.home / "sandboxes" / settings.name
    await asyncio.to_thread(shutil.rmtree, boxes, ignore_errors=True)  # of those that were reaped
    hosts.append(LandlockHost(boxes, cgroups=cgroups, groups=groups))
    for host in hosts:
        proven = await probe(host, newest)
        log.info(
            "sandbox_probed",
            sandbox=type(host).__name__,
            tier=proven.tier.value,
            took_ms=round((time.monotonic() - began) * 1000),
            open=proven.open,
        )
        if proven.tier is not Tier.T0:
            break
    if docker is not None and host is not docker:
        await docker.close()
    if not meets(proven.tier, Tier.T2):
        log.warning("sandbox_weak", tier=proven.tier.value, wants="namespaces and control groups")
    return host, Probe(proven.tier, [*missing, *proven.checks])


async def _docker(
    settings: Settings, interpreters: Mapping[str, Interpreter]
) -> tuple[DockerHost | None, list[ProbeCheck]]:
    """Connect to the daemon if containers are required; what it lacks counts as a failed check."""
    if not meets(settings.minimum_tier, Tier.T3):
        return None, []
    # Imported late: slow, and only needed for containers.
    from services.runner.gateways.docker.host import DockerHost, DockerMissing, DockerSettings

    wanted = DockerSettings(
        image=settings.docker_image, runtime=settings.docker_runtime, cpus=settings.docker_cpus
    )
    try:
        return await DockerHost.open(wanted, interpreters, settings.home / settings.name), []
    except DockerMissing as problem:
        log.warning("docker_missing", fault=str(problem))
        return None, [ProbeCheck("docker", held=False, detail=str(problem))]


def containers_of(host: SandboxHost) -> DockerHost | None:
    """Return the host if its sandboxes are containers, else None."""
    if not meets(host.tier, Tier.T3):
        return None
    from services.runner.gateways.docker.host import DockerHost  # late, as above

    return host if isinstance(host, DockerHost) else None


def refusal(settings: Settings, tier: Tier) -> str:
    """Return why assignments are declined: too weak isolation, without the unsafe switch."""
    if settings.unsafe or (meets(tier, settings.minimum_tier) and tier is not Tier.T0):
        return ""
    log.error("tier_below_minimum", tier=tier.value, minimum=settings.minimum_tier.value)
    return "tier_missing"
