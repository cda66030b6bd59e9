"""Ticks that cannot start yet: what comes after them or beside them neither spins nor starves."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from qflow.orchestrator.v1 import schedule_pb2
from qflow.orchestrator.v1 import schedule_service_pb2 as pb

from services.kit.errors import ResourceExhausted
from services.kit.pg import Pool, transaction
from services.orchestrator.storage import schedule_due
from services.orchestrator.usecases import schedule_runs
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_backfills import pool
from tests.integration.orchestrator.test_schedules import (
    answer,
    create,
    every,
    hold,
    make_due,
    moment,
    states,
    stub,
    until,
)

__all__ = ["pool"]  # a fixture

# As a quota, or an engine that has too much to do, puts a tick off.
WAITING = (
    "UPDATE schedule_ticks SET state = 'pending', execution_id = NULL, attempts = 1,"
    " reason = 'QUOTA_EXCEEDED', try_at = clock_timestamp() + interval '1 hour'"
)


async def test_what_comes_behind_a_tick_that_cannot_start_is_due_no_sooner_than_that(
    orchestra: Orchestra,
) -> None:
    """Else it is found due without end, a thousand times a second, while the engine is short."""
    async with orchestra.running(), (await orchestra.runner(answer)).attached():
        await create(orchestra, overlap=schedule_pb2.OVERLAP_POLICY_BUFFER_ONE)
        await make_due(orchestra, 10)
        over = "SELECT count(*) FROM workflow_executions WHERE status = 'completed'"
        await until(lambda: [(1,)] == orchestra.rows(over))
        await until(lambda: [("timed", "started", "")] == states(orchestra))
        await orchestra.change(WAITING)
        await make_due(orchestra, 1)
        together = "SELECT count(*) FROM schedule_ticks GROUP BY try_at"
        await until(lambda: [(2,)] == orchestra.rows(together))
        behind = [("timed", "pending", "QUOTA_EXCEEDED"), ("timed", "pending", "OVERLAP")]
        assert behind == states(orchestra)
        await orchestra.change("UPDATE schedule_ticks SET try_at = clock_timestamp()")
        orchestra.sql.execute("NOTIFY qflow_schedules")
        await until(lambda: [("timed", "started", "")] * 2 == states(orchestra))


async def test_a_backfill_that_waits_for_a_quota_holds_up_no_time_of_its_schedule(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = schedule_runs._started  # what a quota refuses

    async def short(scheduler: Any, schedule: Any, tick: Any) -> UUID:
        if tick.kind == "backfill":
            raise ResourceExhausted("QUOTA_EXCEEDED", "too little is left", retry_after_s=9)
        return await start(scheduler, schedule, tick)

    monkeypatch.setattr(schedule_runs, "_started", short)
    async with orchestra.running(), (await orchestra.runner(answer)).attached():
        made = await create(orchestra, timing=every(60))
        request = pb.BackfillScheduleRequest(
            schedule_id=made.id,
            start_time=moment(hours=5),
            end_time=moment(hours=0),
            max_running=100,
        )
        await stub(orchestra).BackfillSchedule(request)
        waiting = ("backfill", "pending", "QUOTA_EXCEEDED")
        await until(lambda: [waiting] * 100 == states(orchestra))
        await make_due(orchestra, 1)
        await until(lambda: ("timed", "started", "") in states(orchestra))


async def test_a_run_that_was_started_and_not_written_is_in_the_way_of_the_next(
    orchestra: Orchestra,
) -> None:
    """Killed between the two, and the next time came before anybody looked: it is cancelled."""
    async with orchestra.running(), (await orchestra.runner(hold)).attached():
        await create(orchestra, overlap=schedule_pb2.OVERLAP_POLICY_CANCEL_RUNNING)
        await make_due(orchestra, 20)
        await until(lambda: [("timed", "started", "")] == states(orchestra))
        await orchestra.change(
            "UPDATE schedule_ticks SET state = 'pending', execution_id = NULL,"
            " try_at = clock_timestamp() + interval '1 hour'"
        )
        await make_due(orchestra, 1)
        await until(lambda: [("timed", "started", "")] * 2 == states(orchestra))
    assert [("cancelled",), ("running",)] == orchestra.rows(
        "SELECT status FROM workflow_executions ORDER BY created_at"
    )


async def test_a_run_that_is_asked_for_by_hand_waits_for_a_quota_paused_or_not(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause ends the waiting of what came by the clock."""
    start, short = schedule_runs._started, [True]

    async def once_there_is_room(*asked: Any) -> UUID:
        if short:
            raise ResourceExhausted("QUOTA_EXCEEDED", "too little is left", retry_after_s=9)
        return await start(*asked)

    monkeypatch.setattr(schedule_runs, "_started", once_there_is_room)
    async with orchestra.running(), (await orchestra.runner(answer)).attached():
        made = await create(orchestra, paused=True)
        await stub(orchestra).TriggerSchedule(pb.TriggerScheduleRequest(schedule_id=made.id))
        tries = "SELECT count(*) FROM schedule_ticks WHERE state = 'pending' AND attempts > 1"
        await until(lambda: [(1,)] == orchestra.rows(tries))
        short.clear()
        await until(lambda: [("manual", "started", "")] == states(orchestra))


