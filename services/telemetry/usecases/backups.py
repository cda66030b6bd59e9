"""Backups of a deployment: one operation at a time, by schedule or on request."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog

from services.kit.caller import Caller
from services.kit.errors import (
    FailedPrecondition,
    NotFound,
    QflowError,
    ResourceExhausted,
    Unavailable,
)
from services.kit.figures import Figure, counter, gauge
from services.kit.idempotency import Replayed, RequestKey, do_once, replay, write_once
from services.kit.pg import Db, Pool
from services.telemetry.domain.backup import (
    Backup,
    BackupKind,
    BackupPolicy,
    BackupState,
    is_due,
    last_verified,
    new_id,
)
from services.telemetry.gateways.backup_program import BackupProgram, BackupRefused, Listed

log = structlog.get_logger()

_FAILED_MAX = 20


@dataclass(frozen=True, slots=True)
class _Work:
    """A requested operation: take a backup, verify one, or both."""

    backup: Backup
    takes: bool
    verifies: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupStatus:
    """The state of backups."""

    policy: BackupPolicy
    last_verified_at: datetime | None
    archived_at: datetime | None
    busy_id: str
    last_problem: str


class Backups:
    """Manages this deployment's backups.

    The folder is authoritative; this object holds what is in progress and recent failures.
    """

    def __init__(self, pool: Pool, program: BackupProgram, policy: BackupPolicy) -> None:
        self._pool = pool
        self._program = program
        self.policy = policy
        self.asked = asyncio.Event()
        self._work: _Work | None = None
        self._failed: dict[str, Backup] = {}
        self._failed_at: datetime | None = None
        self._last_problem = ""
        self._failures = 0
        self._seen = Listed(backups=[], archived_at=None, gap_at=None, timeline="")

    # For callers.

    async def start(
        self, caller: Caller, kind: BackupKind, *, verify: bool, key: RequestKey[Backup] | None
    ) -> Backup | Replayed:
        """Start to take a backup; returns it as in progress."""
        self._refuse_off()

        async def write(_: Db) -> Backup:
            now = datetime.now(UTC)
            backup = Backup(
                id=new_id(now, secrets.token_hex(4)),
                state=BackupState.TAKING,
                kind=kind,
                started_at=now,
            )
            self._ask(_Work(backup, takes=True, verifies=verify))
            return backup

        return await do_once(self._pool, caller, key, write)

    async def verify(
        self, caller: Caller, backup_id: str, *, key: RequestKey[Backup] | None
    ) -> Backup | Replayed:
        """Start to verify a backup; returns it as in progress."""
        if (answer := await replay(self._pool, caller, key)) is not None:
            return answer
        found = await self._whole(backup_id)

        async def write(_: Db) -> Backup:
            backup = replace(found, state=BackupState.VERIFYING)
            self._ask(_Work(backup, takes=False, verifies=True))
            return backup

        return await write_once(self._pool, caller, key, write)

    async def delete(
        self, caller: Caller, backup_id: str, *, key: RequestKey[None] | None
    ) -> Replayed | None:
        """Delete a backup."""
        if (answer := await replay(self._pool, caller, key)) is not None:
            return answer
        await self._whole(backup_id)
        self._refuse_busy()

        async def write(_: Db) -> None:
            await self._program.delete(backup_id)
            log.info("backup_deleted", backup=backup_id)

        return await write_once(self._pool, caller, key, write)

    async def get(self, backup_id: str) -> Backup:
        """Return a backup with its state; raises NotFound if there is none."""
        for each in await self.list():
            if each.id == backup_id:
                return each
        raise NotFound("BACKUP_NOT_FOUND", f"there is no backup {backup_id}")

    async def list(self) -> list[Backup]:
        """Return all backups, newest first: those in the folder, in progress, and failed."""
        self._refuse_off()
        known = self._failed | {each.id: each for each in (await self._look()).backups}
        if self._work is not None:
            known[self._work.backup.id] = self._work.backup
        return sorted(known.values(), key=lambda each: each.id, reverse=True)

    async def status(self) -> BackupStatus:
        """Return the state of backups."""
        seen = await self._look() if self.policy.is_enabled else self._seen
        return BackupStatus(
            policy=self.policy,
            last_verified_at=last_verified(seen.backups),
            archived_at=seen.archived_at,
            busy_id="" if self._work is None else self._work.backup.id,
            last_problem=self._last_problem,
        )

    # For the loops.

    @property
    def is_busy(self) -> bool:
        """Whether an operation is requested or in progress."""
        return self._work is not None

    async def look_at_schedule(self) -> None:
        """Request a base backup if one is due and nothing is in progress."""
        try:
            seen = await self._look(asks_server=True)
        except BackupRefused as error:
            # The server or the folder's disk may be away for a while: retried by the loop.
            self._last_problem = error.message
            raise Unavailable("BACKUPS_INTERRUPTED", error.message) from error
        now = datetime.now(UTC)
        due = is_due(
            seen.backups,
            self.policy,
            now,
            failed_at=self._failed_at,
            timeline=seen.timeline,
            gap_at=seen.gap_at,
        )
        if due and self._work is None:
            backup = Backup(
                id=new_id(now, secrets.token_hex(4)),
                state=BackupState.TAKING,
                kind="base",
                started_at=now,
            )
            self._ask(_Work(backup, takes=True, verifies=self.policy.verifies))

    async def do_asked(self) -> None:
        """Perform the requested operation; a failure is logged and kept, not raised."""
        work = self._work
        if work is None:
            return
        try:
            await self._do(work)
            self._last_problem, self._failed_at = "", None
        except QflowError as error:
            self._note_failure(work, error)
        finally:
            self._work = None
        with suppress(QflowError):  # best effort: otherwise the status is that of the last look
            await self._look()

    async def archive(self) -> None:
        """Archive the WAL until cancelled."""
        await self._program.archive()

    def figures(self) -> Iterable[Figure]:
        """Yield metrics about backups."""
        text = "Whether backups are kept: 1, else 0."
        yield gauge("qflow_telemetry_backup_enabled", text, float(self.policy.is_enabled))
        text = "When a backup was last proven, in seconds since 1970; 0: never."
        verified = last_verified(self._seen.backups)
        name = "qflow_telemetry_backup_last_verified_timestamp_seconds"
        yield gauge(name, text, verified.timestamp() if verified else 0.0)
        text = "Until when the archive has what was committed, in seconds since 1970; 0: not yet."
        archived = self._seen.archived_at
        name = "qflow_telemetry_backup_archive_timestamp_seconds"
        yield gauge(name, text, archived.timestamp() if archived else 0.0)
        text = "Backups that could not be taken or proven."
        yield counter("qflow_telemetry_backup_failures", text, self._failures)

    async def _do(self, work: _Work) -> None:
        backup = work.backup
        if work.takes:
            assert backup.kind is not None
            await self._program.take(backup.kind, backup.id)
            log.info("backup_taken", backup=backup.id, kind=backup.kind)
        if work.verifies:
            whole = next(each for each in (await self._look()).backups if each.id == backup.id)
            self._work = replace(work, backup=replace(whole, state=BackupState.VERIFYING))
            await self._program.verify(backup.id)
            proven = next(each for each in (await self._look()).backups if each.id == backup.id)
            if proven.problems:
                raise BackupRefused("BACKUP_NOT_PROVEN", proven.problems[0])
            log.info("backup_verified", backup=backup.id)
        for gone in await self._program.forget() if work.takes else ():
            log.info("backup_forgotten", backup=gone)

    def _note_failure(self, work: _Work, error: QflowError) -> None:
        self._failures += 1
        self._failed_at = datetime.now(UTC)
        self._last_problem = error.message
        log.error("backup_failed", backup=work.backup.id, reason=error.reason, why=error.message)
        failed = replace(work.backup, state=BackupState.FAILED, problems=(error.message,))
        self._failed = dict([*self._failed.items(), (failed.id, failed)][-_FAILED_MAX:])

    def _ask(self, work: _Work) -> None:
        self._refuse_busy()
        self._work = work
        self.asked.set()

    async def _whole(self, backup_id: str) -> Backup:
        self._refuse_off()
        for each in (await self._look()).backups:
            if each.id == backup_id:
                return each
        raise NotFound("BACKUP_NOT_FOUND", f"there is no whole backup {backup_id}")

    async def _look(self, *, asks_server: bool = False) -> Listed:
        seen = await self._program.listed(asks_server=asks_server)
        self._seen = seen
        return seen

    def _refuse_off(self) -> None:
        if not self.policy.is_enabled:
            raise FailedPrecondition(
                "BACKUPS_OFF", "no backups are kept here: QFLOW_BACKUP_FOLDER is not set"
            )

    def _refuse_busy(self) -> None:
        if self._work is not None:
            raise ResourceExhausted(
                "BACKUPS_BUSY",
                f"backup {self._work.backup.id} is in progress; try again when it is done",
                retry_after_s=30.0,
            )
