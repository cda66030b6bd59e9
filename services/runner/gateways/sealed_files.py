"""File contents sealed at rest: a folder of files in the format of `services.kit.sealed_form`.

A piece is bound to its file, its position and whether it is the last, so none can be moved, left
out or cut off, and a range can be read without what precedes it. Sizes and digests are those of the
clear bytes. Files that were stored in clear stay so. An upload is sealed once it is complete; what
is lent to a sandbox is a clear copy, deleted after the call.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.kit.errors import Unavailable
from services.kit.sealed_data import DataKeys, value_key
from services.kit.sealed_form import (
    DIGEST_BYTES,
    HEAD_BYTES,
    ID_BYTES,
    MARK,
    PIECE_BYTES,
    SALT_BYTES,
    TAG_BYTES,
    clear_size,
    piece_count,
)
from services.runner.gateways.file_port import FileCorruptError
from services.runner.gateways.file_store import MODE, FileStore

_READ_BYTES: Final = 1024 * 1024


class SealedFileStore(FileStore):
    """A folder whose files are sealed, except those that were stored before."""

    def __init__(self, root: Path, keys: DataKeys, *, seals: bool) -> None:
        super().__init__(root)
        self._keys = keys
        self._seals = seals

    def _store(
        self, tenant_id: UUID, file_id: UUID, parts: Iterable[bytes | memoryview]
    ) -> tuple[int, str]:
        if not self._seals:
            return super()._store(tenant_id, file_id, parts)
        counted = _Counted(parts)
        super()._store(tenant_id, file_id, self._sealed(counted, f"{tenant_id}/{file_id}"))
        return counted.size_bytes, counted.digest.hexdigest()

    def read(self, key: str, *, size_bytes: int, sha256: str) -> bytes:
        """Read a whole file and verify it; raises FileCorruptError."""
        if not self._is_sealed(key, size_bytes):
            return super().read(key, size_bytes=size_bytes, sha256=sha256)
        data = b"".join(self._clear(key))
        _prove(len(data), hashlib.sha256(data).hexdigest(), size_bytes, sha256)
        return data

    def check(self, key: str, *, size_bytes: int, sha256: str) -> None:
        """Verify a file without keeping it in memory; raises FileCorruptError."""
        if not self._is_sealed(key, size_bytes):
            return super().check(key, size_bytes=size_bytes, sha256=sha256)
        counted = _Counted(self._clear(key))
        for _ in counted:
            pass
        return _prove(counted.size_bytes, counted.digest.hexdigest(), size_bytes, sha256)

    def pieces(self, key: str, *, offset: int, limit: int, piece_bytes: int) -> Iterator[bytes]:
        """Yield a range in pieces."""
        if not self._is_sealed(key):
            yield from super().pieces(key, offset=offset, limit=limit, piece_bytes=piece_bytes)
            return
        left = limit
        for piece in self._clear(key, offset):
            for at in range(0, min(len(piece), left), piece_bytes):
                yield piece[at : min(at + piece_bytes, left)]
            left -= len(piece)
            if left <= 0:
                return

    def lend(self, key: str, place: Path, *, size_bytes: int, sha256: str) -> None:
        """Make a verified file available at a path: as a clear copy, which the caller deletes."""
        if not self._is_sealed(key, size_bytes):
            return super().lend(key, place, size_bytes=size_bytes, sha256=sha256)
        if place.exists():
            return None
        counted = _Counted(self._clear(key))
        staged = place.with_name(f".{place.name[:100]}")
        try:
            with staged.open("wb") as file:
                for piece in counted:
                    file.write(piece)
                os.fchmod(file.fileno(), MODE)
            _prove(counted.size_bytes, counted.digest.hexdigest(), size_bytes, sha256)
            staged.replace(place)
        finally:
            staged.unlink(missing_ok=True)

    def received(self, key: str) -> int:
        """Return how many bytes of an upload are durable."""
        found = super().received(key)
        return clear_size(found) if self._is_sealed(key) else found

    def finish(self, key: str, *, size_bytes: int, sha256: str) -> str:
        """Turn a complete upload into the file, sealed; raises as the port says."""
        if self._is_sealed(key):  # only the row was missing
            counted = _Counted(self._clear(key))
            for _ in counted:
                pass
            found = counted.digest.hexdigest()
            if sha256 and found != sha256:
                raise FileCorruptError("the bytes of the file are not what the digest says")
            return found
        found = super().finish(key, size_bytes=size_bytes, sha256=sha256)
        if self._seals:
            tenant, _, file = key.partition("/")
            with self._path(key).open("rb") as clear:
                self._store(UUID(tenant), UUID(file), iter(lambda: clear.read(_READ_BYTES), b""))
        return found

    # -- the form of a sealed file

    def _is_sealed(self, key: str, size_bytes: int = -1) -> bool:
        """Return whether a file is sealed; one with the size of its clear bytes is not."""
        try:
            with self._path(key).open("rb") as file:
                marked = file.read(len(MARK)) == MARK
                return marked and os.fstat(file.fileno()).st_size != size_bytes
        except FileNotFoundError:
            return False

    def _sealed(self, parts: Iterable[bytes], name: str) -> Iterator[bytes]:
        digest = hashlib.sha256()
        for piece in self._pieces_of(parts, name):
            digest.update(piece)
            yield piece
        yield digest.digest()

    def _pieces_of(self, parts: Iterable[bytes], name: str) -> Iterator[bytes]:
        try:
            key_id, key = self._keys.current()
        except Unavailable as problem:  # just after the very first start
            raise OSError(errno.EAGAIN, str(problem)) from None
        salt = os.urandom(SALT_BYTES)
        yield MARK + key_id.bytes + salt
        cipher = AESGCM(value_key(key, salt))
        held, at = bytearray(), 0
        for part in parts:
            held += part
            while len(held) > PIECE_BYTES:  # the last piece is marked, so hold one back
                piece = bytes(held[:PIECE_BYTES])
                del held[:PIECE_BYTES]
                yield cipher.encrypt(_nonce(at, last=False), piece, name.encode())
                at += 1
        yield cipher.encrypt(_nonce(at, last=True), bytes(held), name.encode())

    def _clear(self, key: str, offset: int = 0) -> Iterator[bytes]:
        """Yield the clear bytes from an offset on; raises FileCorruptError."""
        try:
            with self._path(key).open("rb") as file:
                yield from self._opened(file, key, offset)
        except FileNotFoundError:
            raise FileCorruptError("the bytes of the file are missing") from None

    def _opened(self, file: BinaryIO, name: str, offset: int) -> Iterator[bytes]:
        head = file.read(HEAD_BYTES)
        key_id, salt = head[len(MARK) : len(MARK) + ID_BYTES], head[len(MARK) + ID_BYTES :]
        if len(salt) != SALT_BYTES:
            raise FileCorruptError("the bytes of the file are not what was written")
        cipher = AESGCM(value_key(self._keys.key(UUID(bytes=key_id)), salt))
        sealed_bytes = PIECE_BYTES + TAG_BYTES
        size = os.fstat(file.fileno()).st_size
        count, end = piece_count(size), size - DIGEST_BYTES
        first = offset // PIECE_BYTES
        file.seek(HEAD_BYTES + first * sealed_bytes)
        for at in range(first, count):
            nonce = _nonce(at, last=at == count - 1)
            try:
                sealed = file.read(min(sealed_bytes, end - file.tell()))
                piece = cipher.decrypt(nonce, sealed, name.encode())
            except (InvalidTag, ValueError):
                raise FileCorruptError("the bytes of the file are not what was written") from None
            yield piece[offset - at * PIECE_BYTES :] if at == first else piece
        if count <= 0:
            raise FileCorruptError("the bytes of the file are not what was written")


class _Counted:
    """Passes bytes on, and computes their number and digest."""

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        self._parts = parts
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            self.digest.update(part)
            self.size_bytes += len(part)
            yield bytes(part)


def _nonce(at: int, *, last: bool) -> bytes:
    return at.to_bytes(8, "big") + bytes([last]) + bytes(3)


def _prove(size_found: int, sha256_found: str, size_bytes: int, sha256: str) -> None:
    if (size_found, sha256_found) != (size_bytes, sha256):
        raise FileCorruptError("the bytes of the file are not what was written")
