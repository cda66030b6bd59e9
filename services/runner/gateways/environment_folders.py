"""Environments on disk: locks of their users, their sizes, eviction, and leftovers of crashes.

A folder in use is protected by a lock on the folder itself, which all runners of the home see and
which ends with the process. To remove a folder it is renamed first: whoever opens it by its name
gets all of it or nothing.

    <tenant>/<key>          an environment; its modification time is its last use
    <tenant>/.build         the tenant's builds: `.lock`, `.cache`, and what is staged
    <tenant>/.wheels        the tenant's own wheels, as links
    <tenant>/.resolve       the cache of resolutions that see the tenant's own wheels
    .resolve                the cache of all others
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

from services.runner.domain.eviction import Kept
from services.runner.gateways.disk import folder_bytes, remove_folder

BUILD: Final = ".build"
RESOLVE: Final = ".resolve"
CACHE: Final = ".cache"
LOCK: Final = ".lock"
_GONE: Final = "gone-"
# What a killed build leaves in its folder.
_LEFT: Final = ("staged", "lock", "bytecode-*", f"{_GONE}*", f"{CACHE}/.tmp*")
# A walk pauses after this many files, so that other threads can run.
_FILES_AT_ONCE: Final = 2_000
_LOCK_WAIT_S: Final = 0.05


def pin(folder: Path) -> int | None:
    """Lock an environment until the descriptor is closed; None if it does not exist."""
    while True:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # only waits for a rename by an eviction
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        os.close(descriptor)


def touch(folder: Path, moment_s: float) -> None:
    """Set the time of an environment's last use."""
    with suppress(FileNotFoundError):
        os.utime(folder, (moment_s, moment_s))


def evict(folder: Path) -> bool:
    """Remove an environment; False if it is in use, or gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gone = folder.parent / BUILD / f"{_GONE}{uuid.uuid4()}"
        gone.parent.mkdir(mode=0o755, exist_ok=True)
        folder.rename(gone)
    except OSError:  # it is in use, or was removed meanwhile
        return False
    finally:
        os.close(descriptor)
    remove_folder(gone)
    return True


def drop_cache(shop: Path) -> bool:
    """Delete the cache of a build folder; False while a build runs there."""
    with _locked(shop / LOCK) as held:
        if held:
            remove_folder(shop / CACHE)
        return held


def sweep(root: Path) -> int:
    """Remove leftovers of killed builds; return how many."""
    found = 0
    for shop in root.glob(f"*/{BUILD}"):
        with _locked(shop / LOCK) as held:
            for pattern in _LEFT if held else ():
                for left in shop.glob(pattern):
                    if left.is_dir() and not left.is_symlink():
                        remove_folder(left)
                    else:
                        left.unlink(missing_ok=True)
                    found += 1
    return found


def free_bytes(root: Path) -> int:
    """Return the disk space that is free for unprivileged users."""
    state = os.statvfs(root)
    return state.f_bavail * state.f_frsize


def measure(root: Path) -> list[Kept]:
    """Measure all environments and caches. Slow if there are many; call it in a thread."""
    kept: list[Kept] = []
    for tenant in _folders(root):
        if tenant.name == RESOLVE:
            kept.append(_cache(root, tenant))
            continue
        try:
            UUID(tenant.name)
        except ValueError:
            continue
        for folder in _folders(tenant):
            if folder.name in {BUILD, RESOLVE}:
                kept.append(_cache(root, folder))
            elif not folder.name.startswith("."):
                kept.append(_measured(root, folder, folder, is_cache=False))
    return kept


class Built(NamedTuple):
    """An environment on disk."""

    key: str
    used_at: float
    size_bytes: int  # 0 if not measured


def built_of(tenant: Path, *, sized: bool) -> list[Built]:
    """Return a tenant's environments. With sizes it is slow: call it in a thread."""
    return [
        Built(each.name, _use(each)[0], folder_bytes(each) if sized else 0)
        for each in _folders(tenant)
        if not each.name.startswith(".")
    ]


def _cache(root: Path, shop: Path) -> Kept:
    return _measured(root, shop, shop / CACHE, is_cache=True)


def _measured(root: Path, folder: Path, whole: Path, *, is_cache: bool) -> Kept:
    used_at, pinned = _use(folder / LOCK if is_cache else folder)
    return Kept(
        name=str(folder.relative_to(root)),
        is_cache=is_cache,
        used_at=used_at,
        pinned=pinned,
        files=dict(_files(whole)),
    )


def _use(path: Path) -> tuple[float, bool]:
    """Return the time of the last use, and whether it is in use; 0 and False if it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0.0, False
    try:
        used_at = os.fstat(descriptor).st_mtime
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return used_at, True
    finally:
        os.close(descriptor)
    return used_at, False


def _files(folder: Path) -> Iterator[tuple[int, int]]:
    count = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                known = os.lstat(os.path.join(parent, name))  # noqa: PTH118 - faster, for many files
                yield known.st_ino, known.st_blocks * 512
            count += 1
            if count % _FILES_AT_ONCE == 0:
                time.sleep(0.001)


def _folders(parent: Path) -> list[Path]:
    try:
        return [each for each in parent.iterdir() if each.is_dir() and not each.is_symlink()]
    except OSError:
        return []


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Try to lock a file; yields whether that succeeded."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(descriptor)


@asynccontextmanager
async def in_turn(path: Path, *, shared: bool = False) -> AsyncIterator[None]:
    """Hold a lock that all runners of this machine respect; it ends with the process."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        while True:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # polled: builds are too long to wait in a thread
                await asyncio.sleep(_LOCK_WAIT_S)
        os.utime(descriptor)  # the time of the cache's last use
        yield
    finally:
        os.close(descriptor)
