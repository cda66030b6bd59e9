"""Derive metrics from finished runs, outside the engine's path."""

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
# Longer than the engine usually takes from reading the clock to its commit, and than it may take.
RECENT: Final = timedelta(seconds=2)
LATE: Final = timedelta(seconds=90)


async def measure_finished(pool: Pool, *, again: timedelta = LATE, with_nodes: bool = False) -> int:
    """Derive the metrics of the next finished runs; returns how many, 0 when all are measured.

    With `with_nodes` their nodes are measured too, which is many times the work. Runs that ended up
    to `again` before the watermark are looked at again, since they may have been committed late.
    """
    try:
        return await _measure(pool, again=again, with_nodes=with_nodes)
    except derived_metrics.RunGone:
        # Retention removed a run between the read and the write: the next call leaves it out.
        log.debug("executions_gone_meanwhile")
        return 1


async def _measure(pool: Pool, *, again: timedelta, with_nodes: bool) -> int:
    # Need not be durable: a crash may lose the last metrics together with the watermark, and they
    # are derived again.
    async with transaction(pool, durable=False) as db:
        await metrics.begin_measuring(db, reader=READER)
        # A generic plan made while the tables were small would scan all of them.
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
    """Return whether no orchestrator is live, so that no more runs can finish."""
    async with pool.acquire() as db:
        return await metrics.members_rest(db)


async def measure_stopped(pool: Pool) -> int:
    """Derive the metrics of the next stopped sandboxes.

    Returns how many, 0 when all are measured.
    """
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
