"""Typed readers of environment variables; errors name the variable, never its value."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})


SECRETS_FOLDER: Final = "QFLOW_SECRETS_FOLDER"
_SETTING: Final = re.compile(r"QFLOW_[A-Z0-9_]+")
_SECRET_BYTES_MAX: Final = 64 * 1024


class EnvError(ValueError):
    """A setting is missing, invalid or unusable; the process must not start."""


def with_secrets(env: Mapping[str, str]) -> Mapping[str, str]:
    """Add the settings in files of QFLOW_SECRETS_FOLDER; environment variables take precedence.

    Each file is named like the setting whose value it holds, as container engines, Kubernetes and
    systemd provide secrets. Other files in the folder are ignored.
    """
    if not optional(env, SECRETS_FOLDER):
        return env
    folder = path(env, SECRETS_FOLDER)
    try:
        names = [each.name for each in folder.iterdir() if _SETTING.fullmatch(each.name)]
        found = {name: _secret(folder / name) for name in names}
    except OSError as error:
        raise EnvError(f"{SECRETS_FOLDER} cannot be read: {error.strerror}") from None
    return {**found, **{name: value for name, value in env.items() if value or name not in found}}


def laid_out(env: Mapping[str, str], name: str) -> str:
    """Return the path of a file in QFLOW_SECRETS_FOLDER; empty if it does not exist."""
    folder = optional(env, SECRETS_FOLDER)
    file = Path(folder) / name if folder else None
    return str(file) if file is not None and file.exists() else ""


def _secret(file: Path) -> str:
    with file.open("rb") as opened:
        content = opened.read(_SECRET_BYTES_MAX + 1)
    try:
        text = content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        text = "\0"
    if len(content) > _SECRET_BYTES_MAX or not text.isprintable():
        raise EnvError(f"{SECRETS_FOLDER}: {file.name} must be one line of text")
    return text


def required(env: Mapping[str, str], name: str) -> str:
    """Return a required setting; an empty value counts as missing."""
    value = env.get(name, "")
    if not value:
        raise EnvError(f"{name} is not set")
    return value


def optional(env: Mapping[str, str], name: str) -> str | None:
    """Return an optional setting; an empty value counts as missing."""
    return env.get(name, "") or None


def text(env: Mapping[str, str], name: str, default: str) -> str:
    """Return a setting with a default; an empty value counts as missing."""
    return env.get(name, "") or default


def integer(
    env: Mapping[str, str], name: str, default: int, *, low: int = 0, high: int = 2**31 - 1
) -> int:
    """Return an integer within limits."""
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
    """Return a number of seconds, which may be fractional, within limits."""
    value = env.get(name, "")
    try:
        number = float(value) if value else default
    except ValueError:
        raise EnvError(f"{name} must be a number of seconds") from None
    if not (math.isfinite(number) and low <= number <= high):
        raise EnvError(f"{name} must be between {low} and {high} seconds")
    return number


def flag(env: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """Return a boolean: 1, true, yes, on or 0, false, no, off."""
    value = env.get(name, "").lower()
    if not value:
        return default
    if value not in _TRUE | _FALSE:
        raise EnvError(f"{name} must be 1 or 0")
    return value in _TRUE


def path(env: Mapping[str, str], name: str, default: Path | None = None) -> Path:
    """Return an absolute path; without a default it must be set."""
    value = env.get(name, "")
    if not value and default is None:
        raise EnvError(f"{name} is not set")
    return Path(value or str(default)).expanduser().absolute()
