"""Limits the disk space of sandboxes that have no file system of their own.

The kernel cannot limit a folder, so it is measured periodically, and may exceed the limit in
between. A single file is limited at once, by RLIMIT_FSIZE.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from services.runner.domain.limits import MIB
from services.runner.gateways.sandbox.process import SandboxProcess

_EVERY_S: Final = 0.5
_BLOCK_BYTES: Final = 512  # unit of st_blocks, on every file system
# Empty files count too: a million of them exhaust a disk's inodes.
_ENTRY_BYTES: Final = 4096


async def hold(sandbox: SandboxProcess, folder: Path, bytes_max: int) -> None:
    """End a sandbox that exceeds the limit of its folder; returns once the sandbox has ended."""
    while not sandbox.ended.done():
        try:
            more = await asyncio.to_thread(_has_more, folder, sandbox.pid, bytes_max)
        except FileNotFoundError:  # it has ended, and its folder is gone
            return
        if more:
            sandbox.end(
                "the sandbox was ended: it had more in its temporary folder than the limit,"
                f" {bytes_max // MIB} MiB"
            )
            return
        await asyncio.wait((sandbox.ended,), timeout=_EVERY_S)


def _has_more(folder: Path, pid: int, bytes_max: int) -> bool:
    """Sum up the folder's files, and open ones that were deleted, until that is too much."""
    used = 0
    folders = [os.fspath(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    used += max(_ENTRY_BYTES, _size(entry.stat(follow_symlinks=False)))
                    if used > bytes_max:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except PermissionError:  # made unreadable for its own user
            return True
        except OSError:  # removed meanwhile
            continue
    return used + _deleted_bytes(pid, folder.stat().st_dev) > bytes_max


def _deleted_bytes(first: int, device: int) -> int:
    """Sum up the deleted files that a process or a descendant holds open."""
    found: dict[int, int] = {}
    pids = [first]
    while pids:
        place = Path(f"/proc/{pids.pop()}")
        with contextlib.suppress(OSError):  # ended meanwhile, or only root may look
            for thread in (place / "task").iterdir():
                pids.extend(int(each) for each in (thread / "children").read_text().split())
            for descriptor in (place / "fd").iterdir():
                with contextlib.suppress(OSError):  # closed meanwhile
                    seen = descriptor.stat()
                    if stat.S_ISREG(seen.st_mode) and (seen.st_dev, seen.st_nlink) == (device, 0):
                        found[seen.st_ino] = _size(seen)
    return sum(found.values())


def _size(seen: os.stat_result) -> int:
    return seen.st_blocks * _BLOCK_BYTES
