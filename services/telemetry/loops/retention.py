"""Run retention at intervals and on request."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from services.kit.loops import repeat, wait_either
from services.telemetry.usecases.figures import Work
from services.telemetry.usecases.retention import Retention

# Not at once: a starting deployment is busy enough.
_FIRST_MAX_S: Final = 60.0
# Polls for requests received by a process that ended before its pass.
_LOOK_S: Final = 300.0


async def forget_expired(
    retention: Retention, stop: asyncio.Event, *, interval_s: float, work: Work
) -> None:
    """Make a pass soon after the start, at each interval, and on request."""
    clock = asyncio.get_running_loop()
    due_at = clock.time()

    async def step() -> float:
        nonlocal due_at
        if clock.time() >= due_at or await retention.is_asked():
            await retention.make_pass()
            work.passed()
            # Jitter keeps replicas apart.
            due_at = clock.time() + interval_s * random.uniform(0.9, 1.1)  # noqa: S311
        return min(_LOOK_S, max(0.0, due_at - clock.time()))

    await wait_either(retention.asked, stop, min(_FIRST_MAX_S, interval_s))
    if not stop.is_set():
        await repeat(stop, step, name="forget_expired", wake=retention.asked)
