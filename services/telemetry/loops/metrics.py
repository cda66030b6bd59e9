"""Derive metrics and sums from finished runs within seconds, at no cost while nothing runs."""

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
# While no orchestrator is live no run can finish, and a starting one sends a notification. Polling
# covers notifications lost with a broken connection.
_RESTING_S: Final = 900.0
# Runs committed long after their end are rare, and finding them means scanning the last minutes, so
# this is done less often.
_LATE_EVERY_S: Final = 30.0
# Sums are batched while runs keep finishing: adding one run to the sums of its workflow's nodes
# costs nearly as much as adding hundreds.
_ROLL_UP_EVERY_S: Final = 5.0


async def follow_finished(
    pool: Pool,
    work: Work,
    stirred: asyncio.Event,
    stop: asyncio.Event,
    *,
    with_nodes: bool = False,
) -> None:
    """Process finished runs: every second while there are some, with backoff while there are none.

    Pauses while no orchestrator is live, until `stirred` is set.
    """
    wait_s = _BUSY_S
    late_at = roll_up_at = 0.0
    idle = False

    async def step() -> float:
        nonlocal wait_s, late_at, roll_up_at, idle
        # Checked before the look, so that no run can finish unseen in between.
        resting = idle and await orchestrators_rest(pool)
        now = asyncio.get_running_loop().time()
        late = resting or now >= late_at  # the last look before a long pause covers late commits
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
