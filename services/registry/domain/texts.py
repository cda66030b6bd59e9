"""Validation of names and descriptions."""

from __future__ import annotations

import unicodedata
from typing import Final

from services.kit.errors import FieldViolation, InvalidArgument

NAME_CHARS_MAX: Final = 255
DESCRIPTION_CHARS_MAX: Final = 10_000
# Unicode categories without a visible glyph: controls, formats, surrogates, private, separators.
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})


def name_from(text: str, *, field: str = "name") -> str:
    """Return a valid name: 1 to 255 characters, at least one of them visible."""
    if not 0 < len(text) <= NAME_CHARS_MAX:
        raise _invalid(field, f"must have 1 to {NAME_CHARS_MAX} characters")
    _check_storable(text, field)
    if all(unicodedata.category(each) in _INVISIBLE for each in text):
        raise _invalid(field, "must have at least one visible character")
    if any(unicodedata.category(each) == "Cc" for each in text):
        raise _invalid(field, "must be one line without control characters")
    return text


def description_from(text: str) -> str:
    """Return a valid description: at most 10,000 characters."""
    field = "description"
    if len(text) > DESCRIPTION_CHARS_MAX:
        raise _invalid(field, f"must have at most {DESCRIPTION_CHARS_MAX} characters")
    _check_storable(text, field)
    return text


def _check_storable(text: str, field: str) -> None:
    if "\0" in text:
        raise _invalid(field, "must not contain a NUL character")


def _invalid(field: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        "TEXT_INVALID", f"{field} {description}", fields=[FieldViolation(field, description)]
    )
