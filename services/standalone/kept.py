"""One child that is kept running, and what is done with several of them."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from services.standalone import process

_BACKOFF_FIRST_S: Final = 0.25


@dataclass(slots=True)
class Kept:
    """One child that is started again when it ends."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    child: subprocess.Popen[bytes] | None = None
    failures: int = 0
    ready: bool = False


def backoff_s(failures: int, *, max_s: float) -> float:
    """Give the pause before a start: none after the first end, then doubling to the longest."""
    if failures <= 1:
        return 0.0
    return min(max_s, _BACKOFF_FIRST_S * 2.0 ** min(failures - 2, 20))


async def all_gone(children: Sequence[subprocess.Popen[bytes]], *, timeout_s: float) -> None:
    """Wait until all have ended, or for so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            for child in children:
                await process.wait(child)


def first_of(
    group: BaseExceptionGroup[BaseException], kind: type[BaseException]
) -> BaseException | None:
    """Give the first error of a kind in a group, however deep."""
    for error in group.exceptions:
        found = first_of(error, kind) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, kind):
            return found
    return None
