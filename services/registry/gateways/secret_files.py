"""Secrets as files of mode 0600 under the home folder, written atomically."""

from __future__ import annotations

import os
from pathlib import Path


def secret_path(home: Path, name: str) -> Path:
    """Return the path of a secret."""
    return home / "secrets" / name


def read_secret(home: Path, name: str) -> str | None:
    """Return a secret; None if there is none."""
    try:
        return secret_path(home, name).read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def write_secret(home: Path, name: str, text: str) -> Path:
    """Write a secret that only this user can read; returns its path."""
    path = secret_path(home, name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(beside, flags, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    return path
