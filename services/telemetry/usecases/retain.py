"""Deleting what is due, in batches that hold nobody up for long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Final
from uuid import UUID

import structlog

from services.kit import crash
from services.kit.errors import Unavailable
from services.kit.pg import LINK_FAULTS, Db, Pool, connection, facts_of, transaction, translate
from services.telemetry.domain.pace import Pace
from services.telemetry.domain.retention import (
    BATCH_MIN,
    RULES,
    Removed,
    Rule,
    smaller,
)
from services.telemetry.storage import retention, retention_rules
from services.telemetry.usecases.figures import Work

log = structlog.get_logger()

# Per kind of record and pass: what is left is for the next pass, and is told.
BATCHES_MAX: Final = 10_000

# Removes one batch of so many rows; gives how many went, or None while another process is at it.
Batch = Callable[[Db, int], Awaitable[int | None]]


async def forget_all(
    pool: Pool,
    *,
    keep: Mapping[str, timedelta],
    batches_max: int = BATCHES_MAX,
    work: Work | None = None,
    report: list[Removed] | None = None,
) -> Mapping[str, int]:
    """Remove all rows that are due; gives the number removed of each kind that had any.

    A kind that cannot be removed holds up none of those after it: its fault is raised at the end.
    What was done is added to a report, the fault included.
    """
    told = [] if report is None else report
    pace = Pace()
    failed: Exception | None = None
    for rule in RULES:
        removed = Removed(rule.subject)
        told.append(removed)
        try:
            await _forget(pool, pace, rule, keep.get(rule.subject), batches_max, removed)
        except Exception as error:
            if _is_away(error):
                raise
            fault = translate(error)
            removed.fault = type(error).__name__ if fault is None else fault.reason
            log.warning(
                "retention_failed",
                subject=rule.subject,
                fault=type(error).__name__,
                **facts_of(error),
            )
            failed = failed or error
        if removed.rows:
            if work is not None:
                work.forgot(rule.subject, removed.rows)
            log.info("records_forgotten", subject=rule.subject, rows=removed.rows)
        if removed.is_incomplete:
            log.warning("retention_incomplete", subject=rule.subject, rows=removed.rows)
    if failed is not None:
        raise failed
    return {each.subject: each.rows for each in told if each.rows}


def _is_away(error: Exception) -> bool:
    """Whether no other rule would fare better: the database cannot be asked at all."""
    fault = translate(error)
    if isinstance(fault, Unavailable):
        return fault.reason != "DATABASE_SLOW"
    return fault is None and isinstance(error, LINK_FAULTS)


async def _forget(
    pool: Pool,
    pace: Pace,
    rule: Rule,
    keep: timedelta | None,
    batches_max: int,
    removed: Removed,
) -> None:
    """Remove what is due by the tenants' own rules, then by the deployment's."""
    if rule.by_tenant and keep is not None:
        async with connection(pool) as db:
            tenants = await retention_rules.rules_of_all(db, rule.subject)
        for tenant_id, days in tenants:
            own = timedelta(days=days)
            if own < keep:
                # Executions are hidden, and counted when they go below.
                counted = Removed(rule.subject) if rule.subject == "executions" else removed
                do = partial(_of_tenant, rule.subject, tenant_id, own)
                await _in_batches(pool, pace, rule, do, batches_max, counted)
    do = partial(_of_all, rule.subject, keep)
    await _in_batches(pool, pace, rule, do, batches_max, removed)


async def _of_tenant(
    subject: str, tenant_id: UUID, keep: timedelta, db: Db, batch: int
) -> int | None:
    return await retention.forget_tenant_batch(db, subject, tenant_id, keep=keep, batch=batch)


async def _of_all(subject: str, keep: timedelta | None, db: Db, batch: int) -> int | None:
    return await retention.forget_batch(db, subject, keep=keep, batch=batch)


async def _in_batches(
    pool: Pool, pace: Pace, rule: Rule, do: Batch, batches_max: int, removed: Removed
) -> None:
    """Remove batch after batch, each its own transaction; smaller ones where one took too long.

    One of the least size that the database cannot do in its time ends this kind for this pass.
    """
    batch = pace.first_batch(most=rule.batch)
    for _ in range(batches_max):
        began = time.monotonic()
        try:
            # What a crash of the database brings back, the next pass removes.
            async with transaction(pool, durable=rule.frees_bytes) as db:
                gone = await do(db, batch)
                if gone:
                    pace.seen(await retention.transactions(db), time.monotonic())
                    crash.reach("retention_batch")
        except Exception as error:
            fault = translate(error)
            too_slow = isinstance(fault, Unavailable) and fault.reason == "DATABASE_SLOW"
            if not too_slow or batch <= BATCH_MIN:
                raise
            batch = smaller(batch)
            continue
        if not gone:
            return
        took_s = time.monotonic() - began
        pace.done()
        removed.counted(gone, took_s)
        batch = pace.batch_after(batch, took_s, most=rule.batch)
        await asyncio.sleep(pace.breath_s(took_s))
    removed.is_incomplete = True
