"""Waits out database outages: an attempt's queries are retried until they succeed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from services.kit.errors import Conflict, ResourceExhausted, Unavailable
from services.kit.pg import FILE_QUOTA_REACHED, translate

log = structlog.get_logger()

T = TypeVar("T")

_PAUSE_MAX_S: Final = 1.0


async def patiently(action: Callable[[], Awaitable[T]]) -> T:
    """Run an action, and retry it while it fails for a transient reason.

    Without a limit of its own: the attempt's lease, timeout or a kill ends the waiting.
    """
    pause_s = 0.05
    while True:
        try:
            return await action()
        except Exception as problem:
            if not passing(problem):
                raise
            log.warning("database_awaited", fault=type(problem).__name__)
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - only spreads load
        pause_s = min(pause_s * 2, _PAUSE_MAX_S)


def passing(problem: Exception) -> bool:
    """Return whether a failure is transient, and not caused by the query itself."""
    if isinstance(problem, (OSError, TimeoutError, Unavailable)):
        return True
    told = translate(problem)
    # A tenant's quota is not transient: the caller must report it.
    is_quota = told is not None and told.reason == FILE_QUOTA_REACHED
    return isinstance(told, (Unavailable, Conflict, ResourceExhausted)) and not is_quota
