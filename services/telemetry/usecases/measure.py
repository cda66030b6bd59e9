"""Deriving metrics from runs that are over, away from the engine's path."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from services.kit import crash
from services.kit.ids import uuid7
from services.kit.pg import Pool, planned_by_value, transaction
from services.telemetry.domain.metrics import MARKER
from services.telemetry.storage import derived_metrics, metrics

log = structlog.get_logger()

READER: Final = "execution_metrics"
SANDBOX_READER: Final = "sandbox_metrics"
BATCH_MAX: Final = 1_000
# Longer than a flush of the engine takes from its clock to its commit, and than any may take.
RECENT: Final = timedelta(seconds=2)
LATE: Final = timedelta(seconds=90)


async def measure_finished(pool: Pool, *, again: timedelta = LATE, with_nodes: bool = False) -> int:
    """Measure the next runs that are over; tells how many, 0 when all are measured.

    Their nodes are measured one by one where that is asked for: it is many times as much.

    Those that ended up to `again` before the last one that was measured are looked at once more.
    """
    try:
        return await _measure(pool, again=again, with_nodes=with_nodes)
    except derived_metrics.RunGone:
        # Retention took it between the look and the write: without it, the next time.
        log.debug("executions_gone_meanwhile")
        return 1


async def _measure(pool: Pool, *, again: timedelta, with_nodes: bool) -> int:
    # A crash may lose the last moment of metrics together with the mark: they are derived again.
    async with transaction(pool, durable=False) as db:
        await metrics.begin_measuring(db, reader=READER)
        # A plan that was made while the tables were small would walk through all of them.
        async with planned_by_value(db):
            found = await metrics.unmeasured_runs(
                db, reader=READER, again=again, marker=MARKER, limit=BATCH_MAX
            )
        if not found:
            return 0
        at, ids = datetime.now(UTC), [each.id for each in found]
        await derived_metrics.insert_of_runs(db, ids, new_id=uuid7, at=at)
        if with_nodes:
            await derived_metrics.insert_of_nodes(db, ids, at=at)
        crash.reach("metrics_derived")
        last = found[-1]
        await metrics.advance_watermark(
            db, reader=READER, completed_at=last.completed_at, execution_id=last.id
        )
    log.debug("executions_measured", executions=len(found))
    return len(found)


async def orchestrators_rest(pool: Pool) -> bool:
    """Say whether no orchestrator is at work: what is to be measured then is all there."""
    async with pool.acquire() as db:
        return await metrics.members_rest(db)


async def measure_stopped(pool: Pool) -> int:
    """Measure the next sandboxes that stopped; tells how many, 0 when all are measured."""
    async with pool.acquire() as db:
        if not await derived_metrics.any_stopped(db, reader=SANDBOX_READER, again=LATE):
            return 0
    async with transaction(pool, durable=False) as db:
        await metrics.begin_measuring(db, reader=SANDBOX_READER)
        count, last_at = await derived_metrics.insert_of_sandboxes(
            db, reader=SANDBOX_READER, again=LATE, limit=BATCH_MAX, at=datetime.now(UTC)
        )
        if last_at is not None:
            await metrics.advance_watermark(
                db, reader=SANDBOX_READER, completed_at=last_at, execution_id=None
            )
    return count
