"""Typed readers of environment variables: a wrong value names its variable, never its content."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})


class EnvError(ValueError):
    """A setting is missing, cannot be read or leads nowhere; the process must not start."""


def required(env: Mapping[str, str], name: str) -> str:
    """Return a setting that must be there; empty counts as missing."""
    value = env.get(name, "")
    if not value:
        raise EnvError(f"{name} is not set")
    return value


def optional(env: Mapping[str, str], name: str) -> str | None:
    """Return a setting that may be missing; empty counts as missing."""
    return env.get(name, "") or None


def text(env: Mapping[str, str], name: str, default: str) -> str:
    """Return a setting with a default; empty counts as missing."""
    return env.get(name, "") or default


def integer(
    env: Mapping[str, str], name: str, default: int, *, low: int = 0, high: int = 2**31 - 1
) -> int:
    """Return a whole number within limits."""
    value = env.get(name, "")
    try:
        number = int(value) if value else default
    except ValueError:
        raise EnvError(f"{name} must be a whole number") from None
    if not low <= number <= high:
        raise EnvError(f"{name} must be between {low} and {high}")
    return number


def seconds(
    env: Mapping[str, str], name: str, default: float, *, low: float = 0.0, high: float = 86_400.0
) -> float:
    """Return a span in seconds, fractions allowed, within limits."""
    value = env.get(name, "")
    try:
        number = float(value) if value else default
    except ValueError:
        raise EnvError(f"{name} must be a number of seconds") from None
    if not (math.isfinite(number) and low <= number <= high):
        raise EnvError(f"{name} must be between {low} and {high} seconds")
    return number


def flag(env: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """Return a switch: 1, true, yes, on or 0, false, no, off."""
    value = env.get(name, "").lower()
    if not value:
        return default
    if value not in _TRUE | _FALSE:
        raise EnvError(f"{name} must be 1 or 0")
    return value in _TRUE


def path(env: Mapping[str, str], name: str, default: Path | None = None) -> Path:
    """Return a file or folder, absolute; without a default it must be set."""
    value = env.get(name, "")
    if not value and default is None:
        raise EnvError(f"{name} is not set")
    return Path(value or str(default)).expanduser().absolute()
