"""File contents in a folder: of this machine, or of a disk shared by all runners."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias
from uuid import UUID

from services.runner.gateways.file_port import (
    FileCorruptError,
    FileTooLarge,
    UploadBusy,
    UploadIncomplete,
    UploadWriter,
    WrongOffset,
)

if TYPE_CHECKING:
    from hashlib import _Hash

    Buffer: TypeAlias = bytes | memoryview

_READ_BYTES: Final = 1024 * 1024
_DIGESTS_KEPT_MAX: Final = 256
_PROVEN_KEPT_MAX: Final = 10_000
# Stored files are never written again. World-readable where they are lent: the folder's mode
# decides.
MODE: Final = 0o444
# Device, inode, size, and modification time.
_Facts: TypeAlias = tuple[int, int, int, int]


class Digests:
    """Running hashes of uploads: one received entirely by this process is not read again.

    Only a cache: whatever is missing, or at another offset, is computed from the file.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[int, _Hash]] = OrderedDict()

    def take(self, key: str, *, at: int) -> _Hash | None:
        """Remove and return the hash of an upload's first `at` bytes, if it is known."""
        found = self._known.pop(key, None)
        if at == 0:
            return hashlib.sha256()
        return found[1] if found is not None and found[0] == at else None

    def keep(self, key: str, digest: _Hash | None, *, at: int) -> None:
        """Keep a hash until it is taken."""
        if digest is not None:
            self._known[key] = (at, digest)
            if len(self._known) > _DIGESTS_KEPT_MAX:
                self._known.popitem(last=False)


