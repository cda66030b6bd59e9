"""The lock of a home folder: at most one process of a kind holds it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from services.kit.env import EnvError


async def lock_home(
    path: Path,
    *,
    refusal: str,
    wait_s: float | None,
    poll_s: float,
    on_wait: Callable[[], None] = lambda: None,
) -> int:
    """Lock a file, created if missing; return the descriptor that holds the lock.

    While another process holds it, `on_wait` is called once. After `wait_s` seconds (None: never)
    raises EnvError with `refusal`. The kernel releases the lock of a process that died.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if _held(lock):
        return lock
    gives_up_at = None if wait_s is None else time.monotonic() + wait_s
    on_wait()
    try:
        while True:
            await asyncio.sleep(poll_s)
            if _held(lock):
                return lock
            if gives_up_at is not None and time.monotonic() > gives_up_at:
                raise EnvError(refusal)
    except BaseException:
        os.close(lock)
        raise


def _held(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
