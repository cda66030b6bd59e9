"""Summing up how runs did, away from the engine's path, and before retention comes for them."""

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
    """Sum up the next runs that are over; tells how many it found, 0 when all are summed up.

    Those that ended up to `again` before the last one that was summed up are looked at once more;
    each is counted once, which the database sees to.
    """
    async with pool.acquire() as db:
        found = await workflow_rollups.ended_runs(db, reader=READER, again=again, limit=BATCH_MAX)
    if not found:
        return 0
    # A crash may lose the last sums together with the notes of what was summed up, and the mark.
    async with transaction(pool, durable=False) as db:
        new = await workflow_rollups.roll_up(db, [each.id for each in found])
        crash.reach("runs_rolled_up")
        last = found[-1]
        await metrics.advance_watermark(
            db, reader=READER, completed_at=last.completed_at, execution_id=last.id
        )
    log.debug("executions_rolled_up", executions=new)
    return len(found)
