"""Files of a backup: compressed, digested while written, and optionally encrypted.

An encrypted file consists of frames of AES-256-GCM under its own key, derived from the backups' key
and a random salt. A frame's nonce contains its number and whether it is the last, so that frames
can be neither swapped nor dropped, nor the end truncated.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PLAIN: Final = ".gz"
ENCRYPTED: Final = ".gz.aes"
_MAGIC: Final = b"QFLOWB1\n"
_SALT_BYTES: Final = 16
_FRAME_BYTES: Final = 1 << 20
_TAG_BYTES: Final = 16
_GZIP: Final = 31  # zlib's value for the gzip format with checksum
_LEVEL: Final = 1  # fast: a higher level would be slower than disks and networks


class CorruptError(Exception):
    """The stored bytes are not what was written, or the key is wrong."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stored file of a backup."""

    name: str
    size_bytes: int
    sha256: str


class Writer:
    """Writes a file that appears complete and synced under its name, or not at all."""

    def __init__(self, path: Path, key: bytes | None) -> None:
        """Open a temporary file for `path`, whose final name depends on encryption."""
        self._path = path.with_name(path.name + (PLAIN if key is None else ENCRYPTED))
        self._beside = path.with_name(f".{path.name}.{os.getpid()}")
        self._packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
        self._digest = hashlib.sha256()
        self._size = self._frames = 0
        self._held = bytearray()
        self._cipher: AESGCM | None = None
        self._file = self._beside.open("wb")
        if key is not None:
            salt = secrets.token_bytes(_SALT_BYTES)
            self._cipher = AESGCM(_derived(key, salt))
            self._put(_MAGIC + salt)

    def write(self, piece: bytes) -> None:
        """Append bytes."""
        self._pack(self._packer.compress(piece))

    def finish(self) -> Part:
        """Complete the file and make it durable under its name."""
        self._pack(self._packer.flush())
        if self._cipher is not None:
            self._put_frame(self._cipher, bytes(self._held), last=True)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._beside.replace(self._path)
        sync_folder(self._path.parent)
        return Part(self._path.name, self._size, self._digest.hexdigest())

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file, and remove it if it was not finished."""
        try:
            self._file.close()
        finally:
            self._beside.unlink(missing_ok=True)

    def _pack(self, packed: bytes) -> None:
        if self._cipher is None:
            self._put(packed)
            return
        self._held += packed
        # Keeps at least one byte, since the last frame must be marked as such.
        while len(self._held) > _FRAME_BYTES:
            self._put_frame(self._cipher, bytes(self._held[:_FRAME_BYTES]), last=False)
            del self._held[:_FRAME_BYTES]

    def _put_frame(self, cipher: AESGCM, frame: bytes, *, last: bool) -> None:
        self._put(cipher.encrypt(_nonce(self._frames, last=last), frame, None))
        self._frames += 1

    def _put(self, piece: bytes) -> None:
        self._digest.update(piece)
        self._size += len(piece)
        self._file.write(piece)


def stored(folder: Path, name: str) -> Path | None:
    """Return the path of a file by its name without suffix; None if there is none."""
    for ending in (PLAIN, ENCRYPTED):
        path = folder / (name + ending)
        if path.is_file():
            return path
    return None


def pieces(path: Path, key: bytes | None) -> Iterator[bytes]:
    """Yield the original bytes, verified as they are read; raises CorruptError."""
    unpacker = zlib.decompressobj(_GZIP)
    with path.open("rb") as file:
        try:
            for packed in _packed(path, file, key):
                if piece := unpacker.decompress(packed):
                    yield piece
            if rest := unpacker.flush():
                yield rest
        except zlib.error as error:
            raise CorruptError(f"{path.name}: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise CorruptError(f"{path.name} is truncated or longer than it was")


def digest(path: Path) -> Part:
    """Return size and digest of a stored file."""
    found = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(_FRAME_BYTES):
            found.update(piece)
            size += len(piece)
    return Part(path.name, size, found.hexdigest())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _packed(path: Path, file: IO[bytes], key: bytes | None) -> Iterator[bytes]:
    if not path.name.endswith(ENCRYPTED):
        while piece := file.read(_FRAME_BYTES):
            yield piece
        return
    if key is None:
        raise CorruptError(f"{path.name} is encrypted: set QFLOW_BACKUP_KEY_FILE to its key")
    head = file.read(len(_MAGIC) + _SALT_BYTES)
    if len(head) != len(_MAGIC) + _SALT_BYTES or not head.startswith(_MAGIC):
        raise CorruptError(f"{path.name} is not an encrypted file of a backup")
    cipher = AESGCM(_derived(key, head[len(_MAGIC) :]))
    number, frame = 0, file.read(_FRAME_BYTES + _TAG_BYTES)
    while True:
        after = file.read(_FRAME_BYTES + _TAG_BYTES)
        try:
            yield cipher.decrypt(_nonce(number, last=not after), frame, None)
        except InvalidTag:
            raise CorruptError(
                f"{path.name}: frame {number} is not as it was written, or the key is wrong"
            ) from None
        if not after:
            return
        number, frame = number + 1, after


def _derived(key: bytes, salt: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=b"qflow backup").derive(key)


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
