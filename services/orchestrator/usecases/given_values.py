"""JSON texts given by callers; errors name the path within the text."""

from __future__ import annotations

from typing import Any

from qflow.types import Type, ValueTextError, check_value, parse_strict

from services.kit.errors import InvalidArgument, invalid


def parsed(field: str, text: str) -> Any:
    """Decode a value."""
    try:
        return parse_strict(text)
    except ValueTextError as error:
        raise wrong_at(field, error.path, "VALUE_INVALID", error.message) from None


def check(field: str, of: Type, value: Any, name: str = "") -> None:
    """Check a value against a type; `name` is its path within the field, if any."""
    wrong = check_value(of, value, name)
    if wrong is not None:
        raise wrong_at(field, wrong.path, "TYPE_MISMATCH", wrong.message)


def wrong_at(field: str, path: str, reason: str, description: str) -> InvalidArgument:
    """Return the error for a path within a field, or for the field itself."""
    return invalid(f"{field}.{path}" if path else field, reason, description)
