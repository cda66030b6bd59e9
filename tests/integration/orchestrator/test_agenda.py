"""What nobody told of is seen by the look at the members, which is taken once a minute."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from services.kit.pg import Pool, open_pool, transaction
from services.orchestrator.usecases.agenda import glance
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_schedules import workflow


@pytest.fixture
async def engine_pool(orchestra: Orchestra) -> AsyncIterator[Pool]:
    pool = await open_pool(
        orchestra.database.url("qflow_orchestrator_engine"), application_name="test", size_max=1
    )
    yield pool
    pool.terminate()


async def woken(pool: Pool) -> tuple[bool, bool]:
    schedules, events = asyncio.Event(), asyncio.Event()
    async with transaction(pool) as db:
        await glance(schedules, events, db)
    return schedules.is_set(), events.is_set()


def schedule(orchestra: Orchestra, fire_at: str) -> UUID:
    row = orchestra.sql.execute(
        "INSERT INTO schedules (name, workflow_id, input_data, timing, overlap, catch_up,"
        " catch_up_window_ms, fire_at, due_at, tenant_id, created_by)"
        " SELECT 'nightly', id, '{}', '{}', 'skip', 'none', 1000, now() + %s::interval,"
        " now() + %s::interval, tenant_id, created_by FROM workflows WHERE id = %s RETURNING id",
        (fire_at, fire_at, workflow(orchestra)),
    ).fetchone()
    assert row is not None
    return UUID(str(row[0]))


async def test_nothing_is_woken_while_nothing_is_due(
    orchestra: Orchestra, engine_pool: Pool
) -> None:
    assert (False, False) == await woken(engine_pool)
    schedule(orchestra, "1 hour")
    assert (False, False) == await woken(engine_pool)


async def test_a_schedule_that_is_due_wakes_the_schedules(
    orchestra: Orchestra, engine_pool: Pool
) -> None:
    schedule(orchestra, "-1 second")
    assert (True, False) == await woken(engine_pool)


async def test_an_event_that_nobody_spread_wakes_the_events(
    orchestra: Orchestra, engine_pool: Pool
) -> None:
    orchestra.sql.execute(
        "INSERT INTO outbox_events (kind, payload, tenant_id) VALUES ('execution_event', '{}', %s)",
        (orchestra.owner.id,),
    )
    assert (False, True) == await woken(engine_pool)
    await orchestra.change("UPDATE outbox_events SET sent_at = now()")
    assert (False, False) == await woken(engine_pool)
