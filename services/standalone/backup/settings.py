"""Settings of backups, for the commands and for the program that telemetry runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from services.kit import env as read
from services.standalone.backup.folder import BackupFolder
from services.standalone.backup.keeping import KEEP_DEFAULT
from services.standalone.backup.keys import encryption_key
from services.standalone.home import Home
from services.standalone.process import StandaloneError


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupSettings:
    """Where backups are stored and how they are made."""

    folder: BackupFolder
    key: bytes | None
    files: Path | None
    scratch: Path
    keep: int
    ship_interval_s: float
    is_synchronous: bool

    @classmethod
    def from_env(cls, home: Home, env: Mapping[str, str]) -> Self:
        """Read the settings; raises StandaloneError naming a missing or invalid one."""
        folder = env.get("QFLOW_BACKUP_FOLDER")
        if not folder:
            raise StandaloneError(
                "set QFLOW_BACKUP_FOLDER to the folder that backups go to, on another disk than "
                f"{home.root}"
            )
        try:
            return cls(
                folder=BackupFolder(Path(folder), home),
                key=encryption_key(env.get("QFLOW_BACKUP_KEY_FILE")),
                files=None if env.get("QFLOW_FILES_S3_BUCKET") else home.root / "files",
                scratch=Path(env.get("QFLOW_BACKUP_SCRATCH") or home.root / "backup-scratch"),
                keep=read.integer(env, "QFLOW_BACKUP_KEEP", KEEP_DEFAULT, low=1, high=1000),
                ship_interval_s=read.seconds(env, "QFLOW_BACKUP_SHIP_INTERVAL_S", 15.0, low=1.0),
                is_synchronous=read.flag(env, "QFLOW_BACKUP_SYNCHRONOUS"),
            )
        except read.EnvError as error:
            raise StandaloneError(str(error)) from error
