"""Lists of records that the caller may see, newest first."""

from __future__ import annotations

from uuid import UUID

from services.kit.caller import Caller
from services.kit.filter.language import parse
from services.kit.pg import Pool, as_caller
from services.telemetry.domain.records import NEWEST, ErrorRecord, HealthSample, Metric, Position
from services.telemetry.storage import errors, health, metrics


async def list_metrics(
    pool: Pool,
    caller: Caller,
    *,
    execution_id: UUID | None,
    name: str,
    after: Position | None,
    limit: int,
) -> list[Metric]:
    """Return metrics after a position; none of runs that the caller cannot see."""
    async with as_caller(pool, caller) as db:
        return await metrics.list_metrics(
            db, execution_id=execution_id, name=name or None, after=after or NEWEST, limit=limit
        )


async def list_errors(
    pool: Pool,
    caller: Caller,
    *,
    filter_text: str,
    execution_id: UUID | None,
    after: Position | None,
    limit: int,
) -> list[ErrorRecord]:
    """Return matching errors after a position; none of runs that the caller cannot see."""
    expression = parse(filter_text)
    async with as_caller(pool, caller) as db:
        return await errors.list_errors(
            db,
            expression=expression,
            execution_id=execution_id,
            after=after or NEWEST,
            limit=limit,
        )


async def list_health_samples(
    pool: Pool, caller: Caller, *, after: Position | None, limit: int
) -> list[HealthSample]:
    """Return health samples after a position; administrators only."""
    async with as_caller(pool, caller) as db:
        return await health.list_samples(db, after=after or NEWEST, limit=limit)
