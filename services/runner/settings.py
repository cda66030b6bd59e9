"""The runner's settings: read once, passed as plain values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from services.kit import env as read
from services.kit.env import EnvError
from services.runner.domain.limits import Asked, Tier
from services.runner.domain.node_logs import LogCaps

_SLOTS_PER_CORE: Final = 4
_SANDBOXES_PER_SLOT: Final = 4
LEDGER: Final = "/ledger"


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
    log_caps: LogCaps
    caps: Asked
    grace_s: float
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
            grace_s=read.seconds(env, "QFLOW_RUNNER_GRACE_S", 1.0, high=5.0),
            test_bind=_test_bind(env),
        )


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
