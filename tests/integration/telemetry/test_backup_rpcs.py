"""Backups over the API: asked for, watched, proven, removed; and by themselves."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from qflow.telemetry.v1 import backup_service_pb2 as pb
from qflow.telemetry.v1.backup_service_pb2_grpc import BackupServiceStub

from services.telemetry.domain.backup import (
    Backup,
    BackupPolicy,
    BackupReport,
    BackupState,
    is_due,
    last_verified,
)
from tests import factories
from tests.integration.telemetry.conftest import Telemetry, serving
from tests.support.database import Database

_NOW = datetime(2026, 1, 2, tzinfo=UTC)
_POLICY = BackupPolicy(is_enabled=True, interval=timedelta(days=1), keep=7, verifies=True)


@pytest.fixture
def admin(sql: psycopg.Connection) -> factories.User:
    return factories.user(sql, role="admin")


@pytest.fixture
async def kept(database: Database, tmp_path: Path) -> AsyncIterator[Telemetry]:
    """Telemetry of a deployment that keeps backups, on a schedule that is due at once."""
    env = {
        "QFLOW_BACKUP_FOLDER": str(tmp_path / "backups"),
        "QFLOW_BACKUP_DATABASE_URL": database.url("qflow_backup"),
        "QFLOW_BACKUP_SHIP_INTERVAL_S": "1",
    }
    async with serving(database, tmp_path, env) as telemetry:
        yield telemetry
    database.drop_slots()


def stub_of(telemetry: Telemetry, user: factories.User) -> Any:
    return BackupServiceStub(telemetry.channel(user))


async def until(ask: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
    for _ in range(600):
        answer = await ask()
        if holds(answer):
            return answer
        await asyncio.sleep(0.1)  # a child process works on it
    raise AssertionError(answer)


@asynccontextmanager
async def refused(code: grpc.StatusCode, reason: str) -> AsyncIterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() == code
    trailers = caught.value.trailing_metadata()
    assert any(reason.encode() in value for _, value in trailers if isinstance(value, bytes))


@pytest.mark.slow
async def test_backups_are_taken_and_proven_by_themselves_and_when_asked(
    kept: Telemetry, admin: factories.User
) -> None:
    """E20: the schedule's first one, one that is asked for twice, one that is removed."""
    stub = stub_of(kept, admin)

    async def status() -> pb.GetBackupStatusResponse:
        answer: pb.GetBackupStatusResponse = await stub.GetBackupStatus(pb.GetBackupStatusRequest())
        return answer

    told = await until(status, lambda told: told.HasField("last_verify_time"))
    assert told.enabled
    assert told.last_problem == ""
    told = await until(status, lambda told: told.HasField("archive_time"))
    assert datetime.now(UTC) - told.archive_time.ToDatetime(UTC) < timedelta(seconds=60)
    await until(status, lambda told: told.busy_backup_id == "")
    [first] = (await stub.ListBackups(pb.ListBackupsRequest())).backups
    assert first.kind == pb.BACKUP_KIND_BASE
    assert first.state == pb.BACKUP_STATE_VERIFIED
    assert first.report.invariants_held == first.report.invariants_asked > 20
    assert first.report.signed_here

    asked = pb.StartBackupRequest(kind=pb.BACKUP_KIND_DUMP, request_id=str(uuid.uuid4()))
    begun = (await stub.StartBackup(asked)).backup
    assert begun.state == pb.BACKUP_STATE_TAKING
    assert (await stub.StartBackup(asked)).backup.id == begun.id
    async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "BACKUPS_BUSY"):
        await stub.StartBackup(pb.StartBackupRequest())

    async def second() -> pb.Backup:
        backup: pb.Backup = (await stub.GetBackup(pb.GetBackupRequest(backup_id=begun.id))).backup
        return backup

    await until(second, lambda backup: backup.state == pb.BACKUP_STATE_TAKEN)
    await until(status, lambda told: told.busy_backup_id == "")
    proven = await stub.VerifyBackup(pb.VerifyBackupRequest(backup_id=begun.id))
    assert proven.backup.state == pb.BACKUP_STATE_VERIFYING
    await until(second, lambda backup: backup.state == pb.BACKUP_STATE_VERIFIED)
    await until(status, lambda told: told.busy_backup_id == "")

    page = await stub.ListBackups(pb.ListBackupsRequest(page_size=1))
    assert [each.id for each in page.backups] == [begun.id]
    rest = await stub.ListBackups(
        pb.ListBackupsRequest(page_size=1, page_token=page.next_page_token)
    )
    assert [each.id for each in rest.backups] == [first.id]
    await stub.DeleteBackup(pb.DeleteBackupRequest(backup_id=first.id))
    async with refused(grpc.StatusCode.NOT_FOUND, "BACKUP_NOT_FOUND"):
        await stub.GetBackup(pb.GetBackupRequest(backup_id=first.id))


