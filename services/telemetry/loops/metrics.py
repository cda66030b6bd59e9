"""Metrics follow finished runs within seconds, and cost next to nothing while none finish."""

from __future__ import annotations

import asyncio
from typing import Final

from services.kit.loops import repeat
from services.kit.pg import Pool
from services.telemetry.usecases.figures import Work
from services.telemetry.usecases.measure import (
    BATCH_MAX,
    LATE,
    RECENT,
    measure_finished,
    measure_stopped,
)

_BUSY_S: Final = 1.0
_IDLE_MAX_S: Final = 8.0
# Runs that were committed long after their clock are few: to look for them costs a walk through
# all of the last minutes, and they can wait.
_LATE_EVERY_S: Final = 30.0


async def derive_metrics(
    pool: Pool, work: Work, stop: asyncio.Event, *, with_nodes: bool = False
) -> None:
    """Look for finished runs: each second while there are some, ever more seldom while not."""
    wait_s = _BUSY_S
    late_at = 0.0

    async def step() -> float:
        nonlocal wait_s, late_at
        now = asyncio.get_running_loop().time()
        late = now >= late_at
        measured = await measure_finished(
            pool, again=LATE if late else RECENT, with_nodes=with_nodes
        )
        work.measured += measured
        if late and measured < BATCH_MAX:
            late_at = now + _LATE_EVERY_S
            await measure_stopped(pool)
        if measured == BATCH_MAX:
            return 0.0
        wait_s = _BUSY_S if measured else min(wait_s * 2, _IDLE_MAX_S)
        return wait_s

    await repeat(stop, step, name="derive_metrics")
