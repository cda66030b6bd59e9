"""The folder for files lent to a sandbox, and for a large one that it writes.

Lent files are in a folder that the sandbox sees read-only. It writes to one existing file, and
cannot create others, so only that file's size has to be limited.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from uuid import UUID


def make_exchange(root: Path, sandbox_id: UUID) -> Path:
    """Create the exchange of one sandbox."""
    place = root / str(sandbox_id)
    place.mkdir(mode=0o711, parents=True)
    files_of(place).mkdir(mode=0o755)
    output = output_of(place)
    output.touch()
    output.chmod(0o666)  # the sandbox has another user; the folder decides who gets this far
    return place


def files_of(exchange: Path) -> Path:
    """Return the folder of lent files."""
    return exchange / "in"


def output_of(exchange: Path) -> Path:
    """Return the file that the sandbox may write."""
    return exchange / "out"


def remove_exchange(exchange: Path) -> None:
    """Remove an exchange, with whatever is left in it."""
    shutil.rmtree(exchange, ignore_errors=True)
