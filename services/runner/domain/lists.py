"""Lists in JSON texts: their lengths, and their elements exactly as written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

# Counting briefly holds some 60 bytes per element: this bounds the memory.
COUNTED_MAX: Final = 4_000_000
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


def count_elements(text: bytes) -> int | None:
    """Return a list's length, 0 for null; None for other values, and if it may be too long."""
    if text.strip() == b"null":
        return 0
    if text.count(b",") >= COUNTED_MAX:
        return None
    try:
        return len(_LIST.decode(text))
    except msgspec.DecodeError:
        return None


def split(text: bytes) -> Sequence[msgspec.Raw]:
    """Split a list into views of its text; raises ValueError if it is not a list."""
    try:
        return _LIST.decode(text)
    except msgspec.DecodeError as problem:
        raise ValueError(str(problem)) from None
