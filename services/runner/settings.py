"""The runner's settings: read once, passed as plain values."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from services.kit import env as read
from services.kit.env import EnvError
from services.runner.domain.limits import Tier

_SLOTS_PER_CORE: Final = 4
_SANDBOXES_PER_SLOT: Final = 4
LEDGER: Final = "/ledger"
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_LABEL_CHARS_MAX: Final = 63
_LABELS_MAX: Final = 64
_DEVICES: Final = Path("/dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a deployment says of the runner."""

    database_url: str = field(repr=False)
    engine_database_url: str = field(repr=False)
    token: str = field(repr=False)
    root_certificates: bytes | None = field(repr=False)
    home: Path
    name: str
    attach_addresses: tuple[str, ...]
    slots: int
    sandboxes_max: int
    spares: int
    lease_ttl_s: float
    heartbeat_s: float
    minimum_tier: Tier
    unsafe: bool
    bubblewrap: str
    docker_image: str
    docker_runtime: str
    docker_cpus: int
    labels: Mapping[str, str]
    gpus: int
    test_bind: Path | None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read the environment; a missing or wrong value stops the process with its name."""
        home = read.path(env, "QFLOW_HOME")
        slots = read.integer(
            env, "QFLOW_RUNNER_SLOTS", _SLOTS_PER_CORE * (os.cpu_count() or 1), low=1, high=4096
        )
        ttl_s = read.seconds(env, "QFLOW_LEASE_TTL_S", 10.0, low=0.5)
        return cls(
            database_url=read.required(env, "QFLOW_RUNNER_DATABASE_URL"),
            engine_database_url=read.required(env, "QFLOW_RUNNER_ENGINE_DATABASE_URL"),
            token=read.required(env, "QFLOW_SERVICE_TOKEN"),
            root_certificates=read.certificates(env),
            home=home,
            name=read.text(env, "QFLOW_RUNNER_NAME", "runner"),
            attach_addresses=_addresses(env, home),
            slots=slots,
            sandboxes_max=read.integer(
                env,
                "QFLOW_RUNNER_SANDBOXES_MAX",
                _SANDBOXES_PER_SLOT * slots,
                low=slots,
                high=65536,
            ),
            spares=read.integer(env, "QFLOW_RUNNER_SPARES", 1, high=64),
            lease_ttl_s=ttl_s,
            heartbeat_s=read.seconds(env, "QFLOW_LEASE_HEARTBEAT_S", ttl_s * 0.3, low=0.1),
            minimum_tier=_tier(env),
            unsafe=read.flag(env, "QFLOW_UNSAFE_NO_SANDBOX"),
            bubblewrap=read.text(env, "QFLOW_BUBBLEWRAP", ""),
            docker_image=read.text(env, "QFLOW_DOCKER_IMAGE", "qflow/python:{version}"),
            docker_runtime=read.text(env, "QFLOW_DOCKER_RUNTIME", ""),
            docker_cpus=read.integer(env, "QFLOW_DOCKER_CPUS", 1, low=1, high=1024),
            labels=_labels(env),
            gpus=read.integer(env, "QFLOW_RUNNER_GPUS", len(list(_DEVICES.glob("nvidia[0-9]*")))),
            test_bind=_test_bind(env),
        )


def _labels(env: Mapping[str, str]) -> Mapping[str, str]:
    labels: dict[str, str] = {}
    for part in read.text(env, "QFLOW_RUNNER_LABELS", "").split(","):
        name, _, value = part.strip().partition("=")
        if not name:
            continue
        if not _LABEL.fullmatch(name) or len(value) > _LABEL_CHARS_MAX:
            raise EnvError(
                "QFLOW_RUNNER_LABELS must be name=value, name=value: names of up to 63 lower-case "
                "letters, digits, dots, hyphens and underscores, values of up to 63 characters"
            )
        labels[name] = value
    if len(labels) > _LABELS_MAX:
        raise EnvError(f"QFLOW_RUNNER_LABELS has more than {_LABELS_MAX} labels")
    return labels


def _addresses(env: Mapping[str, str], home: Path) -> tuple[str, ...]:
    text = read.text(env, "QFLOW_ORCHESTRATOR_ATTACH_ADDRESS", f"unix:{home}/run/attach.sock")
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _tier(env: Mapping[str, str]) -> Tier:
    standalone = read.flag(env, "QFLOW_STANDALONE")
    text = read.text(env, "QFLOW_MINIMUM_TIER", "T1" if standalone else "T2")
    try:
        return Tier(text)
    except ValueError:
        raise EnvError("QFLOW_MINIMUM_TIER must be one of T0 to T4") from None


def _test_bind(env: Mapping[str, str]) -> Path | None:
    if not read.optional(env, "QFLOW_RUNNER_TEST_BIND"):
        return None
    if not read.flag(env, "QFLOW_TESTING"):
        raise EnvError("QFLOW_RUNNER_TEST_BIND is for tests only: it opens the sandbox")
    return read.path(env, "QFLOW_RUNNER_TEST_BIND")
