"""Sample the machine's health and the database's condition at a fixed interval."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol

from services.kit.ids import uuid7
from services.kit.loops import repeat
from services.kit.pg import Pool
from services.telemetry.domain.records import Usage
from services.telemetry.usecases.condition import Condition
from services.telemetry.usecases.sample import take_sample


class HasUsage(Protocol):
    """A machine whose usage can be sampled."""

    def usage(self) -> Usage:
        """Measure the usage now."""


async def sample_health(
    pool: Pool,
    machine: HasUsage,
    condition: Condition,
    stop: asyncio.Event,
    *,
    interval_s: float,
) -> None:
    """Write a sample at once and then at each interval, and observe the database."""

    async def step() -> float:
        await take_sample(
            pool,
            machine.usage(),
            condition,
            sample_id=uuid7(),
            at=datetime.now(UTC),
            now_s=time.monotonic(),
        )
        return interval_s

    await repeat(stop, step, name="sample_health")
