"""Restore a backup, and the WAL after it, into a server."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from migrations.roles import set_password
from services.standalone.backup import keys
from services.standalone.backup.folder import MANIFEST, PARTIAL, SEGMENT, BackupFolder, Entry
from services.standalone.backup.manifest import Manifest
from services.standalone.backup.sealed import CorruptError, digest, pieces, stored
from services.standalone.postgres import DATABASE, SUPERUSER, Binaries, Postgres
from services.standalone.process import StandaloneError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

_RECOVERY_TIMEOUT_S: Final = 3600.0
_BUFFER_BYTES: Final = 1 << 20
_WAL: Final = "wal-restored"
TRUST: Final = "qflow-restore-hba.conf"
_HBA: Final = (
    "local all all scram-sha-256\n"
    "local replication all scram-sha-256\n"
    "host all all 127.0.0.1/32 scram-sha-256\n"
    "host all all ::1/128 scram-sha-256\n"
)
_CONFIGURATION: Final = (
    "include_if_exists 'qflow.conf'\n"
    "# Settings of your own, kept over updates:\n"
    "include_if_exists '../tuning.conf'\n"
)
_ROLE_STATEMENTS: Final = ("CREATE ROLE ", "ALTER ROLE ", "GRANT ")


def prove(folder: BackupFolder, entry: Entry) -> tuple[Manifest, bool]:
    """Check a backup's signature and the digests of all its files; raises CorruptError.

    Returns the manifest, and whether this home's key signed it.
    """
    facts, ours = keys.read_signed(entry.path / MANIFEST, folder.home)
    manifest = Manifest.read(facts)
    for part in manifest.parts:
        try:
            found = digest(entry.path / part.name)
        except FileNotFoundError:
            raise CorruptError(f"{part.name} is missing") from None
        if found != part:
            raise CorruptError(
                f"{part.name} is not as it was written: {found.size_bytes} bytes with SHA-256 "
                f"{found.sha256[:12]}…, not {part.size_bytes} with {part.sha256[:12]}…"
            )
    return manifest, ours


def refuse_unfit(manifest: Manifest, binaries: Binaries, key: bytes | None) -> None:
    """Raise for what would make a restore fail later, before anything is written."""
    if manifest.key_id != keys.key_id(key):
        raise StandaloneError(
            f"backup {manifest.id} "
            + (
                f"is encrypted under key {manifest.key_id}: set QFLOW_BACKUP_KEY_FILE to its file"
                if manifest.key_id
                else "is not encrypted, but QFLOW_BACKUP_KEY_FILE is set: unset it for this backup"
            )
        )
    if manifest.kind == "base" and manifest.postgres_major != binaries.major:
        raise StandaloneError(
            f"backup {manifest.id} is of PostgreSQL {manifest.postgres_major}, the programs in "
            f"{binaries.folder} are {binaries.major}: set QFLOW_POSTGRES_BIN to those of "
            f"PostgreSQL {manifest.postgres_major}; a dump is read by any later one"
        )


@contextmanager
def restored(
    folder: BackupFolder,
    entry: Entry,
    manifest: Manifest,
    *,
    place: Path,
    sockets: Path,
    binaries: Binaries,
    password: str,
    key: bytes | None,
    to: datetime | None = None,
) -> Iterator[tuple[Postgres, str]]:
    """Restore into an empty folder and yield the running server, on a private socket only.

    Also yields the conninfo with which anybody who can reach the socket may connect. After the
    block the server is stopped, and is an ordinary one with `password`.
    """
    place.mkdir(mode=0o700, parents=True)
    if manifest.kind == "base":
        _unpack(entry, place / "data", key)
        _gather_wal(folder, manifest, place, key)
        settings = _recovery_settings(to)
    else:
        settings = {}
    server = Postgres(
        place,
        binaries=binaries,
        sockets=sockets,
        password=password,
        log=place / "restore.log",
        settings={**settings, "hba_file": trusting(place), "fsync": "off"},
    )
    server.prepare()
    write_beside(place / "data", TRUST, "local all all trust\n")
    server.spawn()
    try:
        server.wait_ready(timeout_s=_RECOVERY_TIMEOUT_S)
        way_in = _place_of(server)
        if manifest.kind == "dump":
            _load(entry, binaries, way_in, key)
        else:
            _rename(manifest, way_in)
        yield server, make_ours(server, password)
        with psycopg.connect(make_conninfo("", dbname="postgres", user=SUPERUSER, **way_in)) as db:
            db.autocommit = True
            db.execute("CHECKPOINT")
    finally:
        server.stop()
        shutil.rmtree(place / _WAL, ignore_errors=True)
        (place / "data" / TRUST).unlink(missing_ok=True)
    os.sync()  # fsync was off while restoring, so all files are synced at once


def _unpack(entry: Entry, data: Path, key: bytes | None) -> None:
    path = stored(entry.path, "base.tar")
    if path is None:
        raise CorruptError("base.tar is missing")
    with tarfile.open(
        fileobj=io.BufferedReader(_Stream(pieces(path, key)), _BUFFER_BYTES), mode="r|"
    ) as tar:
        for member in tar:
            if not (member.isreg() or member.isdir()) or ".." in Path(member.name).parts:
                raise CorruptError(f"{member.name} does not belong in a copy of a server")
            # Owned by us: as root, tar would restore the owners of the other machine.
            member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
            tar.extract(member, data)
    data.chmod(0o700)
    if not (data / "qflow.conf").exists():
        # Another server's configuration refers to files and libraries of its machine.
        (data / "postgresql.auto.conf").write_text("", "utf-8")
        write_beside(data, "postgresql.conf", _CONFIGURATION)
        write_beside(data, "pg_hba.conf", _HBA)
        write_beside(data, "pg_ident.conf", "")
    (data / "recovery.signal").touch(mode=0o600)


def _gather_wal(folder: BackupFolder, manifest: Manifest, place: Path, key: bytes | None) -> None:
    """Lay out the WAL from the backup's first segment on, each segment under its own name.

    WAL inside the backup takes precedence over an unfinished archived segment, which may have been
    shipped during the backup and end too early.
    """
    target, brought = place / _WAL, place / "data" / "pg_wal"
    target.mkdir(mode=0o700)
    for path in sorted(folder.wal.glob("*.gz*")):
        name = path.name.partition(".gz")[0]
        segment = name.removesuffix(PARTIAL)
        if SEGMENT.fullmatch(segment):
            # The first eight digits are the timeline; WAL positions continue across timelines.
            if segment[8:] < manifest.first_segment[8:] or (target / segment).exists():
                continue
            if name != segment and (brought / segment).exists():
                continue
        elif not name.endswith(".history"):
            continue
        with (target / segment).open("wb") as file:
            for piece in pieces(path, key):
                file.write(piece)


def _recovery_settings(to: datetime | None) -> Mapping[str, str]:
    told = {
        "restore_command": f'cp "../{_WAL}/%f" "%p"',
        "recovery_target_timeline": "latest",
        "recovery_target_action": "promote",
        # No reads before the end, so the limits of the old server do not matter.
        "hot_standby": "off",
    }
    if to is not None:
        told["recovery_target_time"] = to.astimezone(UTC).isoformat(sep=" ")
    return told


def _load(
    entry: Entry,
    binaries: Binaries,
    way_in: Mapping[str, Any],
    key: bytes | None,
) -> None:
    """Create the roles and the database of a dump, and load it."""
    roles, dump = stored(entry.path, "roles.sql"), stored(entry.path, "database.dump")
    if roles is None or dump is None:
        raise CorruptError("the dump lacks a file")
    enter = make_conninfo("", dbname="postgres", user=SUPERUSER, **way_in)
    with psycopg.connect(enter, autocommit=True) as db:
        for line in b"".join(pieces(roles, key)).decode().splitlines():
            if line.startswith(_ROLE_STATEMENTS):
                try:
                    db.execute(line.encode())
                except psycopg.errors.DuplicateObject:
                    continue  # the superuser exists already
        db.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
    target = make_conninfo("", dbname=DATABASE, user=SUPERUSER, **way_in)
    with subprocess.Popen(  # noqa: S603 - our own command
        [str(binaries.folder / "pg_restore"), "--exit-on-error", "-w", "-d", target],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": os.defpath, "LC_ALL": "C"},
        cwd="/",
    ) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        try:
            for piece in pieces(dump, key):
                child.stdin.write(piece)
            child.stdin.close()
        except BrokenPipeError:
            pass  # its error is read below
        said = child.stderr.read().decode("utf-8", "replace").strip()
    if child.returncode != 0:
        raise StandaloneError(f"pg_restore failed: {said}")


def trusting(folder: Path) -> str:
    """Return the `hba_file` value of a server that trusts everybody who can reach its socket."""
    return str(folder / "data" / TRUST).replace("'", "''")


def make_ours(server: Postgres, password: str) -> str:
    """Set the superuser's password to the home's; returns a conninfo that works without it."""
    way_in = _place_of(server)
    with psycopg.connect(
        make_conninfo("", dbname="postgres", user=SUPERUSER, **way_in), autocommit=True
    ) as db:
        set_password(db, login=SUPERUSER, password=password)
    return make_conninfo("", dbname=DATABASE, user=SUPERUSER, **way_in)


def _place_of(server: Postgres) -> dict[str, Any]:
    told = conninfo_to_dict(server.url())
    return {"host": told["host"], "port": told["port"]}


def _rename(manifest: Manifest, way_in: Mapping[str, Any]) -> None:
    """Rename the superuser and the database of another server's copy to those of a home."""
    enter = make_conninfo("", dbname="postgres", user=manifest.superuser, **way_in)
    with psycopg.connect(enter, autocommit=True) as db:
        if manifest.superuser != SUPERUSER:
            known = db.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (SUPERUSER,))
            if known.fetchone() is None:
                db.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(SUPERUSER)))
            db.execute(
                sql.SQL("ALTER ROLE {} SUPERUSER LOGIN REPLICATION BYPASSRLS").format(
                    sql.Identifier(SUPERUSER)
                )
            )
        if manifest.database != DATABASE:
            db.execute(
                sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                    sql.Identifier(manifest.database), sql.Identifier(DATABASE)
                )
            )


def write_beside(folder: Path, name: str, text: str) -> None:
    """Write a file of the server, with the server's owner."""
    path = folder / name
    path.write_text(text, "utf-8")
    path.chmod(0o600)
    owner = folder.stat()  # another user if PostgreSQL cannot run as us
    os.chown(path, owner.st_uid, owner.st_gid)


class _Stream(io.RawIOBase):
    """An iterator of bytes as a readable file."""

    def __init__(self, source: Iterator[bytes]) -> None:
        super().__init__()
        self._source = source
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Buffer) -> int:
        view = memoryview(target).cast("B")
        if not self._held:
            self._held = memoryview(next(self._source, b""))
        size = min(len(view), len(self._held))
        view[:size] = self._held[:size]
        self._held = self._held[size:]
        return size
