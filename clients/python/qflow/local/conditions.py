"""Conditions of local runs, in CEL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qflow.exceptions import AuthoringError


def holds(condition: str, given: Mapping[str, Any]) -> bool:
    """Evaluate a condition over JSON values."""
    try:
        import cel  # late: what has no condition does without the library
    except ImportError:
        raise AuthoringError(
            "conditions run locally with the package common-expression-language: install it, or "
            "qflow[local]"
        ) from None
    try:
        return cel.evaluate(condition, dict(given)) is True
    except (ValueError, TypeError, RuntimeError) as error:
        raise AuthoringError(f"the condition {condition!r} cannot be worked out: {error}") from None