@pytest.mark.slow
async def test_the_command_takes_proves_lists_and_removes_a_backup(
    kept: Telemetry, admin: factories.User
) -> None:
    told: list[str] = []

    async def qflow(*arguments: str) -> str:
        services = ("REGISTRY", "ORCHESTRATOR", "RUNNER", "TELEMETRY")
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "qflow", "backup", *arguments),
            env={
                **os.environ,
                **{f"QFLOW_{name}": kept.address for name in services},
                "QFLOW_TOKEN": admin.token,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, said = await child.communicate()
        told.append(said.decode())
        assert child.returncode == 0, said.decode()
        return out.decode()

    stub = stub_of(kept, admin)
    # The schedule's own first one, which is due at once, would be in the way.
    await until(
        lambda: stub.GetBackupStatus(pb.GetBackupStatusRequest()),
        lambda status: status.HasField("last_verify_time") and not status.busy_backup_id,
    )
    taken = json.loads(await qflow("take", "--dump", "--verify", "--json"))
    assert taken["state"] == "BACKUP_STATE_VERIFIED"
    assert taken["id"] in await qflow("ls")
    assert "the newest that is proven" in await qflow("status")
    await qflow("rm", taken["id"])
    assert taken["id"] not in await qflow("ls")


@pytest.mark.slow
async def test_a_backup_that_fails_says_why(
    kept: Telemetry, admin: factories.User, tmp_path: Path
) -> None:
    stub = stub_of(kept, admin)

    async def backups() -> Any:
        return (await stub.ListBackups(pb.ListBackupsRequest())).backups

    await until(backups, lambda found: any(b.state == pb.BACKUP_STATE_VERIFIED for b in found))
    [first] = await backups()
    stored = tmp_path / "backups" / "backups" / first.id / "base.tar.gz"
    with stored.open("r+b") as file:
        file.seek(1000)
        file.write(b"not what was written")

    async def status() -> Any:
        return await stub.GetBackupStatus(pb.GetBackupStatusRequest())

    await until(status, lambda told: told.busy_backup_id == "")
    await stub.VerifyBackup(pb.VerifyBackupRequest(backup_id=first.id))
    [failed] = await until(backups, lambda found: found[0].state == pb.BACKUP_STATE_FAILED)
    assert "base.tar.gz is not as it was written" in failed.problems[0]


async def test_a_deployment_without_backups_says_so(
    telemetry: Telemetry, admin: factories.User
) -> None:
    stub = stub_of(telemetry, admin)
    assert not (await stub.GetBackupStatus(pb.GetBackupStatusRequest())).enabled
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "BACKUPS_OFF"):
        await stub.StartBackup(pb.StartBackupRequest())
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "BACKUPS_OFF"):
        await stub.ListBackups(pb.ListBackupsRequest())


async def test_users_that_are_no_administrators_are_refused(
    telemetry: Telemetry, owner: factories.User
) -> None:
    """Backups hold every tenant's rows."""
    async with refused(grpc.StatusCode.PERMISSION_DENIED, ""):
        await stub_of(telemetry, owner).ListBackups(pb.ListBackupsRequest())


def base(*, age: timedelta, timeline: str = "1 00000001", verified: bool = False) -> Backup:
    report = BackupReport(
        verified_at=_NOW - age,
        recovery_point=_NOW,
        recovery_time_s=1.0,
        invariants_asked=1,
        invariants_held=1,
        rows_read=1,
        files_checked=0,
        signed_here=True,
    )
    return Backup(
        id="b",
        state=BackupState.VERIFIED if verified else BackupState.FAILED,
        kind="base",
        started_at=_NOW - age,
        timeline=timeline,
        report=report,
    )


@pytest.mark.parametrize(
    ("backups", "failed_ago", "gap_ago", "due"),
    [
        ([], None, None, True),
        ([], timedelta(minutes=14), None, False),
        ([], timedelta(minutes=16), None, True),
        ([base(age=timedelta(hours=23))], None, None, False),
        ([base(age=timedelta(hours=24))], None, None, True),
        ([base(age=timedelta(hours=1), timeline="1 00000002")], None, None, True),
        ([base(age=timedelta(hours=2))], None, timedelta(hours=1), True),
        ([base(age=timedelta(hours=2))], None, timedelta(hours=3), False),
    ],
)
def test_a_backup_is_due_by_the_age_of_the_newest_of_this_history(
    backups: list[Backup],
    failed_ago: timedelta | None,
    gap_ago: timedelta | None,
    due: bool,  # noqa: FBT001
) -> None:
    failed_at = None if failed_ago is None else _NOW - failed_ago
    found = is_due(
        backups,
        _POLICY,
        _NOW,
        failed_at=failed_at,
        timeline="1 00000001",
        gap_at=None if gap_ago is None else _NOW - gap_ago,
    )
    assert found is due


def test_only_a_proof_that_went_well_counts_as_one() -> None:
    old = base(age=timedelta(hours=2), verified=True)
    assert last_verified([base(age=timedelta(hours=1)), old]) == _NOW - timedelta(hours=2)
    assert last_verified([base(age=timedelta(hours=1))]) is None
