"""How a container is created: every restriction that Docker offers, as one pure function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from docker.types import HostConfig, LogConfig, Mount, Ulimit

from services.runner.domain.network import Reach
from services.runner.gateways.sandbox.bubblewrap import SANDBOX_ENVIRONMENT
from services.runner.gateways.sandbox.exchange import files_of, output_of
from services.runner.gateways.sandbox.port import SandboxSpec

HOME_LABEL: Final = "qflow.home"
SANDBOX_LABEL: Final = "qflow.sandbox"
INCARNATION_LABEL: Final = "qflow.incarnation"
ENVIRONMENT_PATH: Final = "/qflow/environment"
FILES_PATH: Final = "/qflow/files"
OUTPUT_PATH: Final = "/qflow/output"
GATE_PATH: Final = "/qflow/gate"
GATE_NAME: Final = "agent"
_AGENT_PATH: Final = "/qflow/agent"
_NOBODY: Final = "65534:65534"
_STOP_TIMEOUT_S: Final = 5
# A container with its own kernel runs kernel threads that count as processes; it does not start
# with a lower limit.
_KERNEL_THREADS: Final = 128
_NANO: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What all containers of one runner have in common."""

    api_version: str
    home: str  # distinguishes containers of different runners
    incarnation: str
    runtime: str = ""  # empty: the daemon's default
    cpus: int = 1
    own_kernel: bool = False


def container_name(shape: Shape, spec: SandboxSpec) -> str:
    """Return a container's name: unique, and recognisable for people."""
    return f"qflow-{shape.home}-{spec.sandbox_id}"


def create_options(
    shape: Shape, spec: SandboxSpec, *, image: str, python: str, gate: Path
) -> dict[str, Any]:
    """Return the arguments of the daemon's create call.

    The agent is the first process, so the container ends with it. It needs no init: when processes
    are left behind to it, the whole sandbox is replaced.
    """
    return {
        "image": image,
        "name": container_name(shape, spec),
        "entrypoint": [python, "-I", "-S"],
        "command": [_AGENT_PATH, f"{GATE_PATH}/{GATE_NAME}"],
        "user": _NOBODY,
        "working_dir": "/tmp",  # noqa: S108 - the container's own
        "environment": SANDBOX_ENVIRONMENT,
        # On the machine's network it has the machine's host name.
        **({} if spec.limits.network.reach is Reach.HOST else {"hostname": "sandbox"}),
        "labels": _labels(shape, spec),
        "stop_timeout": _STOP_TIMEOUT_S,
        "network_disabled": spec.limits.network.reach is not Reach.HOST,
        "use_config_proxy": False,
        "host_config": HostConfig(shape.api_version, **_walls(shape, spec, gate)),
    }


def _labels(shape: Shape, spec: SandboxSpec) -> Mapping[str, str]:
    return {
        HOME_LABEL: shape.home,
        SANDBOX_LABEL: str(spec.sandbox_id),
        INCARNATION_LABEL: shape.incarnation,
    }


def _walls(shape: Shape, spec: SandboxSpec, gate: Path) -> dict[str, Any]:
    limits = spec.limits
    # noexec, so that a program written at run time cannot get around the image's restrictions.
    temporary = f"rw,noexec,nosuid,nodev,mode=1777,size={limits.temporary_bytes}"
    walls = {
        "network_mode": "host" if limits.network.reach is Reach.HOST else "none",
        "ipc_mode": "private",
        "read_only": True,
        "tmpfs": {"/tmp": temporary},  # noqa: S108
        "shm_size": limits.temporary_bytes,
        "cap_drop": ["ALL"],
        # The daemon's own filter and AppArmor profile stay on; the agent adds a stricter filter.
        "security_opt": ["no-new-privileges"],
        "pids_limit": limits.processes + (_KERNEL_THREADS if shape.own_kernel else 0),
        "mem_limit": limits.memory_bytes,
        "memswap_limit": limits.memory_bytes,
        "nano_cpus": limits.cpu_millicores * _NANO // 1000 or shape.cpus * _NANO,
        "ulimits": [
            Ulimit(name="nofile", soft=limits.open_files, hard=limits.open_files),
            Ulimit(name="fsize", soft=limits.file_bytes, hard=limits.file_bytes),
            Ulimit(name="core", soft=0, hard=0),
        ],
        "log_config": LogConfig(type="local", config={"max-size": "1m", "max-file": "2"}),
        "mounts": _mounts(spec, gate),
        "restart_policy": {"Name": "no"},
    }
    if shape.runtime:
        walls["runtime"] = shape.runtime
    return walls


def _mounts(spec: SandboxSpec, gate: Path) -> list[Mount]:
    read_only = [(spec.agent, _AGENT_PATH), (gate, GATE_PATH)]
    if spec.environment is not None:
        read_only.append((spec.environment, ENVIRONMENT_PATH))
    writable = [*spec.binds]
    if spec.exchange is not None:
        read_only.append((files_of(spec.exchange), FILES_PATH))
        writable.append((output_of(spec.exchange), OUTPUT_PATH))
    mounts = [
        Mount(place, str(host.resolve()), type="bind", read_only=True, propagation="rprivate")
        for host, place in read_only
    ]
    mounts += [
        Mount(place, str(host.resolve()), type="bind", propagation="rprivate")
        for host, place in writable
    ]
    return mounts
