"""Keeping samples of the machine's health, and knowing how the database is."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from services.kit.pg import Pool, transaction
from services.telemetry.domain.records import Usage
from services.telemetry.storage import health
from services.telemetry.usecases.condition import Condition


async def take_sample(
    pool: Pool, usage: Usage, condition: Condition, *, sample_id: UUID, at: datetime, now_s: float
) -> None:
    """Write how the machine is and look at the database: one transaction, for it is each minute's.

    A crash may lose the last sample, so nothing waits for the disk. `now_s` is of a clock that
    never goes back.
    """
    async with transaction(pool, durable=False) as db:
        await health.insert_sample(db, usage, sample_id=sample_id, at=at)
        await condition.look(db, now_s)
