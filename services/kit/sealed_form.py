"""The form of a sealed file, for who seals and opens it and for who keeps it without any key.

    mark (8) · data key (16) · salt (32) · pieces of 64 KiB, each with a tag (16) · SHA-256 (32)

The digest at the end is of all before it: so damage is seen also where nothing can be opened.
"""

from __future__ import annotations

import hashlib
from typing import Final

MARK: Final = b"\x89QFLOW\x01\n"
ID_BYTES: Final = 16
SALT_BYTES: Final = 32
HEAD_BYTES: Final = len(MARK) + ID_BYTES + SALT_BYTES
PIECE_BYTES: Final = 64 * 1024
TAG_BYTES: Final = 16
DIGEST_BYTES: Final = 32


def piece_count(sealed_bytes: int) -> int:
    """Count the pieces of a sealed file by its size."""
    return -(-(sealed_bytes - HEAD_BYTES - DIGEST_BYTES) // (PIECE_BYTES + TAG_BYTES))


def clear_size(sealed_bytes: int) -> int:
    """Give how many clear bytes a sealed file of a size has."""
    return sealed_bytes - HEAD_BYTES - DIGEST_BYTES - TAG_BYTES * piece_count(sealed_bytes)


class Passing:
    """Bytes of a stored file as they pass: proven against its row, clear or sealed."""

    def __init__(self) -> None:
        self._clear = hashlib.sha256()
        self._sealed = hashlib.sha256()
        self._last = b""  # what may be the digest at the end
        self._marked: bool | None = None
        self._size = 0

    def feed(self, piece: bytes) -> None:
        """Take the next bytes; the first piece has the mark, or the file is shorter."""
        if self._marked is None:
            self._marked = piece.startswith(MARK)
        self._size += len(piece)
        self._clear.update(piece)
        if self._marked:
            held = self._last + piece
            self._sealed.update(held[:-DIGEST_BYTES])
            self._last = held[-DIGEST_BYTES:]

    def proves(self, *, size_bytes: int, sha256: str) -> bool:
        """Say whether it is the file that a row tells of; an empty digest is not compared."""
        if self._size == size_bytes:
            return not sha256 or self._clear.hexdigest() == sha256
        is_whole = bool(self._marked) and self._last == self._sealed.digest()
        return is_whole and clear_size(self._size) == size_bytes
