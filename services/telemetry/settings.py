"""Settings of telemetry from its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Self

from services.kit import env as read
from services.kit.rpc.listener import Listener
from services.kit.run import listener
from services.telemetry.domain.backup import BackupPolicy
from services.telemetry.domain.retention import RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, read once."""

    database_url: str = field(repr=False)
    maint_database_url: str = field(repr=False)
    doctor_database_url: str = field(repr=False)
    listener: Listener
    home: Path
    pool_size_max: int
    health_interval_s: float
    retention_interval_s: float
    measures_executions: bool
    measures_nodes: bool
    keep: Mapping[str, timedelta]
    backups: BackupPolicy

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read the settings; raises EnvError naming a missing or invalid one."""
        keeps_backups = read.optional(env, "QFLOW_BACKUP_FOLDER") is not None
        if keeps_backups:
            read.required(env, "QFLOW_BACKUP_DATABASE_URL")  # read by the backup program itself
        return cls(
            database_url=read.required(env, "QFLOW_TELEMETRY_DATABASE_URL"),
            maint_database_url=read.required(env, "QFLOW_TELEMETRY_MAINT_DATABASE_URL"),
            doctor_database_url=read.required(env, "QFLOW_TELEMETRY_DOCTOR_DATABASE_URL"),
            listener=listener(env, "telemetry", "127.0.0.1:7104"),
            home=read.path(env, "QFLOW_HOME"),
            pool_size_max=read.integer(env, "QFLOW_POOL_SIZE_MAX", 10, low=1, high=100),
            health_interval_s=read.seconds(env, "QFLOW_HEALTH_INTERVAL_S", 60.0, low=1.0),
            retention_interval_s=read.seconds(env, "QFLOW_RETENTION_INTERVAL_S", 3600.0, low=1.0),
            measures_executions=read.flag(env, "QFLOW_EXECUTION_METRICS", default=True),
            measures_nodes=read.flag(env, "QFLOW_NODE_METRICS", default=False),
            keep={
                rule.subject: timedelta(
                    days=read.integer(
                        env, rule.setting, rule.keep_days, low=rule.keep_days_min, high=36_500
                    )
                )
                for rule in RULES
                if rule.keep_days is not None
            },
            backups=BackupPolicy(
                is_enabled=keeps_backups,
                interval=timedelta(
                    seconds=read.seconds(
                        env, "QFLOW_BACKUP_INTERVAL_S", 86_400.0, low=60.0, high=31 * 86_400.0
                    )
                ),
                keep=read.integer(env, "QFLOW_BACKUP_KEEP", 7, low=1, high=1000),
                verifies=read.flag(env, "QFLOW_BACKUP_VERIFY", default=True),
            ),
        )
