"""Backups as telemetry sees them, and when the next one is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final, Literal

BackupKind = Literal["base", "dump"]
# The delay after a failed backup.
RETRY_AFTER: Final = timedelta(minutes=15)


class BackupState(Enum):
    """The state of a backup."""

    TAKING = "taking"
    TAKEN = "taken"
    VERIFYING = "verifying"
    VERIFIED = "verified"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """The result of verifying a backup."""

    verified_at: datetime
    recovery_point: datetime
    recovery_time_s: float
    invariants_asked: int
    invariants_held: int
    rows_read: int
    files_checked: int
    signed_here: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup; values that are not known, or not yet, are None or empty."""

    id: str
    state: BackupState
    kind: BackupKind | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    recovery_point: datetime | None = None
    timeline: str = ""  # of a base backup: the server's history it belongs to
    size_bytes: int = 0
    files_count: int = 0
    files_bytes: int = 0
    is_encrypted: bool = False
    postgres_major: int = 0
    schema_revision: str = ""
    report: BackupReport | None = None
    problems: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupPolicy:
    """The backup policy of a deployment; disabled without a folder."""

    is_enabled: bool
    interval: timedelta
    keep: int
    verifies: bool


def new_id(now: datetime, noise: str) -> str:
    """Return a new id; ids sort by time."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%S%fZ}-{noise}"


def is_due(
    backups: Sequence[Backup],
    policy: BackupPolicy,
    now: datetime,
    *,
    failed_at: datetime | None,
    timeline: str,
    gap_at: datetime | None,
) -> bool:
    """Return whether a base backup is due; `backups` are sorted newest first.

    A backup from another timeline, or from before a gap in the archive, cannot be recovered to the
    present; then a new one is due at once.
    """
    if failed_at is not None and now - failed_at < RETRY_AFTER:
        return False
    newest = next(
        (
            each
            for each in backups
            if each.kind == "base"
            and each.timeline == timeline
            and each.started_at is not None
            and (gap_at is None or each.started_at > gap_at)
        ),
        None,
    )
    return newest is None or now - _begun(newest) >= policy.interval


def last_verified(backups: Sequence[Backup]) -> datetime | None:
    """Return when a backup was last verified successfully."""
    times = [
        each.report.verified_at
        for each in backups
        if each.state is BackupState.VERIFIED and each.report is not None
    ]
    return max(times, default=None)


def _begun(backup: Backup) -> datetime:
    assert backup.started_at is not None
    return backup.started_at