class FileStore:
    """A folder; files appear complete and synced, by a rename."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._digests = Digests()
        self._proven: OrderedDict[str, tuple[str, _Facts]] = OrderedDict()

    def write(self, *, tenant_id: UUID, file_id: UUID, parts: Sequence[bytes]) -> tuple[int, str]:
        """Store bytes durably, file and folder synced; return their size and SHA-256."""
        return self._store(tenant_id, file_id, parts)

    def adopt(
        self, *, tenant_id: UUID, file_id: UUID, descriptor: int, bytes_max: int
    ) -> tuple[int, str]:
        """Store a copy of an open file durably; return the size and SHA-256 of the copy."""
        size = regular_size(descriptor, bytes_max)
        return self._store(tenant_id, file_id, pieces_of(descriptor, size))

    def lend(self, key: str, place: Path, *, size_bytes: int, sha256: str) -> None:
        """Make a verified file available at a path: as a link, so that nothing is copied."""
        path = self._path(key)
        self._prove(path, key, size_bytes, sha256)
        try:
            place.hardlink_to(path)
        except FileExistsError:
            return
        except OSError as problem:
            if problem.errno not in {errno.EXDEV, errno.EMLINK, errno.EPERM}:
                raise
            shutil.copyfile(path, place)
            place.chmod(MODE)

    def _prove(self, path: Path, key: str, size_bytes: int, sha256: str) -> None:
        """Verify a file, unless this process has done so and it has not changed since."""
        try:
            with path.open("rb") as file:
                facts = _facts(file.fileno())
                if self._proven.get(key) == (sha256, facts):
                    return
                self.check(key, size_bytes=size_bytes, sha256=sha256)
                os.fchmod(file.fileno(), MODE)
                self._remember(key, sha256, _facts(file.fileno()))
        except OSError:
            raise FileCorruptError("the bytes of the file are missing") from None

    def _remember(self, key: str, sha256: str, facts: _Facts) -> None:
        self._proven[key] = (sha256, facts)
        if len(self._proven) > _PROVEN_KEPT_MAX:
            self._proven.popitem(last=False)

    def _store(self, tenant_id: UUID, file_id: UUID, parts: Iterable[Buffer]) -> tuple[int, str]:
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
                os.fchmod(file.fileno(), MODE)
                os.fsync(file.fileno())
                facts = _facts(file.fileno())
            staged.replace(target)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        _sync_folder(folder)
        _sync_folder(self._root)
        found = digest.hexdigest()
        self._remember(f"{tenant_id}/{file_id}", found, facts)
        return size, found

    def read(self, key: str, *, size_bytes: int, sha256: str) -> bytes:
        """Read a whole file and verify it; raises FileCorruptError."""
        try:
            data = self._path(key).read_bytes()
        except OSError:
            raise FileCorruptError("the bytes of the file are missing") from None
        if len(data) != size_bytes or hashlib.sha256(data).hexdigest() != sha256:
            raise FileCorruptError("the bytes of the file are not what was written")
        return data

    def check(self, key: str, *, size_bytes: int, sha256: str) -> None:
        """Verify a file without keeping it in memory; raises FileCorruptError."""
        try:
            found = _digest_of(self._path(key))
        except OSError:
            raise FileCorruptError("the bytes of the file are missing") from None
        if found != (size_bytes, sha256):
            raise FileCorruptError("the bytes of the file are not what was written")

    def pieces(self, key: str, *, offset: int, limit: int, piece_bytes: int) -> Iterator[bytes]:
        """Yield a range in pieces."""
        with self._path(key).open("rb") as file:
            file.seek(offset)
            left = limit
            while left > 0 and (piece := file.read(min(piece_bytes, left))):
                left -= len(piece)
                yield piece

    def remove(self, *, tenant_id: UUID, file_id: UUID) -> None:
        """Remove the bytes of a file or an upload; does nothing if they are gone already."""
        folder = self._root / str(tenant_id)
        for name in (f"{file_id}", f".{file_id}", f".{file_id}.part"):
            (folder / name).unlink(missing_ok=True)

    def written_before(self, moment_s: float) -> Iterator[tuple[UUID, UUID]]:
        """Yield tenant and id of files last written before a time, including incomplete ones."""
        if not self._root.is_dir():
            return
        for folder in os.scandir(self._root):
            for entry in os.scandir(folder):
                name = entry.name.removeprefix(".").removesuffix(".part")
                try:
                    if entry.stat().st_mtime < moment_s:
                        yield UUID(folder.name), UUID(name)
                except (FileNotFoundError, ValueError):
                    continue  # it is gone, or not one of ours

    # -- uploads

    def received(self, key: str) -> int:
        """Return how many bytes of an upload are durable."""
        for path in (_partial(self._path(key)), self._path(key)):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                continue
        return 0

    def append(self, key: str, *, offset: int, size_bytes: int) -> UploadWriter:  # noqa: ARG002
        """Continue an upload; raises WrongOffset and UploadBusy."""
        path = self._path(key)
        if path.exists():  # complete, but without a row
            raise WrongOffset(self.received(key))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _LocalWriter(_partial(path), key, self._digests, offset=offset)

    def finish(self, key: str, *, size_bytes: int, sha256: str) -> str:
        """Turn a complete upload into the file by a rename; raises as the port says."""
        path, partial = self._path(key), _partial(self._path(key))
        if path.exists():  # only the row was missing
            found = _digest_of(path)[1]
            if sha256 and found != sha256:
                raise FileCorruptError("the bytes of the file are not what the digest says")
            return found
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = _lock(partial)
        try:
            if os.fstat(descriptor).st_size != size_bytes:
                raise UploadIncomplete
            digest = self._digests.take(key, at=size_bytes)
            found = digest.hexdigest() if digest is not None else _digest_of(partial)[1]
            if sha256 and found != sha256:
                partial.unlink()
                raise FileCorruptError("the bytes of the file are not what the digest says")
            os.fchmod(descriptor, MODE)
            os.fsync(descriptor)
            partial.replace(path)
            self._remember(key, found, _facts(descriptor))
        finally:
            os.close(descriptor)
        _sync_folder(path.parent)
        _sync_folder(self._root)
        return found

    def _path(self, key: str) -> Path:
        # The key comes from our own table, but is checked anyway: a path consists of two UUIDs
        # only.
        tenant, _, file = key.partition("/")
        return self._root / str(UUID(tenant)) / str(UUID(file))


class _LocalWriter:
    def __init__(self, path: Path, key: str, digests: Digests, *, offset: int) -> None:
        self._key = key
        self._digests = digests
        self._descriptor = _lock(path)
        self.received_bytes = os.fstat(self._descriptor).st_size
        if self.received_bytes != offset:
            os.close(self._descriptor)
            raise WrongOffset(self.received_bytes)
        self._digest = digests.take(key, at=offset)

    def write(self, piece: bytes) -> None:
        """Append the next bytes."""
        left = memoryview(piece)
        while left:
            left = left[
                os.pwrite(self._descriptor, left, self.received_bytes + len(piece) - len(left)) :
            ]
        if self._digest is not None:
            self._digest.update(piece)
        self.received_bytes += len(piece)

    def close(self) -> None:
        """Make the bytes durable, and let others write."""
        try:
            os.fdatasync(self._descriptor)
            self._digests.keep(self._key, self._digest, at=self.received_bytes)
        finally:
            os.close(self._descriptor)


def regular_size(descriptor: int, bytes_max: int) -> int:
    """Return the size of an open file; raises FileCorruptError and FileTooLarge."""
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        raise FileCorruptError("the file is not a regular file")
    if facts.st_size > bytes_max:
        raise FileTooLarge
    return facts.st_size


def pieces_of(descriptor: int, size: int) -> Iterator[Buffer]:
    """Read an open file from its start, reusing one buffer, up to its initial size."""
    buffer = memoryview(bytearray(min(size, _READ_BYTES)))
    at = 0
    while at < size:
        count = os.preadv(descriptor, [buffer[: size - at]], at)
        if not count:
            return
        yield buffer[:count]
        at += count


def _facts(descriptor: int) -> _Facts:
    facts = os.fstat(descriptor)
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _lock(path: Path) -> int:
    """Open an upload and lock it against other writers of any process; raises UploadBusy."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UploadBusy from None
    return descriptor


def _digest_of(path: Path) -> tuple[int, str]:
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            size += len(piece)
    return size, digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
