"""The port that every place for the bytes of files fills: one object per file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol
from uuid import UUID


class FileCorruptError(Exception):
    """The stored bytes are not what was written."""


class FileTooLarge(Exception):  # noqa: N818 - it says what is wrong with the file
    """A file is larger than it may be."""


class WrongOffset(Exception):  # noqa: N818 - it says where to go on
    """An upload does not stand where the writer wants to go on."""

    def __init__(self, received_bytes: int) -> None:
        super().__init__(f"the upload has {received_bytes} bytes")
        self.received_bytes = received_bytes


class UploadBusy(Exception):  # noqa: N818 - it says what is going on
    """Another call writes to the upload."""


class UploadIncomplete(Exception):  # noqa: N818 - it says what is missing
    """Bytes of an upload are missing."""


class UploadWriter(Protocol):
    """One call that writes to an upload. What it wrote stays, whatever ends it."""

    @property
    def received_bytes(self) -> int:
        """How many bytes are here; once it is closed, for good."""

    def write(self, piece: bytes) -> None:
        """Add the next bytes."""

    def close(self) -> None:
        """Make what is here durable, and let others write."""


class FileBytes(Protocol):
    """Where the bytes of files lie, under `<tenant>/<file id>`. Everything in it blocks."""

    def write(self, *, tenant_id: UUID, file_id: UUID, parts: Sequence[bytes]) -> tuple[int, str]:
        """Store bytes for good; give their size and SHA-256."""

    def read(self, key: str, *, size_bytes: int, sha256: str) -> bytes:
        """Read a file whole and prove its bytes; raises FileCorruptError."""

    def check(self, key: str, *, size_bytes: int, sha256: str) -> None:
        """Prove a file's bytes without holding them; raises FileCorruptError."""

    def pieces(self, key: str, *, offset: int, limit: int, piece_bytes: int) -> Iterator[bytes]:
        """Give a range in pieces."""

    def lend(self, key: str, place: Path, *, size_bytes: int, sha256: str) -> None:
        """Make a proven file appear at a place, to be read only; raises FileCorruptError.

        Whoever removes it there takes nothing away.
        """

    def adopt(
        self, *, tenant_id: UUID, file_id: UUID, descriptor: int, bytes_max: int
    ) -> tuple[int, str]:
        """Copy an open file for good; give the size and SHA-256 of what was copied.

        Raises FileTooLarge, and FileCorruptError for what is no regular file.
        """

    def remove(self, *, tenant_id: UUID, file_id: UUID) -> None:
        """Remove the bytes, those of an upload too; that they are gone already is fine."""

    def written_before(self, moment_s: float) -> Iterator[tuple[UUID, UUID]]:
        """Give tenant and id of what was last written to before a moment, in no order."""

    def received(self, key: str) -> int:
        """Say how many bytes of an upload are here for good."""

    def append(self, key: str, *, offset: int, size_bytes: int) -> UploadWriter:
        """Go on with an upload of so many bytes; raises WrongOffset and UploadBusy."""

    def finish(self, key: str, *, size_bytes: int, sha256: str) -> str:
        """Make a complete upload the file, proven and for good; give its SHA-256.

        Doing it again is fine. Raises UploadIncomplete, UploadBusy, and FileCorruptError where the
        bytes are not what `sha256` says (empty: nobody knows): then they are gone.
        """
