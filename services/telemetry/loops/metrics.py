"""Metrics follow finished runs within seconds, and cost next to nothing while none finish."""

from __future__ import annotations

import asyncio
from typing import Final

from services.kit.loops import repeat
from services.kit.pg import Pool
from services.telemetry.usecases.measure import BATCH_MAX, measure_finished

_BUSY_S: Final = 1.0
_IDLE_MAX_S: Final = 8.0


async def derive_metrics(pool: Pool, stop: asyncio.Event) -> None:
    """Look for finished runs: each second while there are some, ever more seldom while not."""
    wait_s = _BUSY_S

    async def step() -> float:
        nonlocal wait_s
        measured = await measure_finished(pool)
        if measured == BATCH_MAX:
            return 0.0
        wait_s = _BUSY_S if measured else min(wait_s * 2, _IDLE_MAX_S)
        return wait_s

    await repeat(stop, step, name="derive_metrics")
