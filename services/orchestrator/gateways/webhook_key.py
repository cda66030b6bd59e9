"""The key from which the secrets of event subscriptions are derived, in a private file."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

from services.kit.env import EnvError

_BYTES: Final = 32


def read_or_make(path: Path) -> bytes:
    """Return the key; the first orchestrator of a home creates it, readable by its user only."""
    try:
        if not path.exists():
            _make(path)
        key = path.read_bytes()
    except OSError as error:
        raise EnvError(f"QFLOW_WEBHOOK_KEY_FILE: {error.strerror or error}") from error
    if len(key) < _BYTES:
        raise EnvError(f"QFLOW_WEBHOOK_KEY_FILE must have at least {_BYTES} bytes")
    return key


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # Atomic; if two processes create it at once, the first file stays.
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink()
