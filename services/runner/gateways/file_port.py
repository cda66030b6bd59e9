"""The port for storage of file contents: one object per file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol
from uuid import UUID


class FileCorruptError(Exception):
    """The stored bytes are not those that were written."""


class FileTooLarge(Exception):  # noqa: N818 - it says what is wrong with the file
    """A file is larger than it may be."""


class WrongOffset(Exception):  # noqa: N818 - it says where to continue
    """An upload cannot continue at the given offset."""

    def __init__(self, received_bytes: int) -> None:
        super().__init__(f"the upload has {received_bytes} bytes")
        self.received_bytes = received_bytes


class UploadBusy(Exception):  # noqa: N818 - the upload is fine, only busy
    """Another call is writing to the upload."""


class UploadIncomplete(Exception):  # noqa: N818 - it says what is missing
    """An upload has not received all of its bytes."""


class UploadWriter(Protocol):
    """Appends to an upload during one call; what was written is kept, however the call ends."""

    @property
    def received_bytes(self) -> int:
        """How many bytes there are; once closed, they are durable."""

    def write(self, piece: bytes) -> None:
        """Append the next bytes."""

    def close(self) -> None:
        """Make the bytes durable, and let others write."""


class FileBytes(Protocol):
    """Storage of file contents, under `<tenant>/<file id>`. All methods block."""

    def write(self, *, tenant_id: UUID, file_id: UUID, parts: Sequence[bytes]) -> tuple[int, str]:
        """Store bytes durably; return their size and SHA-256."""

    def read(self, key: str, *, size_bytes: int, sha256: str) -> bytes:
        """Read a whole file and verify it; raises FileCorruptError."""

    def check(self, key: str, *, size_bytes: int, sha256: str) -> None:
        """Verify a file without keeping it in memory; raises FileCorruptError."""

    def pieces(self, key: str, *, offset: int, limit: int, piece_bytes: int) -> Iterator[bytes]:
        """Yield a range in pieces."""

    def lend(self, key: str, place: Path, *, size_bytes: int, sha256: str) -> None:
        """Make a verified file available at a path, read-only; raises FileCorruptError.

        Deleting it there does not affect the stored file.
        """

    def adopt(
        self, *, tenant_id: UUID, file_id: UUID, descriptor: int, bytes_max: int
    ) -> tuple[int, str]:
        """Store a copy of an open file durably; return the size and SHA-256 of the copy.

        Raises FileTooLarge, or FileCorruptError if it is not a regular file.
        """

    def remove(self, *, tenant_id: UUID, file_id: UUID) -> None:
        """Remove the bytes of a file or an upload; does nothing if they are gone already."""

    def written_before(self, moment_s: float) -> Iterator[tuple[UUID, UUID]]:
        """Yield tenant and id of files last written before a time, in any order."""

    def received(self, key: str) -> int:
        """Return how many bytes of an upload are durable."""

    def append(self, key: str, *, offset: int, size_bytes: int) -> UploadWriter:
        """Continue an upload of `size_bytes` at an offset; raises WrongOffset and UploadBusy."""

    def finish(self, key: str, *, size_bytes: int, sha256: str) -> str:
        """Turn a complete upload into the file, verified and durable; return its SHA-256.

        Idempotent. Raises UploadIncomplete, UploadBusy, or FileCorruptError if the bytes do not
        match `sha256` (empty: unknown), in which case they are deleted.
        """
