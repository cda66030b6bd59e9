"""The place where files are handed to a sandbox, and where it puts a large one of its own.

Files to read lie in a folder that the sandbox sees read-only. What it writes goes into one file
that is there already: it can make no other, so its size is all that has to be bounded.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from uuid import UUID


def make_exchange(root: Path, sandbox_id: UUID) -> Path:
    """Make the place of one sandbox."""
    place = root / str(sandbox_id)
    place.mkdir(mode=0o711, parents=True)
    files_of(place).mkdir(mode=0o755)
    output = output_of(place)
    output.touch()
    output.chmod(0o666)  # the sandbox's user is another; who gets this far decides the folder
    return place


def files_of(exchange: Path) -> Path:
    """Give the folder of what is handed in."""
    return exchange / "in"


def output_of(exchange: Path) -> Path:
    """Give the file that the sandbox may write."""
    return exchange / "out"


def remove_exchange(exchange: Path) -> None:
    """Remove it, with whatever is left in it."""
    shutil.rmtree(exchange, ignore_errors=True)
