"""The backup program as a child process, run once per operation; prints one line of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from services import telemetry
from services.kit import child
from services.kit.errors import FailedPrecondition, QflowError, Unavailable
from services.telemetry.domain.backup import Backup, BackupKind, BackupReport, BackupState

_PASSED_ON: Final = ("PATH", "HOME", "LANG", "TMPDIR", "XDG_RUNTIME_DIR", "PYTHONPATH")
_SHORT_S: Final = 60.0
_LONG_S: Final = 24 * 3600.0
_OUTPUT_BYTES_MAX: Final = 16 << 20
_FOLDER: Final = Path(telemetry.__file__).parents[2]


class BackupRefused(FailedPrecondition):
    """The program refused an operation; holds its reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """The content of the backup folder, and the server's current timeline."""

    backups: list[Backup]
    archived_at: datetime | None
    gap_at: datetime | None  # base backups from before cannot be recovered to a later moment
    timeline: str


class BackupProgram:
    """Runs the backup program with the settings it needs from this process's environment."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = {
            name: value
            for name, value in env.items()
            if name in _PASSED_ON or name.startswith("QFLOW_BACKUP_") or name in _SETTINGS
        }
        self._known: tuple[list[tuple[str, int]], Listed] | None = None

    async def listed(self, *, asks_server: bool = False) -> Listed:
        """Return the backups; `asks_server` also reads the server's timeline."""
        marks = self._marks()
        if not asks_server and self._known is not None and self._known[0] == marks:
            return self._known[1]
        arguments = ("list", *(["--timeline"] if asks_server else []))
        answer = await self._run(*arguments, timeout_s=_SHORT_S)
        listed = Listed(
            backups=[_to_backup(each) for each in answer["backups"]],
            archived_at=_moment(answer["shipped_at"]),
            gap_at=_moment(answer["gap_at"]),
            timeline=answer["timeline"],
        )
        self._known = marks, listed
        return listed

    def _marks(self) -> list[tuple[str, int]]:
        """Return modification times that change when there is anything new to list.

        They do not reveal a file that was damaged in place.
        """
        folder = Path(self._env.get("QFLOW_BACKUP_FOLDER", "")) / "backups"
        paths = [
            folder,
            folder.parent / "wal" / "shipped",
            folder.parent / "wal" / "gap",
            *folder.glob("*/*.json"),
        ]
        found = []
        for path in sorted(paths):
            with suppress(OSError):
                found.append((str(path), path.stat().st_mtime_ns))
        return found

    async def take(self, kind: BackupKind, backup_id: str) -> None:
        """Take a backup under an id; raises BackupRefused with the reason."""
        await self._run("take", kind, "--id", backup_id, "--archived", timeout_s=_LONG_S)

    async def verify(self, backup_id: str) -> None:
        """Verify a backup; the report is stored with it."""
        await self._run("verify", backup_id, timeout_s=_LONG_S)

    async def delete(self, backup_id: str) -> None:
        """Delete a backup."""
        await self._run("delete", backup_id, timeout_s=_LONG_S)

    async def forget(self) -> list[str]:
        """Delete backups beyond the number to keep; returns their ids."""
        gone: list[str] = (await self._run("forget", timeout_s=_LONG_S))["gone"]
        return gone

    async def archive(self) -> None:
        """Archive the WAL until cancelled; raises Unavailable if the program ends by itself."""
        try:
            await self._run("archive", timeout_s=_LONG_S)
        except QflowError as error:
            raise Unavailable("BACKUP_ARCHIVE_INTERRUPTED", error.message) from error

    async def _run(self, *arguments: str, timeout_s: float) -> dict[str, Any]:
        try:
            finished = await child.run(
                [sys.executable, "-m", "services.standalone.backup", *arguments],
                stdin=b"",
                env={**self._env, "QFLOW_BACKUP_PARENT": str(os.getpid())},
                timeout_s=timeout_s,
                output_bytes_max=_OUTPUT_BYTES_MAX,
                cwd=_FOLDER,
                keep_stderr=True,
            )
        except TimeoutError:
            raise Unavailable("BACKUP_PROGRAM_SLOW", "the backup program did not finish") from None
        try:
            answer: dict[str, Any] = json.loads(finished.stdout)
        except ValueError:
            said = finished.stderr.decode("utf-8", "replace").strip()
            raise Unavailable(
                "BACKUP_PROGRAM_FAILED",
                f"the backup program ended with code {finished.code}: {said[-500:]}",
            ) from None
        if "error" in answer:
            raise BackupRefused("BACKUP_REFUSED", answer["error"])
        return answer


# Settings of the program besides those of backups.
_SETTINGS: Final = ("QFLOW_HOME", "QFLOW_POSTGRES_BIN", "QFLOW_FILES_S3_BUCKET")


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _to_backup(told: Mapping[str, Any]) -> Backup:
    manifest, report = told["manifest"], told["report"]
    problems = [told["problem"]] if told["problem"] else []
    if report is not None:
        problems += report["problems"]
    if problems:
        state = BackupState.FAILED
    else:
        state = BackupState.TAKEN if report is None else BackupState.VERIFIED
    if manifest is None:
        return Backup(id=told["id"], state=state, problems=problems)
    return Backup(
        id=told["id"],
        state=state,
        kind=manifest["kind"],
        started_at=datetime.fromisoformat(manifest["started_at"]),
        finished_at=datetime.fromisoformat(manifest["finished_at"]),
        recovery_point=datetime.fromisoformat(manifest["recovery_point"]),
        timeline=f"{manifest['system_id']} {manifest['first_segment'][:8]}",
        size_bytes=sum(part["size_bytes"] for part in manifest["parts"]),
        files_count=manifest["files_count"],
        files_bytes=manifest["files_bytes"],
        is_encrypted=bool(manifest["key_id"]),
        postgres_major=manifest["postgres_major"],
        schema_revision=manifest["schema_revision"],
        report=None if report is None else _to_report(report),
        problems=problems,
    )


def _to_report(told: Mapping[str, Any]) -> BackupReport:
    return BackupReport(
        verified_at=datetime.fromisoformat(told["verified_at"]),
        recovery_point=datetime.fromisoformat(told["recovery_point"]),
        recovery_time_s=told["recovery_time_s"],
        invariants_asked=told["invariants_asked"],
        invariants_held=told["invariants_held"],
        rows_read=told["rows_read"],
        files_checked=told["files_checked"],
        signed_here=told["signed_here"],
    )
