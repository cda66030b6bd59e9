"""Operations on a home's own server: restore in place, replicate, promote, upgrade."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, LiteralString

import psycopg

from services.kit.sealed_form import clear_size
from services.standalone import process
from services.standalone.backup import bytes_of_files
from services.standalone.backup.archive import ship_rest
from services.standalone.backup.ending import told_to_end
from services.standalone.backup.folder import BackupFolder, Entry
from services.standalone.backup.manifest import Manifest
from services.standalone.backup.restore import (
    TRUST,
    make_ours,
    prove,
    refuse_unfit,
    restored,
    trusting,
    write_beside,
)
from services.standalone.backup.sealed import CorruptError
from services.standalone.backup.settings import BackupSettings
from services.standalone.backup.source import Source
from services.standalone.backup.take import count_rows, take
from services.standalone.home import Home
from services.standalone.postgres import Binaries, Postgres
from services.standalone.process import ProcessMark, StandaloneError

REPLICA: Final = "qflow_replica"
_END_LADDER: Final = ((signal.SIGTERM, 30.0), (signal.SIGKILL, 5.0))
_REPLAY_TIMEOUT_S: Final = 3600.0
_LOOK_S: Final = 0.5  # how often a replica is checked
_MAKE_SLOT: Final[LiteralString] = """
    SELECT pg_create_physical_replication_slot(%s, true)
     WHERE NOT EXISTS (SELECT 1 FROM pg_replication_slots WHERE slot_name = %s)
"""


def server_of(
    home: Home, binaries: Binaries, settings: Mapping[str, str] | None = None
) -> Postgres:
    """Return a home's embedded server, not started."""
    return Postgres(
        home.root / "postgres",
        binaries=binaries,
        sockets=home.sockets(),
        password=home.secret("postgres.password"),
        log=home.log / "postgres.log",
        settings=settings,
    )


def restore(
    home: Home,
    settings: BackupSettings,
    entry: Entry,
    *,
    binaries: Binaries,
    to: datetime | None,
    replace: bool,
) -> Path | None:
    """Replace a home's server and files by a backup's, optionally recovered to a point in time.

    The previous server is kept; returns its folder, None if there was none.
    """
    with home.locked(), settings.folder.locked():
        target = home.root / "postgres"
        if (target / "data").exists() and not replace:
            raise StandaloneError(
                f"{target} contains a database; --replace keeps it next to the restored one, "
                "or choose another QFLOW_HOME"
            )
        if (target / "data").exists():
            server_of(home, binaries).reap()
        try:
            manifest, _ = prove(settings.folder, entry)
            refuse_unfit(manifest, binaries, settings.key)
            _refuse_moment(manifest, to)
            ship_rest(settings.folder, settings.key)
            with _beside(target) as place:
                with restored(
                    settings.folder,
                    entry,
                    manifest,
                    place=place,
                    sockets=home.sockets(),
                    binaries=binaries,
                    password=home.secret("postgres.password"),
                    key=settings.key,
                    to=to,
                ) as (_, way_in):
                    if manifest.files_kept:
                        give_back_files(way_in, settings, home)
                return _swap(place, target)
        except CorruptError as error:
            raise StandaloneError(f"backup {entry.id} is damaged: {error}") from error


def give_back_files(way_in: str, settings: BackupSettings, home: Home) -> int:
    """Restore the files that have rows but are missing in the home; returns how many."""
    count = 0
    with psycopg.connect(way_in, autocommit=True) as db:
        for each in bytes_of_files.listed(db):
            place = home.root / "files" / each.key
            if place.is_file() and each.size_bytes in sizes_of(place):
                continue
            bytes_of_files.give_back(
                each, pool=settings.folder.files, target=home.root / "files", key=settings.key
            )
            count += 1
    return count


def sizes_of(place: Path) -> tuple[int, int]:
    """Return the size of a stored file, and its plaintext size if it is sealed."""
    size = place.stat().st_size
    return size, clear_size(size)


def follow(home: Home, source: Source, *, say: Callable[[str], None]) -> int:
    """Run a streaming replica of another server until told to stop."""
    with home.locked():
        target = home.root / "postgres"
        if not (target / "data").exists():
            _copy_primary(target, source, home)
        elif not (target / "data" / "standby.signal").exists():
            raise StandaloneError(f"{target} contains a database that is not a replica")
        server = server_of(home, source.binaries)
        server.prepare()
        wait = told_to_end()
        server.spawn()
        try:
            server.wait_ready(timeout_s=_REPLAY_TIMEOUT_S)
            say(f"following; make it the server with `promote` on QFLOW_HOME={home.root}")
            child = server.child
            assert child is not None
            while not wait(_LOOK_S) and child.poll() is None:
                pass
            if child.returncode is not None:
                raise StandaloneError(
                    f"the replica ended ({process.describe_exit(child.returncode)}):\n"
                    + process.tail(server.log)
                )
        finally:
            server.stop()
    return 0


