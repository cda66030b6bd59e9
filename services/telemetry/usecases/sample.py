"""Keeping samples of the machine's health."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from services.kit.pg import Pool, transaction
from services.telemetry.domain.records import Usage
from services.telemetry.storage import health


async def take_sample(pool: Pool, usage: Usage, *, sample_id: UUID, at: datetime) -> None:
    """Write how the machine is; a crash may lose the last one, so nothing waits for the disk."""
    async with transaction(pool, durable=False) as db:
        await health.insert_sample(db, usage, sample_id=sample_id, at=at)
