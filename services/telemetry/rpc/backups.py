"""BackupService."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from qflow.telemetry.v1 import backup_service_pb2 as pb
from qflow.telemetry.v1.backup_service_pb2_grpc import BackupServiceServicer

from services.kit.caller import current_caller
from services.kit.rpc.call import Context
from services.kit.rpc.codec import timestamp
from services.kit.rpc.pages import Pages
from services.kit.rpc.request_key import answered, request_key
from services.telemetry.domain.backup import Backup, BackupKind, BackupReport, BackupState
from services.telemetry.usecases.backups import Backups

_KINDS: Final[dict[pb.BackupKind.ValueType, BackupKind]] = {
    pb.BACKUP_KIND_UNSPECIFIED: "base",
    pb.BACKUP_KIND_BASE: "base",
    pb.BACKUP_KIND_DUMP: "dump",
}
_KINDS_TOLD: Final = {
    None: pb.BACKUP_KIND_UNSPECIFIED,
    "base": pb.BACKUP_KIND_BASE,
    "dump": pb.BACKUP_KIND_DUMP,
}
_STATES: Final = {
    BackupState.TAKING: pb.BACKUP_STATE_TAKING,
    BackupState.TAKEN: pb.BACKUP_STATE_TAKEN,
    BackupState.VERIFYING: pb.BACKUP_STATE_VERIFYING,
    BackupState.VERIFIED: pb.BACKUP_STATE_VERIFIED,
    BackupState.FAILED: pb.BACKUP_STATE_FAILED,
}


class BackupServicer(BackupServiceServicer):
    """Serves backups, for administrators."""

    def __init__(self, backups: Backups) -> None:
        self._backups = backups

    async def StartBackup(
        self, request: pb.StartBackupRequest, context: Context
    ) -> pb.StartBackupResponse:
        """See the contract."""
        begun = await self._backups.start(
            current_caller(),
            _KINDS[request.kind],
            verify=request.verify,
            key=request_key(request, "telemetry.StartBackup", _started),
        )
        return answered(pb.StartBackupResponse, begun, _started)

    async def GetBackup(
        self, request: pb.GetBackupRequest, context: Context
    ) -> pb.GetBackupResponse:
        """See the contract."""
        return pb.GetBackupResponse(backup=_to_pb(await self._backups.get(request.backup_id)))

    async def ListBackups(
        self, request: pb.ListBackupsRequest, context: Context
    ) -> pb.ListBackupsResponse:
        """See the contract."""
        pages = Pages("telemetry.ListBackups", request)
        after = pages.after_name()
        found = await self._backups.list()
        shown, token = await pages.cut(
            [each for each in found if after is None or each.id < after],
            encode=_to_pb,
            key=lambda backup: (backup.id,),
        )
        return pb.ListBackupsResponse(backups=shown, next_page_token=token)

    async def VerifyBackup(
        self, request: pb.VerifyBackupRequest, context: Context
    ) -> pb.VerifyBackupResponse:
        """See the contract."""
        begun = await self._backups.verify(
            current_caller(),
            request.backup_id,
            key=request_key(request, "telemetry.VerifyBackup", _verified),
        )
        return answered(pb.VerifyBackupResponse, begun, _verified)

    async def DeleteBackup(
        self, request: pb.DeleteBackupRequest, context: Context
    ) -> pb.DeleteBackupResponse:
        """See the contract."""
        gone = await self._backups.delete(
            current_caller(),
            request.backup_id,
            key=request_key(request, "telemetry.DeleteBackup", _deleted),
        )
        return answered(pb.DeleteBackupResponse, gone, _deleted)

    async def GetBackupStatus(
        self, request: pb.GetBackupStatusRequest, context: Context
    ) -> pb.GetBackupStatusResponse:
        """See the contract."""
        status = await self._backups.status()
        return pb.GetBackupStatusResponse(
            enabled=status.policy.is_enabled,
            interval=_span(status.policy.interval),
            keep_count=status.policy.keep,
            verify=status.policy.verifies,
            last_verify_time=_moment(status.last_verified_at),
            archive_time=_moment(status.archived_at),
            busy_backup_id=status.busy_id,
            last_problem=status.last_problem,
        )


def _started(backup: Backup) -> pb.StartBackupResponse:
    return pb.StartBackupResponse(backup=_to_pb(backup))


def _verified(backup: Backup) -> pb.VerifyBackupResponse:
    return pb.VerifyBackupResponse(backup=_to_pb(backup))


def _deleted(_: None) -> pb.DeleteBackupResponse:
    return pb.DeleteBackupResponse()


def _to_pb(backup: Backup) -> pb.Backup:
    return pb.Backup(
        id=backup.id,
        kind=_KINDS_TOLD[backup.kind],
        state=_STATES[backup.state],
        start_time=_moment(backup.started_at),
        end_time=_moment(backup.finished_at),
        recovery_point_time=_moment(backup.recovery_point),
        size_bytes=backup.size_bytes,
        file_count=backup.files_count,
        file_size_bytes=backup.files_bytes,
        encrypted=backup.is_encrypted,
        postgres_major_version=backup.postgres_major,
        schema_revision=backup.schema_revision,
        report=None if backup.report is None else _report(backup.report),
        problems=backup.problems,
    )


def _report(report: BackupReport) -> pb.BackupReport:
    return pb.BackupReport(
        verify_time=timestamp(report.verified_at),
        recovery_point_time=timestamp(report.recovery_point),
        recovery_duration=_span(timedelta(seconds=report.recovery_time_s)),
        invariants_asked=report.invariants_asked,
        invariants_held=report.invariants_held,
        row_count=report.rows_read,
        file_count=report.files_checked,
        signed_here=report.signed_here,
    )


def _moment(moment: datetime | None) -> Timestamp | None:
    return None if moment is None else timestamp(moment)


def _span(span: timedelta) -> Duration:
    told = Duration()
    told.FromTimedelta(span)
    return told
