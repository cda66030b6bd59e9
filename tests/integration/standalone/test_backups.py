"""Backups are whole or absent, and are proven by restoring them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from services.standalone.backup import keeping
from services.standalone.backup.archive import Archive, hold_wal
from services.standalone.backup.folder import GAP, MANIFEST, PARTIAL, REPORT
from services.standalone.backup.manifest import Kind
from services.standalone.backup.sealed import Writer
from services.standalone.process import StandaloneError
from tests import factories
from tests.integration.standalone.backups import KEY, Place
from tests.support.database import Database


@pytest.fixture
def place(tmp_path: Path, database: Database) -> Iterator[Place]:
    yield Place(tmp_path, database)
    database.drop_slots()


def flip(path: Path, *, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        before = file.read(1)
        file.seek(at)
        file.write(bytes([before[0] ^ 1]))


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("base", None),
        ("dump", KEY),
        pytest.param("base", KEY, marks=pytest.mark.slow),
        pytest.param("dump", None, marks=pytest.mark.slow),
    ],
    ids=["base", "encrypted dump", "encrypted base", "dump"],
)
def test_a_backup_is_restored_and_what_must_hold_holds_in_the_copy(
    place: Place, kind: Kind, key: bytes | None
) -> None:
    """E20, F19, I20."""
    place.key = key
    place.add_file(b"kept " * 1000)
    manifest = place.take(kind)
    report = place.verify()
    assert report.problems == ()
    assert report.is_proven
    assert report.signed_here
    assert report.files_checked == manifest.files_count == 1
    assert report.invariants_asked == report.invariants_held > 20
    assert report.rows_read > 0
    assert report.recovery_point >= manifest.recovery_point
    assert place.entry().report == report
    assert not list((place.root / "scratch").iterdir())
    if kind == "dump":
        assert manifest.rows["files"] == 1


@pytest.mark.parametrize(
    "name",
    [
        "base.tar.gz",
        pytest.param("files.jsonl.gz", marks=pytest.mark.slow),
        pytest.param(MANIFEST, marks=pytest.mark.slow),
        pytest.param("bytes of a file", marks=pytest.mark.slow),
    ],
)
def test_a_flipped_byte_is_found(place: Place, name: str) -> None:
    """F42, CP29: wherever it is, and the report says which file it was."""
    stored = place.add_file(b"kept " * 1000)
    place.take()
    path = place.entry().path / name
    if name == "bytes of a file":
        path = place.folder.files / f"{stored}.gz"
    flip(path, at=path.stat().st_size // 2)
    report = place.verify(place.folder.entries()[0].id)
    assert not report.is_proven
    told = stored.partition("/")[2] if name == "bytes of a file" else name
    assert any(told in problem for problem in report.problems), report.problems


@pytest.mark.slow
def test_what_was_signed_cannot_be_changed(place: Place) -> None:
    """A report that says more than was found is no report."""
    manifest = place.take()
    place.verify()
    path = place.entry().path / REPORT
    signed = json.loads(path.read_text("utf-8"))
    signed["facts"] = signed["facts"].replace('"rows_read": ', '"rows_read": 9')
    path.write_text(json.dumps(signed), "utf-8")
    assert "does not match its signature" in place.entry(manifest.id).problem


def test_another_key_is_refused_before_anything_is_restored(place: Place) -> None:
    place.key = KEY
    manifest = place.take("dump")
    place.key = None
    with pytest.raises(StandaloneError, match="encrypted under key"):
        place.verify(manifest.id)
    place.key = bytes(32)
    with pytest.raises(StandaloneError, match="encrypted under key"):
        place.verify(manifest.id)


def test_no_token_and_no_password_lies_in_a_backup(place: Place) -> None:
    """X53: of tokens there are digests alone; a dump has not even what passwords are checked by."""
    with place.database.connect() as db:
        token = factories.user(db).token
        verifiers = [
            row[0]
            for row in db.execute("SELECT rolpassword FROM pg_authid WHERE rolpassword <> ''")
        ]
    assert verifiers
    place.take("dump")
    place.take("base")
    for entry in place.folder.entries():
        for part in (each for each in entry.path.iterdir() if each.name.endswith(".gz")):
            text = subprocess.run(["gzip", "-dc", part], capture_output=True, check=True).stdout
            assert token.encode() not in text, part
            if part.name == "roles.sql.gz":
                assert b"CREATE ROLE qflow_registry" in text
                assert not any(each.encode() in text for each in verifiers)


def environment(place: Place, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "QFLOW_HOME": str(place.home.root),
        "QFLOW_BACKUP_FOLDER": str(place.folder.root),
        "QFLOW_BACKUP_DATABASE_URL": place.database.url("qflow_backup"),
        "QFLOW_BACKUP_SHIP_INTERVAL_S": "1",
        **more,
    }


def program(place: Place, *arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "services.standalone.backup", *arguments],
        env=environment(place, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("point", ["backup_copies", "backup_before_manifest"])
def test_a_backup_that_is_killed_is_none_and_leaves_nothing_for_the_next(
    place: Place, point: str
) -> None:
    """CP29: nothing half is ever called done."""
    killed = program(place, "take", "base", QFLOW_TESTING="1", QFLOW_CRASH_AT=f"{point}:1")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert place.folder.entries() == []
    manifest = place.take("dump")
    assert [each.name for each in place.folder.backups.iterdir()] == [manifest.id]
    with place.database.connect() as db:
        held = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'qflow_backup_%'"
        assert db.execute(held).fetchone() == (0,)


def test_a_full_disk_is_said_and_leaves_nothing(place: Place) -> None:
    """F14, of backups: on a disk of a megabyte."""
    place.folder.make()
    script = 'mount -t tmpfs -o size=1m tmpfs "$1" && "$2" -m services.standalone.backup take base'
    done = subprocess.run(
        [
            "unshare",
            "-Urm",
            "sh",
            "-c",
            f'{script}; ls -A "$1"',
            "sh",
            str(place.folder.backups),
            sys.executable,
        ],
        env=environment(place),
        capture_output=True,
        text=True,
        check=True,
    )
    answer, *left = done.stdout.splitlines()
    assert "no space for the backup" in json.loads(answer)["error"], done.stderr
    assert left == []
    with place.database.connect() as db:  # the database goes on
        factories.user(db)


def test_two_at_once_are_refused(place: Place) -> None:
    with place.folder.locked(), pytest.raises(StandaloneError, match="another process is using"):
        place.take()


def test_a_segment_that_was_shipped_unfinished_while_a_backup_was_taken_does_not_shorten_it(
    place: Place,
) -> None:
    """What the archive had of it ended before the backup did."""
    manifest = place.take()
    place.folder.make()
    first = int(manifest.first_segment, 16)
    for name in (f"{first + more:024X}{PARTIAL}" for more in range(3)):
        with Writer(place.folder.wal / name, place.key) as writer:
            writer.write(bytes(16 << 20))
            writer.finish()
    assert () == place.verify().problems


@pytest.mark.slow
def test_the_newest_are_kept_with_the_wal_and_files_that_they_need(place: Place) -> None:
    """The one that is proven stays, however old."""
    first = place.add_file(b"first")
    proven = place.take("dump")
    assert place.verify().problems == ()
    gone, kept = place.take("dump"), place.take("dump")
    assert keeping.forget(place.folder, keep=1, key=None) == [gone.id]
    assert [each.id for each in place.folder.entries()] == [kept.id, proven.id]
    with place.database.connect() as db:
        db.execute("DELETE FROM files")
    for each in place.folder.entries():
        keeping.remove_one(place.folder, each)
    last = place.take("dump")
    assert last.files_count == 0
    keeping.forget(place.folder, keep=1, key=None)
    assert not (place.folder.files / f"{first}.gz").exists()


@pytest.mark.slow
def test_what_was_committed_after_a_backup_is_in_the_archive_within_seconds(place: Place) -> None:
    """The recovery point: what is in the copy was committed after the backup was taken."""
    place.take()
    archive = program(place, "archive")
    try:
        with place.database.connect() as db:
            later = factories.user(db).id
            moment = db.execute("SELECT clock_timestamp()").fetchone()
            segment = db.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone()
        assert moment is not None
        assert segment is not None
        _until_received(place, moment[0])
    finally:
        archive.send_signal(signal.SIGTERM)
        out, errors = archive.communicate()
    assert (archive.returncode, out.strip()) == (0, "{}"), errors
    report = place.verify()
    assert report.problems == ()
    assert moment[0] - report.recovery_point < timedelta(seconds=60)
    assert later is not None


def _until_received(place: Place, moment: object) -> None:
    """Wait until the server says that the archive's program has flushed all there is."""
    with place.database.connect() as db:
        wanted = db.execute("SELECT pg_current_wal_lsn()").fetchone()
        assert wanted is not None
        for _ in range(600):
            row = db.execute(
                "SELECT write_lsn >= %s FROM pg_stat_replication "
                "WHERE application_name = 'qflow_archive'",
                wanted,
            ).fetchone()
            if row == (True,):
                return
            db.execute("SELECT pg_sleep(0.05)")
    raise AssertionError("nothing was received")


