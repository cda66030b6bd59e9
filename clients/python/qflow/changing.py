"""Changes of options by name; unknown names are refused with a hint."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from qflow.exceptions import AuthoringError

T = TypeVar("T")


def changed(options: T, changes: Mapping[str, Any]) -> T:
    """Return a copy of an options dataclass with changes."""
    there = [each.name for each in dataclasses.fields(options)]  # type: ignore[arg-type]
    unknown = next((name for name in changes if name not in there), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, there, n=1)
        meant = f" (is {near[0]} meant?)" if near else ""
        raise AuthoringError(f"there is no option {unknown}{meant}; there are {', '.join(there)}")
    return dataclasses.replace(options, **changes)  # type: ignore[type-var]
