"""Delete expired records, in batches short enough not to block others."""

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

# Per kind of record and pass; the rest is left to the next pass and reported as incomplete.
BATCHES_MAX: Final = 10_000

# Deletes one batch of at most so many rows; returns the number deleted, or None while another
# process holds the lock.
Batch = Callable[[Db, int], Awaitable[int | None]]


async def forget_all(
    pool: Pool,
    *,
    keep: Mapping[str, timedelta],
    batches_max: int = BATCHES_MAX,
    work: Work | None = None,
    report: list[Removed] | None = None,
) -> Mapping[str, int]:
    """Delete all expired rows; returns the number deleted, by kind, without zeros.

    A failing kind does not stop those after it; its error is raised at the end. What was done,
    including errors, is appended to `report`.
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
    """Return whether the database cannot be reached at all, so that other rules would fail too."""
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
    """Delete what has expired by tenants' own rules, then by the deployment's."""
    if rule.by_tenant and keep is not None:
        async with connection(pool) as db:
            tenants = await retention_rules.rules_of_all(db, rule.subject)
        for tenant_id, days in tenants:
            own = timedelta(days=days)
            if own < keep:
                # Executions are only hidden here, and counted when they are deleted below.
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
    """Delete batch after batch, each in its own transaction, with smaller batches after a timeout.

    A batch of minimum size that still times out ends this kind's pass with an error.
    """
    batch = pace.first_batch(most=rule.batch)
    for _ in range(batches_max):
        began = time.monotonic()
        try:
            # Need not be durable unless files are freed: rows restored by a crash are deleted
            # again.
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
