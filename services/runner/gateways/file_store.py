"""The bytes of files: one object per row, under `<tenant>/<file id>`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import UUID

_READ_BYTES: Final = 1024 * 1024


class FileCorruptError(Exception):
    """The stored bytes are not what was written."""


class FileStore:
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, *, tenant_id: UUID, file_id: UUID, parts: list[bytes]) -> tuple[int, str]:
        """Store bytes for good, file and folder synced; give their size and SHA-256."""
        folder = self._root / str(tenant_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = folder / str(file_id)
        staged = folder / f".{file_id}"
        digest = hashlib.sha256()
        size = 0
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for part in parts:
                    file.write(part)
                    digest.update(part)
                    size += len(part)
                file.flush()
                os.fsync(file.fileno())
            staged.replace(target)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        _sync_folder(folder)
        _sync_folder(self._root)
        return size, digest.hexdigest()

    def read(self, key: str, *, size_bytes: int, sha256: str) -> bytes:
        """Read a file whole and prove its bytes; raises FileCorruptError."""
        try:
            data = self._path(key).read_bytes()
        except OSError:
            raise FileCorruptError("the bytes of the file are missing") from None
        if len(data) != size_bytes or hashlib.sha256(data).hexdigest() != sha256:
            raise FileCorruptError("the bytes of the file are not what was written")
        return data

    def check(self, key: str, *, size_bytes: int, sha256: str) -> None:
        """Prove a file's bytes without holding them; raises FileCorruptError."""
        digest = hashlib.sha256()
        size = 0
        try:
            with self._path(key).open("rb") as file:
                while piece := file.read(_READ_BYTES):
                    digest.update(piece)
                    size += len(piece)
        except OSError:
            raise FileCorruptError("the bytes of the file are missing") from None
        if size != size_bytes or digest.hexdigest() != sha256:
            raise FileCorruptError("the bytes of the file are not what was written")

    def pieces(self, key: str, *, offset: int, limit: int, piece_bytes: int) -> Iterator[bytes]:
        """Give a range in pieces."""
        with self._path(key).open("rb") as file:
            file.seek(offset)
            left = limit
            while left > 0 and (piece := file.read(min(piece_bytes, left))):
                left -= len(piece)
                yield piece

    def remove(self, *, tenant_id: UUID, file_id: UUID) -> None:
        """Remove the bytes; that they are gone already is fine."""
        (self._root / str(tenant_id) / str(file_id)).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        # The key comes from our own table, and still: only two UUIDs name a file.
        tenant, _, file = key.partition("/")
        return self._root / str(UUID(tenant)) / str(UUID(file))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
