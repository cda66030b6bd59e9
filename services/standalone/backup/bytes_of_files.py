"""The bytes of runs' files, stored once for all backups, since they never change.

Files sealed at rest are stored as they are, since the backup cannot open them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, LiteralString

import psycopg

from services.kit.sealed_form import Passing
from services.standalone.backup.manifest import Listed
from services.standalone.backup.sealed import CorruptError, Writer, pieces, stored

_PIECE_BYTES: Final = 1 << 20
_FILES: Final[LiteralString] = """
    SELECT file_path::text, file_size_bytes, coalesce(hash_sha256, '')::text FROM files
"""


def listed(db: psycopg.Connection) -> Iterator[Listed]:
    """Yield all rows, fetched in batches."""
    with db.transaction(), db.cursor(name="files") as cursor:
        cursor.itersize = 5000
        for row in cursor.execute(_FILES):
            yield Listed(*row)


def keep_new(
    db: psycopg.Connection, *, source: Path, pool: Path, key: bytes | None
) -> tuple[int, list[Listed]]:
    """Copy files that the pool lacks; returns how many, and the rows whose bytes it now has."""
    copied, found = 0, []
    for each in listed(db):
        folder, name = _place(pool, each.key)
        if stored(folder, name) is None:
            try:
                _copy(source / each.key, folder, name, each, key)
            except FileNotFoundError:
                continue  # deleted since its row was read; if it should exist, verifying reports it
            copied += 1
        found.append(each)
    return copied, found


def give_back(each: Listed, *, pool: Path, target: Path, key: bytes | None) -> None:
    """Restore a file's bytes into the store; raises CorruptError if they do not match its row."""
    place = target / each.key
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}.restored")
    try:
        with beside.open("wb") as file:
            for piece in _proven(each, pool, key):
                file.write(piece)
        beside.chmod(0o600)
        beside.replace(place)
    finally:
        beside.unlink(missing_ok=True)


def check(each: Listed, *, pool: Path, key: bytes | None) -> None:
    """Read a stored file entirely; raises CorruptError if its bytes do not match its row."""
    for _ in _proven(each, pool, key):
        pass


def _proven(each: Listed, pool: Path, key: bytes | None) -> Iterator[bytes]:
    path = stored(*_place(pool, each.key))
    if path is None:
        raise CorruptError(f"the bytes of file {each.key} are missing")
    passing = Passing()
    for piece in pieces(path, key):
        passing.feed(piece)
        yield piece
    if not passing.proves(size_bytes=each.size_bytes, sha256=each.sha256):
        raise CorruptError(f"the bytes of file {each.key} do not match its row")


def _copy(path: Path, folder: Path, name: str, each: Listed, key: bytes | None) -> None:
    with path.open("rb") as file:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        passing = Passing()
        with Writer(folder / name, key) as writer:
            while piece := file.read(_PIECE_BYTES):
                passing.feed(piece)
                writer.write(piece)
            if not passing.proves(size_bytes=each.size_bytes, sha256=each.sha256):
                raise CorruptError(
                    f"file {each.key} on disk does not match its row: it is damaged there"
                )
            writer.finish()


def _place(pool: Path, key: str) -> tuple[Path, str]:
    tenant, _, name = key.partition("/")
    return pool / tenant, name
