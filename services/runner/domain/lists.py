"""Lists in JSON texts: how many elements they have, and each element exactly as it was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

# Counting holds a reference to each element for a moment, some 60 bytes: this bounds it.
COUNTED_MAX: Final = 4_000_000
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


def count_elements(text: bytes) -> int | None:
    """Count a list's elements, null as an empty one; None of what is no list or may be too long."""
    if text.strip() == b"null":
        return 0
    if text.count(b",") >= COUNTED_MAX:
        return None
    try:
        return len(_LIST.decode(text))
    except msgspec.DecodeError:
        return None


def split(text: bytes) -> Sequence[msgspec.Raw]:
    """Split a list; the elements are views of the text. Raises ValueError when it is none."""
    try:
        return _LIST.decode(text)
    except msgspec.DecodeError as problem:
        raise ValueError(str(problem)) from None
