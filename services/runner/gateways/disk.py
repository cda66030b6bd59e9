"""Sizes of folders, and a limit on what running work writes."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

_LOOK_S: Final = 0.5
T = TypeVar("T")


class DiskFullError(Exception):
    """Work wrote more than it may, and was cancelled."""


async def within(work: Coroutine[Any, Any, T], *, used: Callable[[], int], bytes_max: int) -> T:
    """Await work, and check now and then what it has written; raises DiskFullError."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_S))[0]:
            _check(await asyncio.to_thread(used), bytes_max)
    finally:
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        _check(await asyncio.to_thread(used), bytes_max)
    return task.result()


def _check(used: int, bytes_max: int) -> None:
    if used > bytes_max:
        raise DiskFullError(f"more than {bytes_max} bytes")


def folder_bytes(*folders: Path) -> int:
    """Return the total size of the files below folders, counting hard links once."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                try:
                    known = os.lstat(os.path.join(parent, name))  # noqa: PTH118 - faster, for many files
                except OSError:
                    continue
                if known.st_nlink > 1:
                    if (known.st_dev, known.st_ino) in seen:
                        continue
                    seen.add((known.st_dev, known.st_ino))
                total += known.st_size
    return total


def remove_folder(folder: Path) -> None:
    """Remove a folder with its content; does nothing if it is gone already."""
    shutil.rmtree(folder, ignore_errors=True)
