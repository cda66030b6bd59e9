"""Metrics and sums follow finished runs within seconds, and cost nothing while nobody runs any."""

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
    orchestrators_rest,
)
from services.telemetry.usecases.roll_up import roll_up_finished

_BUSY_S: Final = 1.0
_IDLE_MAX_S: Final = 8.0
# While every orchestrator rests no run can end, and the first that wakes says so. What is said
# while the connection is broken is found by looking now and then.
_RESTING_S: Final = 900.0
# Runs that were committed long after their clock are few: to look for them costs a walk through
# all of the last minutes, and they can wait.
_LATE_EVERY_S: Final = 30.0
# While runs keep ending, their sums wait for more of them: a sum is a row for each place of a
# workflow, and to add one run to it costs nearly as much as to add hundreds.
_ROLL_UP_EVERY_S: Final = 5.0


async def follow_finished(
    pool: Pool,
    work: Work,
    stirred: asyncio.Event,
    stop: asyncio.Event,
    *,
    with_nodes: bool = False,
) -> None:
    """Look for finished runs: each second while there are some, ever more seldom while not.

    Not at all while no orchestrator is at work, until `stirred` says that one is.
    """
    wait_s = _BUSY_S
    late_at = roll_up_at = 0.0
    idle = False

    async def step() -> float:
        nonlocal wait_s, late_at, roll_up_at, idle
        # Before the look, so that nothing ends between the two unseen.
        resting = idle and await orchestrators_rest(pool)
        now = asyncio.get_running_loop().time()
        late = resting or now >= late_at  # the last look before a long rest is the thorough one
        again = LATE if late else RECENT
        measured = await measure_finished(pool, again=again, with_nodes=with_nodes)
        work.measured += measured
        rolled_up = 0
        if late or not measured or now >= roll_up_at:
            rolled_up = await roll_up_finished(pool, again=again)
            if rolled_up < BATCH_MAX:
                roll_up_at = now + _ROLL_UP_EVERY_S
        seen = max(measured, rolled_up)
        if late and seen < BATCH_MAX:
            late_at = now + _LATE_EVERY_S
            await measure_stopped(pool)
        if seen == BATCH_MAX:
            return 0.0
        idle = not seen
        if resting and idle:
            wait_s = _BUSY_S
            return _RESTING_S
        wait_s = _BUSY_S if seen else min(wait_s * 2, _IDLE_MAX_S)
        return wait_s

    await repeat(stop, step, name="follow_finished", wake=stirred)