def test_an_archive_that_begins_says_since_when_it_is_without_a_gap(place: Place) -> None:
    """A base backup from before leads over no gap; one that has the archive hold WAL first does."""
    place.folder.make()
    assert hold_wal(place.source, place.folder)
    assert not hold_wal(place.source, place.folder)
    gap = datetime.fromisoformat((place.folder.wal / GAP).read_text("ascii"))
    assert place.take().started_at > gap
    with place.database.connect() as db:
        db.execute("SELECT pg_drop_replication_slot('qflow_archive')")
    assert hold_wal(place.source, place.folder)
    assert datetime.fromisoformat((place.folder.wal / GAP).read_text("ascii")) > gap
    (place.folder.wal / GAP).unlink()  # the slot served another folder
    assert hold_wal(place.source, place.folder)
    assert not hold_wal(place.source, place.folder)


def test_an_archive_whose_database_is_another_begins_anew(place: Place) -> None:
    archive = Archive(place.source, place.folder, None, None)
    archive.folder.make()
    archive.incoming.mkdir()
    (archive.incoming / "system").write_text("other 00000001", "ascii")
    segment = archive.incoming / f"{'0' * 24}"
    segment.write_bytes(b"of another")
    waited: list[float] = []

    def once(seconds: float) -> bool:
        waited.append(seconds)
        return True

    archive.run(interval_s=1.0, wait=once)
    assert waited == [1.0]
    assert not segment.exists()
