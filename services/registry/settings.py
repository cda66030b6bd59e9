"""Settings of the registry from its environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Self

from services.kit import env as read
from services.kit.pythons import VERSIONS
from services.kit.rpc.tls import Trust
from services.registry.domain.setting_table import CAPPED, Setting

_LISTEN_DEFAULT: Final = "127.0.0.1:7101"
_RUNNER_DEFAULT: Final = "127.0.0.1:7103"
_SESSION_S: Final = 7 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, read once."""

    database_url: str = field(repr=False)
    auth_database_url: str = field(repr=False)
    engine_database_url: str = field(repr=False)
    service_token: str = field(repr=False)
    redis_url: str | None = field(repr=False)  # None: no cache, everything is read from PostgreSQL
    listen_default: str
    runner_address: str  # the address for calls between services
    trust: Trust | None
    session_lifetime: timedelta
    python_version: str
    caps: Mapping[str, int]  # caps on node settings, by name; the runner enforces them
    pool_size_max: int

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read the settings; raises EnvError naming an invalid one."""
        own = ".".join(map(str, sys.version_info[:2]))
        python_version = read.text(env, "QFLOW_PYTHON_VERSION", own)
        if python_version not in VERSIONS:
            raise read.EnvError(f"QFLOW_PYTHON_VERSION must be one of {', '.join(VERSIONS)}")
        lifetime_s = read.seconds(
            env, "QFLOW_SESSION_LIFETIME_S", _SESSION_S, low=1.0, high=366 * 86_400.0
        )
        return cls(
            database_url=read.required(env, "QFLOW_REGISTRY_DATABASE_URL"),
            auth_database_url=read.required(env, "QFLOW_REGISTRY_AUTH_DATABASE_URL"),
            engine_database_url=read.required(env, "QFLOW_REGISTRY_ENGINE_DATABASE_URL"),
            service_token=read.text(env, "QFLOW_SERVICE_TOKEN", ""),
            redis_url=read.optional(env, "QFLOW_REDIS_URL"),
            listen_default=_LISTEN_DEFAULT,
            runner_address=read.text(
                env,
                "QFLOW_RUNNER_INTERNAL_ADDRESS",
                read.text(env, "QFLOW_RUNNER_ADDRESS", _RUNNER_DEFAULT),
            ),
            trust=Trust.from_env(env),
            session_lifetime=timedelta(seconds=lifetime_s),
            python_version=python_version,
            caps=_caps(env),
            pool_size_max=read.integer(env, "QFLOW_POOL_SIZE_MAX", 8, low=1, high=100),
        )


def _caps(env: Mapping[str, str]) -> Mapping[str, int]:
    """Read QFLOW_NODE_<LIMIT>_MAX, as the runner does; 0 means no cap."""
    found = {setting.name: _cap(env, setting) for setting in CAPPED}
    return {name: cap for name, cap in found.items() if cap}


def _cap(env: Mapping[str, str], setting: Setting) -> int:
    if setting.kind == "duration":
        name = f"QFLOW_NODE_{setting.name.upper()}_S_MAX"
        return round(read.seconds(env, name, 0.0) * 1000)
    short = setting.name.removeprefix("limits.").replace("memory_limit_bytes", "memory_bytes")
    return read.integer(env, f"QFLOW_NODE_{short.upper()}_MAX", 0, high=1024**4)
