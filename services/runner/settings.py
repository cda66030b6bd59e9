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
from services.kit.pythons import VERSIONS
from services.kit.rpc.tls import Trust, service_pair
from services.runner.domain.environments import RequirementError
from services.runner.domain.limits import Asked, Tier
from services.runner.domain.network import NetworkRules, is_host_pattern
from services.runner.domain.node_logs import LogCaps
from services.runner.domain.package_rules import PackageRules, plain_rule
from services.runner.domain.placing import Size

_SLOTS_PER_CORE: Final = 4
_SANDBOXES_PER_SLOT: Final = 4
LEDGER: Final = "/ledger"
_GIB: Final = 1024**3
_BYTES_HIGH: Final = 2**60
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_LABEL_CHARS_MAX: Final = 63
_LABELS_MAX: Final = 64
_HOSTS_MAX: Final = 1000
_DEVICES: Final = Path("/dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class RaySettings:
    """The Ray cluster where runners are started, and the size of a plain runner."""

    address: str
    runners_max: int
    machines_come: bool
    idle_exit_s: float
    plain: Size

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self | None:
        """Read the settings; None if this runner does not place runners on Ray."""
        placement = read.text(env, "QFLOW_RUNNER_PLACEMENT", "local")
        if placement not in {"local", "ray"}:
            raise EnvError("QFLOW_RUNNER_PLACEMENT must be local or ray")
        if placement == "local":
            return None
        return cls(
            address=read.text(env, "QFLOW_RAY_ADDRESS", "auto"),
            runners_max=read.integer(env, "QFLOW_RAY_RUNNERS_MAX", 64, low=1, high=4096),
            machines_come=read.flag(env, "QFLOW_RAY_AUTOSCALES"),
            idle_exit_s=read.seconds(env, "QFLOW_RAY_IDLE_S", 300.0, low=1.0),
            plain=Size(
                cpus=read.integer(env, "QFLOW_RAY_CPUS", 1, low=1, high=1024),
                memory_bytes=read.integer(
                    env, "QFLOW_RAY_MEMORY_BYTES", _GIB, low=64 * 1024**2, high=_BYTES_HIGH
                ),
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSettings:
    """Which packages nodes may use, and where they come from."""

    wheelhouse: Path | None
    offline: bool
    rules: PackageRules
    index_hosts: tuple[str, ...]
    wheel_bytes_max: int
    tenant_wheels_bytes_max: int

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read the settings of packages."""
        return cls(
            wheelhouse=_wheelhouse(env),
            offline=read.flag(env, "QFLOW_PACKAGES_OFFLINE"),
            rules=PackageRules(
                allowed=_rules(env, "QFLOW_PACKAGES_ALLOWED"),
                denied=_rules(env, "QFLOW_PACKAGES_DENIED"),
                release_age_days_min=read.integer(
                    env, "QFLOW_PACKAGES_RELEASE_AGE_DAYS_MIN", 0, high=366
                ),
            ),
            index_hosts=_hosts(env, "QFLOW_PACKAGE_INDEX_HOSTS"),
            wheel_bytes_max=read.integer(
                env, "QFLOW_WHEEL_BYTES_MAX", 200 * 1024**2, low=1, high=_BYTES_HIGH
            ),
            tenant_wheels_bytes_max=read.integer(
                env, "QFLOW_TENANT_WHEELS_BYTES_MAX", 2 * _GIB, low=1, high=_BYTES_HIGH
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketSettings:
    """The bucket for files, instead of a folder of the home."""

    name: str
    endpoint: str
    region: str

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self | None:
        """Read the settings; None if files are in a folder."""
        name = read.text(env, "QFLOW_FILES_S3_BUCKET", "")
        if not name:
            return None
        return cls(
            name=name,
            endpoint=read.text(env, "QFLOW_FILES_S3_ENDPOINT", ""),
            region=read.text(env, "QFLOW_FILES_S3_REGION", ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of the runner."""

    database_url: str = field(repr=False)
    engine_database_url: str = field(repr=False)
    token: str = field(repr=False)
    trust: Trust | None
    # Address for other services; None if they use that for users.
    internal_listen: str | None
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
    log_caps: LogCaps
    caps: Asked
    attempt_s_max: float  # 0: no limit besides the node's own
    docker_image: str
    docker_runtime: str
    docker_cpus: int
    grace_s: float
    labels: Mapping[str, str]
    gpus: int
    cpus: int
    memory_bytes: int
    idle_exit_s: float
    ray: RaySettings | None
    test_bind: Path | None
    environments_bytes_max: int
    disk_free_bytes_min: int
    pythons_provided: tuple[str, ...]
    packages: PackageSettings
    bucket: BucketSettings | None
    network: NetworkRules

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read the environment; EnvError names a missing or invalid setting."""
        home = read.path(env, "QFLOW_HOME")
        slots = read.integer(
            env, "QFLOW_RUNNER_SLOTS", _SLOTS_PER_CORE * (os.cpu_count() or 1), low=1, high=4096
        )
        ttl_s = read.seconds(env, "QFLOW_LEASE_TTL_S", 10.0, low=0.5)
        return cls(
            database_url=read.required(env, "QFLOW_RUNNER_DATABASE_URL"),
            engine_database_url=read.required(env, "QFLOW_RUNNER_ENGINE_DATABASE_URL"),
            token=read.required(env, "QFLOW_SERVICE_TOKEN"),
            trust=Trust.from_env(env),
            internal_listen=read.optional(env, "QFLOW_RUNNER_INTERNAL_LISTEN")
            or (f"unix:{home}/run/runner.sock" if service_pair(env) else None),
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
            log_caps=LogCaps(
                bytes_max=read.integer(
                    env, "QFLOW_RUNNER_LOG_BYTES_MAX", LogCaps().bytes_max, high=16 * 1024**2
                ),
                lines_max=read.integer(
                    env, "QFLOW_RUNNER_LOG_LINES_MAX", LogCaps().lines_max, high=100_000
                ),
            ),
            caps=Asked(
                **{
                    name: read.integer(env, f"QFLOW_NODE_{name.upper()}_MAX", 0, high=1024**4)
                    for name in Asked._fields
                }
            ),
            attempt_s_max=read.seconds(env, "QFLOW_NODE_TIMEOUT_S_MAX", 0.0),
            docker_image=read.text(env, "QFLOW_DOCKER_IMAGE", "qflow-python:{version}"),
            docker_runtime=read.text(env, "QFLOW_DOCKER_RUNTIME", ""),
            docker_cpus=read.integer(env, "QFLOW_DOCKER_CPUS", 1, low=1, high=1024),
            grace_s=read.seconds(env, "QFLOW_RUNNER_GRACE_S", 1.0, high=5.0),
            labels=_labels(env),
            gpus=read.integer(env, "QFLOW_RUNNER_GPUS", len(list(_DEVICES.glob("nvidia[0-9]*")))),
            cpus=read.integer(env, "QFLOW_RUNNER_CPUS", os.cpu_count() or 1, low=1, high=4096),
            memory_bytes=read.integer(
                env, "QFLOW_RUNNER_MEMORY_BYTES", _machine_bytes(), low=1, high=_BYTES_HIGH
            ),
            idle_exit_s=read.seconds(env, "QFLOW_RUNNER_IDLE_EXIT_S", 0.0),
            ray=RaySettings.from_env(env),
            test_bind=_test_bind(env),
            environments_bytes_max=read.integer(
                env, "QFLOW_ENVIRONMENTS_BYTES_MAX", 20 * _GIB, low=0, high=_BYTES_HIGH
            ),
            disk_free_bytes_min=read.integer(
                env, "QFLOW_DISK_FREE_BYTES_MIN", _GIB // 2, low=0, high=_BYTES_HIGH
            ),
            pythons_provided=_pythons(env),
            packages=PackageSettings.from_env(env),
            bucket=BucketSettings.from_env(env),
            network=NetworkRules(
                egress_hosts=_hosts(env, "QFLOW_EGRESS_HOSTS"),
                host=read.flag(env, "QFLOW_NETWORK_HOST"),
            ),
        )


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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


def _pythons(env: Mapping[str, str]) -> tuple[str, ...]:
    texts = read.text(env, "QFLOW_PYTHONS_PROVIDED", "").split(",")
    versions = tuple(text.strip() for text in texts if text.strip())
    if not set(versions) <= set(VERSIONS):
        raise EnvError(f"QFLOW_PYTHONS_PROVIDED must be of {', '.join(VERSIONS)}")
    return versions


def _wheelhouse(env: Mapping[str, str]) -> Path | None:
    if not read.optional(env, "QFLOW_WHEELHOUSE"):
        return None
    folder = read.path(env, "QFLOW_WHEELHOUSE")
    if not folder.is_dir():
        raise EnvError("QFLOW_WHEELHOUSE must be a folder of wheels")
    return folder


def _rules(env: Mapping[str, str], name: str) -> tuple[str, ...]:
    texts = read.text(env, name, "").split(";")
    try:
        return tuple(plain_rule(text.strip()) for text in texts if text.strip())
    except RequirementError as problem:
        raise EnvError(f"{name} must be names with versions, separated by `;`: {problem}") from None


def _hosts(env: Mapping[str, str], name: str) -> tuple[str, ...]:
    texts = read.text(env, name, "").split(",")
    hosts = tuple(text.strip().lower() for text in texts if text.strip())
    if len(hosts) > _HOSTS_MAX or not all(map(is_host_pattern, hosts)):
        raise EnvError(
            f"{name} must be hosts separated by commas: example.com, *.example.com or *, "
            f"each optionally with :port; at most {_HOSTS_MAX}"
        )
    return hosts


def _test_bind(env: Mapping[str, str]) -> Path | None:
    if not read.optional(env, "QFLOW_RUNNER_TEST_BIND"):
        return None
    if not read.flag(env, "QFLOW_TESTING"):
        raise EnvError("QFLOW_RUNNER_TEST_BIND is for tests only: it opens the sandbox")
    return read.path(env, "QFLOW_RUNNER_TEST_BIND")
