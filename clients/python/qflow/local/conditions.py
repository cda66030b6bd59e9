"""Conditions of local runs, in CEL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qflow.exceptions import AuthoringError, ExecutionFailedError


def holds(condition: str, given: Mapping[str, Any], *, place_id: str, what: str) -> bool:
    """Evaluate a condition over JSON values; an error fails the place.

    `what` says which of the place's conditions it is.
    """
    try:
        import cel  # imported late: needed for conditions only
    except ImportError:
        raise AuthoringError(
            "conditions run locally with the package common-expression-language: install it, or "
            "qflow[local]"
        ) from None
    try:
        found = cel.evaluate(condition, dict(given))
    except Exception as error:  # noqa: BLE001  # whatever the library raises
        fault = str(error)
    else:
        if isinstance(found, bool):
            return found
        fault = f"{condition!r} is {found!r}, neither true nor false"
    raise ExecutionFailedError(f"{what}: {fault}", error_type="condition_error", node_id=place_id)