# Two that nobody has looked at yet.
_NEW = (
    "INSERT INTO schedule_ticks (schedule_id, tick_at, kind, state, try_at, tenant_id)"
    " SELECT id, now() - n * interval '1 s', 'timed', 'pending', now(), tenant_id"
    "   FROM schedules, generate_series(1, 2) AS n"
)


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        ("SKIP", [("started", ""), ("skipped", "OVERLAP")]),
        ("BUFFER_ONE", [("started", ""), ("pending", "OVERLAP")]),
        ("CANCEL_RUNNING", [("skipped", "OVERLAP"), ("started", "")]),
        ("ALLOW", [("started", ""), ("started", "")]),
    ],
)
async def test_of_ticks_that_wait_together_those_start_that_the_policy_says(
    orchestra: Orchestra, overlap: str, expected: list[tuple[str, str]]
) -> None:
    """I34."""
    async with orchestra.running():
        await create(orchestra, overlap=f"OVERLAP_POLICY_{overlap}")
    orchestra.sql.execute(_NEW)
    async with orchestra.running(), (await orchestra.runner(hold)).attached():
        await until(lambda: [("timed", *each) for each in expected] == states(orchestra))


async def test_what_was_due_before_a_pause_and_waited_for_nobody_starts(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running():
        await create(orchestra, overlap=schedule_pb2.OVERLAP_POLICY_ALLOW)
    orchestra.sql.execute(_NEW)
    orchestra.sql.execute("UPDATE schedules SET paused_at = now(), due_at = NULL, fire_at = NULL")
    async with orchestra.running():
        await until(lambda: [("timed", "started", "")] * 2 == states(orchestra))


async def test_only_what_waits_for_a_run_is_tried_as_that_is_over_and_only_times_wait_behind_one(
    orchestra: Orchestra, pool: Pool
) -> None:
    waiting = (
        "INSERT INTO schedule_ticks (schedule_id, tick_at, kind, state, reason, try_at, tenant_id)"
        " SELECT id, now() + n * interval '1 s', kind, 'pending', reason,"
        " now() + n * interval '1 hour', tenant_id FROM schedules, (VALUES (3, 'timed', 'OVERLAP'),"
        " (2, 'timed', 'QUOTA_EXCEEDED'), (4, 'manual', 'QUOTA_EXCEEDED'), (5, 'timed', 'OVERLAP'))"
        " AS tick (n, kind, reason)"
    )
    hours_left = (
        "SELECT round(EXTRACT(epoch FROM try_at - now()) / 3600)::int FROM schedule_ticks"
        " ORDER BY tick_at"
    )
    async with orchestra.running():
        made = await create(orchestra)
    orchestra.sql.execute(waiting)
    [(first,)] = orchestra.rows("SELECT min(tick_at) FROM schedule_ticks")
    schedule_id, told = UUID(made.id), {"reason": "OVERLAP", "message": ""}
    await orchestra.change(
        "UPDATE schedule_ticks SET try_at = now() + interval '9 hours' WHERE tick_at = %s", first
    )
    async with transaction(pool) as db:
        await schedule_due.put_behind(db, schedule_id, cast("datetime", first), **told)
    assert [(9,), (9,), (4,), (9,)] == orchestra.rows(hours_left)
    async with transaction(pool) as db:
        await schedule_due.hurry(db, [schedule_id], reason="OVERLAP")
    assert [(9,), (0,), (4,), (0,)] == orchestra.rows(hours_left)


async def test_a_schedule_is_served_by_one_at_a_time_and_its_own_times_first(
    orchestra: Orchestra, pool: Pool
) -> None:
    """I34."""

    async def claim(lasting: timedelta) -> list[schedule_due.Claimed]:
        async with transaction(pool) as db:
            return await schedule_due.claim(db, limit=8, lasting=lasting)

    async with orchestra.running():
        await create(orchestra, overlap=schedule_pb2.OVERLAP_POLICY_ALLOW)
    orchestra.sql.execute(_NEW)
    orchestra.sql.execute(
        "UPDATE schedule_ticks SET kind = 'backfill'"
        " WHERE tick_at = (SELECT min(tick_at) FROM schedule_ticks)"
    )
    [claimed] = await claim(timedelta(hours=1))
    assert [] == await claim(timedelta(hours=1))
    async with transaction(pool) as db:
        found = await schedule_due.pending(db, claimed, limit=2)
        assert ["timed", "backfill"] == [each.kind for each in found]
        await schedule_due.release(db, claimed.id)
    assert [claimed] == await claim(timedelta(seconds=-1))
    assert [claimed] == await claim(timedelta(hours=1)), "that of somebody who died ran out"
