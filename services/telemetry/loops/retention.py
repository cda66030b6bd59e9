"""Retention on a timer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from services.kit.loops import pause, repeat
from services.kit.pg import Pool
from services.telemetry.usecases.figures import Work
from services.telemetry.usecases.retain import forget_all

# A suite that has just started has better things to do.
_FIRST_MAX_S: Final = 60.0


async def forget_expired(
    pool: Pool, stop: asyncio.Event, *, keep: Mapping[str, timedelta], interval_s: float, work: Work
) -> None:
    """Forget what is due soon after the start and at each interval."""

    async def step() -> float:
        await forget_all(pool, keep=keep, work=work)
        work.passed()
        return interval_s * random.uniform(0.9, 1.1)  # noqa: S311  # replicas drift apart

    if not await pause(stop, min(_FIRST_MAX_S, interval_s)):
        await repeat(stop, step, name="forget_expired")
