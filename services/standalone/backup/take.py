"""Take a backup: of the whole server, or a dump of the database."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, LiteralString

import psycopg
from psycopg import sql

from services.kit import crash
from services.standalone.backup import bytes_of_files, keys
from services.standalone.backup.folder import LISTING, MANIFEST, BackupFolder
from services.standalone.backup.manifest import Kind, Listed, Manifest, id_of
from services.standalone.backup.sealed import Part, Writer
from services.standalone.backup.source import Facts, Source
from services.standalone.process import StandaloneError

_PIECE_BYTES: Final = 1 << 20
_NOW: Final[LiteralString] = "SELECT clock_timestamp(), pg_walfile_name(pg_current_wal_lsn())"
# Makes the server retain the WAL that the copy needs while it is taken.
_HOLD: Final[LiteralString] = "SELECT pg_create_physical_replication_slot(%s, true, true)"
_TABLES: Final[LiteralString] = """
    SELECT relname::text FROM pg_class
     WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace AND NOT relispartition
     ORDER BY relname
"""


def take(
    source: Source,
    folder: BackupFolder,
    *,
    kind: Kind,
    files: Path | None,
    key: bytes | None,
    with_passwords: bool = False,
    backup_id: str | None = None,
) -> Manifest:
    """Take a backup; when this returns it is complete in the folder, otherwise not there at all.

    `files` is the folder with the bytes of runs' files, None if they are in an object store. A dump
    contains the roles' passwords only if it is to be loaded at once.
    """
    began = datetime.now(UTC)
    backup_id = backup_id or id_of(began, secrets.token_hex(4))
    with folder.locked(), _room(folder), folder.begun(backup_id) as partial:
        facts = source.facts()
        _refuse_other_programs(source, facts, kind)
        with source.connected() as db:
            # Before and after: files deleted meanwhile have been copied, and new ones are copied
            # too.
            _keep_files(db, folder, files, key)
            rows: dict[str, int] = {}
            first = ""
            if kind == "base":
                parts, first = _copy_server(source, db, partial, key)
                moment = _now(db)[0]
            else:
                parts, rows, moment = _dump(source, partial, key, with_passwords)
            kept = _keep_files(db, folder, files, key)
        listing = _list_files(partial, kept, key)
        manifest = Manifest(
            id=backup_id,
            kind=kind,
            started_at=began,
            recovery_point=moment,
            finished_at=datetime.now(UTC),
            postgres_major=facts.major,
            schema_revision=facts.schema_revision,
            database=facts.database,
            superuser=facts.superuser,
            system_id=facts.system_id,
            first_segment=first,
            key_id=keys.key_id(key),
            parts=(*parts, listing),
            files_count=len(kept),
            files_bytes=sum(each.size_bytes for each in kept),
            files_kept=files is not None,
            rows=rows,
        )
        crash.reach("backup_before_manifest")
        keys.write_signed(partial / MANIFEST, manifest.as_json(), keys.signing_key(folder.home))
    return manifest


def _copy_server(
    source: Source, db: psycopg.Connection, partial: Path, key: bytes | None
) -> tuple[Sequence[Part], str]:
    """Stream all files of the server, with the WAL written meanwhile, as one archive."""
    db.execute(_HOLD, (f"qflow_backup_{secrets.token_hex(4)}",))
    first = _now(db)[1]
    command = source.command("pg_basebackup", "-D", "-", "-F", "tar", "-X", "fetch", "-c", "fast")
    with source.output(command) as out:
        part = _store(out, partial / "base.tar", key)
    return [part], first


def _dump(
    source: Source,
    partial: Path,
    key: bytes | None,
    with_passwords: bool,  # noqa: FBT001
) -> tuple[Sequence[Part], dict[str, int], datetime]:
    """Dump the database and its roles, and count the rows of all tables."""
    with source.connected() as db, db.transaction():
        db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        exported = db.execute("SELECT pg_export_snapshot(), clock_timestamp()").fetchone()
        assert exported is not None
        snapshot, moment = exported
        command = source.command("pg_dump", "-F", "custom", "-Z", "0", f"--snapshot={snapshot}")
        with source.output(command) as out:
            dumped = _store(out, partial / "database.dump", key)
        rows = count_rows(db)
    command = source.command(
        *("pg_dumpall", "--roles-only"), *([] if with_passwords else ["--no-role-passwords"])
    )
    with source.output(command) as out:
        roles = _store(out, partial / "roles.sql", key)
    return [dumped, roles], rows, moment


def count_rows(db: psycopg.Connection) -> dict[str, int]:
    """Count the rows of all tables by reading them."""
    names = [name for (name,) in db.execute(_TABLES).fetchall()]
    counts = {}
    for name in names:
        row = db.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))).fetchone()
        assert row is not None
        counts[name] = int(row[0])
    return counts


def _store(out: IO[bytes], path: Path, key: bytes | None) -> Part:
    with Writer(path, key) as writer:
        while piece := out.read(_PIECE_BYTES):
            writer.write(piece)
            crash.reach("backup_copies")
        return writer.finish()


def _list_files(partial: Path, kept: Sequence[Listed], key: bytes | None) -> Part:
    with Writer(partial / LISTING, key) as writer:
        for each in kept:
            writer.write(each.line())
        return writer.finish()


def _keep_files(
    db: psycopg.Connection, folder: BackupFolder, files: Path | None, key: bytes | None
) -> Sequence[Listed]:
    if files is None:
        return ()
    return bytes_of_files.keep_new(db, source=files, pool=folder.files, key=key)[1]


def _now(db: psycopg.Connection) -> tuple[datetime, str]:
    row = db.execute(_NOW).fetchone()
    assert row is not None
    return row[0], row[1]


def _refuse_other_programs(source: Source, facts: Facts, kind: Kind) -> None:
    mine = source.binaries.major
    if mine < facts.major or (kind == "base" and mine != facts.major):
        raise StandaloneError(
            f"the database is PostgreSQL {facts.major}, the programs in {source.binaries.folder} "
            f"are {mine}: set QFLOW_POSTGRES_BIN to those of PostgreSQL "
            f"{facts.major}"
        )


@contextmanager
def _room(folder: BackupFolder) -> Iterator[None]:
    """Report a full disk clearly; the incomplete backup has been removed by then."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StandaloneError(
            f"no space for the backup in {folder.root}: free some, or keep fewer "
            "(QFLOW_BACKUP_KEEP); its files were removed"
        ) from error
