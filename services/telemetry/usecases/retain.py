"""Forgetting what is due, in batches that never hold anybody up for long."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

import structlog

from services.kit.errors import Unavailable
from services.kit.pg import LINK_FAULTS, Pool, facts_of, transaction, translate
from services.telemetry.domain.retention import BATCH_MIN, RULES, Rule, smaller
from services.telemetry.storage import retention
from services.telemetry.usecases.figures import Work

log = structlog.get_logger()

# Per kind of record and pass: what is left is for the next pass, and is told.
BATCHES_MAX: Final = 1000
# Room for others between two batches.
_BREATH_S: Final = 0.02


async def forget_all(
    pool: Pool,
    *,
    keep: Mapping[str, timedelta],
    batches_max: int = BATCHES_MAX,
    work: Work | None = None,
) -> Mapping[str, int]:
    """Remove all rows that are due; gives the number removed of each kind that had any.

    A kind that cannot be removed holds up none of those after it: its fault is raised at the end.
    """
    removed: dict[str, int] = {}
    failed: Exception | None = None
    for rule in RULES:
        try:
            rows, is_done = await _forget(pool, rule, keep.get(rule.subject), batches_max)
        except Exception as error:
            if _is_away(error):
                raise
            log.warning(
                "retention_failed",
                subject=rule.subject,
                fault=type(error).__name__,
                **facts_of(error),
            )
            failed = failed or error
            continue
        if rows:
            removed[rule.subject] = rows
            if work is not None:
                work.forgot(rule.subject, rows)
            log.info("records_forgotten", subject=rule.subject, rows=rows)
        if not is_done:
            log.warning("retention_incomplete", subject=rule.subject, rows=rows)
    if failed is not None:
        raise failed
    return removed


def _is_away(error: Exception) -> bool:
    """Whether no other rule would fare better: the database cannot be asked at all."""
    fault = translate(error)
    if isinstance(fault, Unavailable):
        return fault.reason != "DATABASE_SLOW"
    return fault is None and isinstance(error, LINK_FAULTS)


async def _forget(
    pool: Pool, rule: Rule, keep: timedelta | None, batches_max: int
) -> tuple[int, bool]:
    """Remove batch after batch, each its own transaction; smaller ones where one took too long."""
    rows, batch = 0, rule.batch
    for _ in range(batches_max):
        try:
            async with transaction(pool) as db:
                gone = await retention.forget_batch(db, rule.subject, keep=keep, batch=batch)
        except Exception as error:
            fault = translate(error)
            too_slow = isinstance(fault, Unavailable) and fault.reason == "DATABASE_SLOW"
            if not too_slow or batch <= BATCH_MIN:
                raise
            batch = smaller(batch)
            continue
        if not gone:
            return rows, True
        rows += gone
        await asyncio.sleep(_BREATH_S)
    return rows, False
