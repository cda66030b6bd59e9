"""The key that the secrets of subscriptions are derived from: a file of the orchestrators alone."""

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
    """Give the key; the first orchestrator of a home makes it, for its owner's eyes alone."""
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
        # Whole or not at all, and the first one stays where two begin at once.
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink()
