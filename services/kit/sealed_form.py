"""The format of a sealed file, shared by code that has keys and code that only stores files.

    mark (8) · data key (16) · salt (32) · pieces of 64 KiB, each with a tag (16) · SHA-256 (32)

The final digest covers everything before it, so that damage is detected without a key.
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
    """Return the number of pieces of a sealed file of this size."""
    return -(-(sealed_bytes - HEAD_BYTES - DIGEST_BYTES) // (PIECE_BYTES + TAG_BYTES))


def clear_size(sealed_bytes: int) -> int:
    """Return the clear size of a sealed file of this size."""
    return sealed_bytes - HEAD_BYTES - DIGEST_BYTES - TAG_BYTES * piece_count(sealed_bytes)


class Passing:
    """Checks a stored file, clear or sealed, against its row as its bytes pass by."""

    def __init__(self) -> None:
        self._clear = hashlib.sha256()
        self._sealed = hashlib.sha256()
        self._last = b""  # may be the digest at the end
        self._marked: bool | None = None
        self._size = 0

    def feed(self, piece: bytes) -> None:
        """Process the next bytes; the first call must include the whole mark, if there is one."""
        if self._marked is None:
            self._marked = piece.startswith(MARK)
        self._size += len(piece)
        self._clear.update(piece)
        if self._marked:
            held = self._last + piece
            self._sealed.update(held[:-DIGEST_BYTES])
            self._last = held[-DIGEST_BYTES:]

    def proves(self, *, size_bytes: int, sha256: str) -> bool:
        """Return whether the file is the one in the row; an empty digest is not compared."""
        if self._size == size_bytes:
            return not sha256 or self._clear.hexdigest() == sha256
        is_whole = bool(self._marked) and self._last == self._sealed.digest()
        return is_whole and clear_size(self._size) == size_bytes
