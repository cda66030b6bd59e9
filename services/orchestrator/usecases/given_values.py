"""Values that callers give as JSON texts: what is wrong with one is told by its place in it."""

from __future__ import annotations

from typing import Any

from qflow.types import Type, ValueTextError, check_value, parse_strict

from services.kit.errors import InvalidArgument, invalid


def parsed(field: str, text: str) -> Any:
    """Read a value."""
    try:
        return parse_strict(text)
    except ValueTextError as error:
        raise wrong_at(field, error.path, "VALUE_INVALID", error.message) from None


def check(field: str, of: Type, value: Any, name: str = "") -> None:
    """Hold a value against a type; `name` is where it stands within the field, if it does."""
    wrong = check_value(of, value, name)
    if wrong is not None:
        raise wrong_at(field, wrong.path, "TYPE_MISMATCH", wrong.message)


def wrong_at(field: str, path: str, reason: str, description: str) -> InvalidArgument:
    """Make the error for what stands at a path within a field; without a path, for the field."""
    return invalid(f"{field}.{path}" if path else field, reason, description)
