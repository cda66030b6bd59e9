"""Sum up finished runs per workflow, outside the engine's path and before retention."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog

from services.kit import crash
from services.kit.pg import Pool, transaction
from services.telemetry.storage import metrics, workflow_rollups
from services.telemetry.usecases.measure import BATCH_MAX, LATE

log = structlog.get_logger()

READER: Final = "workflow_rollups"


async def roll_up_finished(pool: Pool, *, again: timedelta = LATE) -> int:
    """Add the next finished runs to the sums; returns how many were found, 0 when done.

    Runs that ended up to `again` before the watermark are looked at again; the database ensures
    that each is counted once.
    """
    async with pool.acquire() as db:
        found = await workflow_rollups.ended_runs(db, reader=READER, again=again, limit=BATCH_MAX)
    if not found:
        return 0
    # Need not be durable: a crash loses sums, notes of summed-up runs and watermark together.
    async with transaction(pool, durable=False) as db:
        new = await workflow_rollups.roll_up(db, [each.id for each in found])
        crash.reach("runs_rolled_up")
        last = found[-1]
        await metrics.advance_watermark(
            db, reader=READER, completed_at=last.completed_at, execution_id=last.id
        )
    log.debug("executions_rolled_up", executions=new)
    return len(found)
