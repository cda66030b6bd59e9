"""Verify a backup: restore it into a separate server and examine the copy."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, LiteralString
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from services.kit.errors import QflowError
from services.kit.pg import open_pool
from services.standalone.backup import bytes_of_files, keys
from services.standalone.backup.folder import REPORT, BackupFolder, Entry
from services.standalone.backup.manifest import Listed, Manifest, Report
from services.standalone.backup.restore import prove, refuse_unfit, restored
from services.standalone.backup.sealed import CorruptError
from services.standalone.backup.take import count_rows
from services.standalone.postgres import DATABASE, Binaries
from services.standalone.process import StandaloneError
from services.telemetry.domain.invariant import Verdict
from services.telemetry.storage.invariants import all_invariants
from services.telemetry.usecases.doctor import Doctor

_DOCTOR: Final = "qflow_telemetry_doctor"
_PROBLEMS_MAX: Final = 20
_QUESTION_TIMEOUT_S: Final = 600.0
_LAST_COMMIT: Final[LiteralString] = "SELECT pg_last_xact_replay_timestamp()"


@dataclass(slots=True)
class _Found:
    """The findings about a copy."""

    recovery_point: datetime
    recovery_time_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    held: int = 0
    asked: int = 0
    files: int = 0
    rows: int = 0

    def tell(self, problem: str) -> None:
        """Add a problem, up to a limit."""
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(problem)


def verify(
    folder: BackupFolder, entry: Entry, *, binaries: Binaries, key: bytes | None, scratch: Path
) -> Report:
    """Restore a backup into an empty folder, examine the copy, and store a signed report.

    Problems of the backup are in the report. What prevents the verification itself (wrong programs
    or key, no space) is raised, and says nothing about the backup.
    """
    ours = False
    with folder.locked():
        found = _Found(recovery_point=datetime.now(UTC))
        try:
            manifest, ours = prove(folder, entry)
            refuse_unfit(manifest, binaries, key)
            found.recovery_point = manifest.recovery_point
            _restore_and_look(folder, entry, manifest, found, binaries, key, scratch)
        except CorruptError as error:
            found.tell(str(error))
        report = Report(
            backup_id=entry.id,
            verified_at=datetime.now(UTC),
            recovery_point=found.recovery_point,
            recovery_time_s=round(found.recovery_time_s, 3),
            problems=tuple(found.problems),
            invariants_held=found.held,
            invariants_asked=found.asked,
            files_checked=found.files,
            rows_read=found.rows,
            signed_here=ours,
        )
        keys.write_signed(entry.path / REPORT, report.as_json(), keys.signing_key(folder.home))
    return report


@contextmanager
def scratch_place(scratch: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a folder for a copy and a short one for its socket, both removed afterwards."""
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in scratch.glob("copy-*"):  # left by a killed process; the folder's lock is held
        shutil.rmtree(left, ignore_errors=True)
    sockets = Path(tempfile.mkdtemp(prefix="qflow-", dir="/tmp"))
    place = Path(tempfile.mkdtemp(prefix="copy-", dir=scratch))
    try:
        yield place / "postgres", sockets
    finally:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(sockets, ignore_errors=True)


def _restore_and_look(
    folder: BackupFolder,
    entry: Entry,
    manifest: Manifest,
    found: _Found,
    binaries: Binaries,
    key: bytes | None,
    scratch: Path,
) -> None:
    began = time.monotonic()
    with scratch_place(scratch) as (place, sockets):
        try:
            with restored(
                folder,
                entry,
                manifest,
                place=place,
                sockets=sockets,
                binaries=binaries,
                password="copy",  # noqa: S106 - a temporary server that nobody else reaches
                key=key,
            ) as (_, way_in):
                found.recovery_time_s = time.monotonic() - began
                _look(folder, manifest, found, way_in, key)
        except StandaloneError as error:
            found.tell(f"no server could be made of it: {error}")


def _look(
    folder: BackupFolder, manifest: Manifest, found: _Found, way_in: str, key: bytes | None
) -> None:
    with psycopg.connect(way_in, autocommit=True) as db:
        last = db.execute(_LAST_COMMIT).fetchone()
        if last is not None and last[0] is not None:
            found.recovery_point = max(found.recovery_point, last[0])
        counts = count_rows(db)
        found.rows = sum(counts.values())
        for table, rows in manifest.rows.items():
            if counts.get(table) != rows:
                found.tell(f"{table} had {rows} rows, the copy has {counts.get(table)}")
        if manifest.files_kept:
            _look_at_files(bytes_of_files.listed(db), found, folder.files, key)
    _ask_the_doctor(found, way_in)


def _look_at_files(rows: Iterable[Listed], found: _Found, pool: Path, key: bytes | None) -> None:
    for each in rows:
        try:
            bytes_of_files.check(each, pool=pool, key=key)
        except CorruptError as error:
            found.tell(str(error))
        else:
            found.files += 1


def _ask_the_doctor(found: _Found, way_in: str) -> None:
    """Check the invariants that hold at every moment.

    The others settle while work continues, which cannot happen in a copy.
    """
    told = conninfo_to_dict(way_in)
    host = quote(str(told["host"]), safe="/")
    url = f"postgresql://{_DOCTOR}@/{DATABASE}?host={host}&port={told['port']}"
    names = [each.name for each in all_invariants() if not each.settles]

    async def ask() -> None:
        async with await open_pool(
            url,
            application_name="qflow-verify",
            setting="the copy",
            size_max=1,
            statement_timeout_s=_QUESTION_TIMEOUT_S,
        ) as pool:
            for each in await Doctor(pool).examine(names, rows_max=3, settle_s=0.0):
                found.asked += 1
                if each.verdict is Verdict.HOLDS:
                    found.held += 1
                    continue
                first = each.breaches[0] if each.breaches else None
                found.tell(
                    f"{each.invariant.id} ({each.invariant.title}) is {each.verdict.value}"
                    + (f": {first.place} {first.what}: {first.facts}" if first else "")
                )

    try:
        asyncio.run(ask())
    except QflowError as error:
        found.tell(f"the copy could not be examined: {error}")