def promote(home: Home, settings: BackupSettings | None, *, binaries: Binaries) -> None:
    """Promote a replica to an ordinary server, with all it received; the primary must be down."""
    data = home.root / "postgres" / "data"
    if not (data / "standby.signal").exists():
        raise StandaloneError(f"{data} is not a replica; there is nothing to promote")
    holder = home.holder()
    mark = ProcessMark.of(holder) if holder else None
    if mark is not None and not mark.end(_END_LADDER):
        raise StandaloneError(f"the replica's process {mark.pid} does not end")
    with home.locked():
        server = server_of(
            home,
            binaries,
            # Starts a timeline of its own, so that later writes of the old primary cannot be
            # applied.
            {
                "restore_command": "false",
                "hot_standby": "off",
                "hba_file": trusting(data.parent),
            },
        )
        server.prepare()
        write_beside(data, "postgresql.auto.conf", "")
        write_beside(data, "recovery.signal", "")
        (data / "standby.signal").unlink()
        write_beside(data, TRUST, "local all all trust\n")
        server.spawn()
        try:
            server.wait_ready(timeout_s=_REPLAY_TIMEOUT_S)
            way_in = make_ours(server, home.secret("postgres.password"))
            if settings is not None and settings.files is not None:
                give_back_files(way_in, settings, home)
        finally:
            server.stop()
            (data / TRUST).unlink(missing_ok=True)


def upgrade(home: Home, *, old: Binaries, new: Binaries) -> Path:
    """Upgrade a home's database to a later major version of PostgreSQL; returns the old folder."""
    with home.locked():
        target = home.root / "postgres"
        if not (target / "data" / "PG_VERSION").exists():
            raise StandaloneError(f"there is no database in {target}")
        if new.major <= old.major:
            raise StandaloneError(
                f"the data are of PostgreSQL {old.major}, and the programs of this version of "
                f"Qflow are {new.major}: nothing to upgrade"
            )
        work = home.root / "upgrade"
        shutil.rmtree(work, ignore_errors=True)
        folder = BackupFolder(work, home)
        before = server_of(home, old)
        before.start()
        try:
            source = Source(before.url(), new)
            manifest = take(source, folder, kind="dump", files=None, key=None, with_passwords=True)
        finally:
            before.stop()
        with _beside(target) as place:
            with restored(
                folder,
                folder.entry(manifest.id),
                manifest,
                place=place,
                sockets=home.sockets(),
                binaries=new,
                password=home.secret("postgres.password"),
                key=None,
            ) as (_, way_in):
                _compare_rows(manifest, way_in)
            kept = _swap(place, target)
        shutil.rmtree(work, ignore_errors=True)
        assert kept is not None
        return kept


def _compare_rows(manifest: Manifest, way_in: str) -> None:
    with psycopg.connect(way_in, autocommit=True) as db:
        counts = count_rows(db)
    if counts != manifest.rows:
        other = sorted(name for name in counts if counts[name] != manifest.rows.get(name))
        raise StandaloneError(
            f"the new database has other rows than the old one in {', '.join(other)}; nothing "
            "was changed"
        )


def _copy_primary(target: Path, source: Source, home: Home) -> None:
    """Copy the primary's files with the settings to follow it; an aborted copy starts over."""
    fresh = target / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    with source.connected() as db:
        db.execute(_MAKE_SLOT, (REPLICA, REPLICA))
    command = source.command(
        *("pg_basebackup", "-D", str(fresh), "-X", "stream", "-c", "fast", "-R"),
        f"--slot={REPLICA}",
        name=REPLICA,
    )
    with source.output(command) as out:
        out.read()
    (fresh / "postmaster.pid").unlink(missing_ok=True)
    fresh.chmod(0o700)
    fresh.rename(target / "data")
    home.make()


def _refuse_moment(manifest: Manifest, to: datetime | None) -> None:
    if to is None:
        return
    if manifest.kind != "base":
        raise StandaloneError(
            "a dump is of one moment; only a base backup can be recovered to another"
        )
    if to <= manifest.recovery_point:
        raise StandaloneError(
            f"backup {manifest.id} is of {manifest.recovery_point.isoformat()}: to go back to "
            f"{to.isoformat()}, choose an older one"
        )


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a folder next to the final one; removes what a killed restore left there."""
    place = target.with_name(f"{target.name}.restoring")
    shutil.rmtree(place, ignore_errors=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _swap(place: Path, target: Path) -> Path | None:
    """Move the new server into place; returns where the old one is kept, None without one."""
    kept = None
    if target.exists():
        if (target / "tuning.conf").exists():
            shutil.copy2(target / "tuning.conf", place / "tuning.conf")
        kept = target.with_name(f"{target.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
        target.rename(kept)
    place.rename(target)
    os.sync()
    return kept
