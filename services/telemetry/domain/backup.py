"""Backups as telemetry knows them, and when the next one is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final, Literal

BackupKind = Literal["base", "dump"]
# After one that failed: soon enough, and not so often that nothing else is done.
RETRY_AFTER: Final = timedelta(minutes=15)


class BackupState(Enum):
    """How far a backup is."""

    TAKING = "taking"
    TAKEN = "taken"
    VERIFYING = "verifying"
    VERIFIED = "verified"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """What proving a backup found."""

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
    """One backup; what is not known of it yet, or no longer, is None or nothing."""

    id: str
    state: BackupState
    kind: BackupKind | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    recovery_point: datetime | None = None
    timeline: str = ""  # of a base backup: which history of the server it is of
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
    """How a deployment keeps backups; off where it names no folder."""

    is_enabled: bool
    interval: timedelta
    keep: int
    verifies: bool


def new_id(now: datetime, noise: str) -> str:
    """Name a backup so that names sort by time."""
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
    """Tell whether a base backup is due, of backups sorted from the newest.

    One of another history, or from before a gap of the archive, leads to no moment of now: then a
    new one is due at once.
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
    """Give when the newest proof was made that a backup can be relied on."""
    times = [
        each.report.verified_at
        for each in backups
        if each.state is BackupState.VERIFIED and each.report is not None
    ]
    return max(times, default=None)


def _begun(backup: Backup) -> datetime:
    assert backup.started_at is not None
    return backup.started_at
