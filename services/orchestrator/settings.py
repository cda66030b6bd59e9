"""Settings of the orchestrator, read once and passed as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from services.kit import env as read
from services.kit.rpc.tls import Trust


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of the orchestrator."""

    database_url: str = field(repr=False)
    engine_database_url: str = field(repr=False)
    home: Path
    lease_ttl_s: float
    pool_size_max: int
    attach_listen: str
    attach_advertise: str
    attach_lane: bool
    standby: bool
    webhook_key_file: Path
    webhook_loopback: bool
    token: str = field(repr=False)
    trust: Trust | None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read the environment; a missing or wrong value stops the process with its name."""
        home = read.path(env, "QFLOW_HOME")
        attach_listen = read.text(
            env, "QFLOW_ORCHESTRATOR_ATTACH_LISTEN", f"unix:{home}/run/attach.sock"
        )
        return cls(
            database_url=read.required(env, "QFLOW_ORCHESTRATOR_DATABASE_URL"),
            engine_database_url=read.required(env, "QFLOW_ORCHESTRATOR_ENGINE_DATABASE_URL"),
            home=home,
            lease_ttl_s=read.seconds(env, "QFLOW_LEASE_TTL_S", 10.0, low=0.5),
            pool_size_max=read.integer(env, "QFLOW_POOL_SIZE_MAX", 6, low=1),
            attach_listen=attach_listen,
            attach_advertise=read.text(env, "QFLOW_ORCHESTRATOR_ATTACH_ADVERTISE", attach_listen),
            attach_lane=read.flag(env, "QFLOW_ORCHESTRATOR_ATTACH_LANE", default=True),
            token=read.text(env, "QFLOW_SERVICE_TOKEN", ""),
            trust=Trust.from_env(env),
            standby=read.flag(env, "QFLOW_ORCHESTRATOR_STANDBY"),
            webhook_key_file=read.path(
                env, "QFLOW_WEBHOOK_KEY_FILE", home / "secrets" / "webhook.key"
            ),
            webhook_loopback=read.flag(env, "QFLOW_WEBHOOK_LOOPBACK"),
        )

    @property
    def lane_path(self) -> Path:
        """The path of the lane socket: beside the attach socket, else in the home."""
        listen = self.attach_listen
        if not listen.startswith("unix:"):
            return self.home / "run" / "attach.lane"
        socket = Path(listen.removeprefix("unix://").removeprefix("unix:"))
        return socket.with_suffix(".lane" if socket.suffix != ".lane" else ".lanes")
