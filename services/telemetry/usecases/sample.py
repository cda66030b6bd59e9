"""Sample the machine's health and the database's condition."""

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
    """Write a health sample and observe the database, in one transaction per interval.

    Need not be durable: a crash may lose the last sample. `now_s` is a monotonic time.
    """
    async with transaction(pool, durable=False) as db:
        await health.insert_sample(db, usage, sample_id=sample_id, at=at)
        await condition.look(db, now_s)
