"""Backfills: runs for times of a schedule that have none, so many at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp
from qflow.orchestrator.v1 import schedule_pb2
from qflow.orchestrator.v1 import schedule_service_pb2 as pb

from services.kit.pg import Pool, open_pool
from services.orchestrator.usecases.schedule_runs import go_on_with_backfills
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_floating import details
from tests.integration.orchestrator.test_schedules import (
    answer,
    create,
    every,
    hold,
    make_due,
    moment,
    settled,
    states,
    stub,
    until,
)

_AGAIN = "UPDATE schedule_backfills SET step_at = clock_timestamp() WHERE state = 'running'"


@pytest_asyncio.fixture
async def pool(orchestra: Orchestra) -> AsyncIterator[Pool]:
    """Connections with which a test looks at backfills as another orchestrator would."""
    made = await open_pool(
        orchestra.database.url("qflow_orchestrator_engine"),
        application_name="other",
        setting="test",
    )
    yield made
    await made.close()


def hours(*agos: int) -> list[Timestamp]:
    """Give full hours before this one."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    found = [Timestamp() for _ in agos]
    for each, ago in zip(found, agos, strict=True):
        each.FromDatetime(now - timedelta(hours=ago))
    return found


async def test_a_backfill_makes_up_for_what_has_no_run_and_for_nothing_else(
    orchestra: Orchestra,
) -> None:
    """From its start on, and up to its end without that; first for all, then for some."""
    async with orchestra.running(), (await orchestra.runner(answer)).attached():
        made = await create(orchestra, timing=every(3600), paused=True)
        start, end = hours(5, 0)
        request = pb.BackfillScheduleRequest(
            schedule_id=made.id, start_time=start, end_time=end, max_running=2
        )
        for done, present in ((5, 0), (5, 5), (5, 3)):
            if present == 3:
                for state in ("skipped", "failed"):
                    await orchestra.change(
                        "UPDATE schedule_ticks SET state = %s, execution_id = NULL WHERE tick_at ="
                        " (SELECT min(tick_at) FROM schedule_ticks WHERE state = 'started')",
                        state,
                    )
            answered = (await stub(orchestra).BackfillSchedule(request)).backfill
            assert 5 == answered.total_count
            await until(
                lambda: (
                    not orchestra.rows("SELECT 1 FROM schedule_backfills WHERE state = 'running'")
                )
            )
            listed = await stub(orchestra).ListScheduleBackfills(
                pb.ListScheduleBackfillsRequest(schedule_id=made.id)
            )
            newest = listed.backfills[0]
            assert (answered.id, done, present) == (
                newest.id,
                newest.done_count,
                newest.present_count,
            )
    assert [("backfill", "started", "")] * 5 == states(orchestra)
    assert [(5,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


async def test_a_backfill_has_no_more_under_way_than_it_may_and_ends_with_its_runs(
    orchestra: Orchestra, pool: Pool
) -> None:
    """Ticks that wait for their start count too, and a time of the schedule waits for none."""
    running = "SELECT count(*) FROM schedule_backfills WHERE state = 'running'"
    async with orchestra.running():
        runner = await orchestra.runner(hold)
        async with runner.attached():
            made = await create(orchestra, timing=every(3600))
            start, end = hours(3, 0)
            request = pb.BackfillScheduleRequest(
                schedule_id=made.id, start_time=start, end_time=end, max_running=2
            )
            await stub(orchestra).BackfillSchedule(request)
            await until(lambda: settled(orchestra, 2))
            pending = (
                "UPDATE schedule_ticks SET state = 'pending', execution_id = NULL,"
                " try_at = clock_timestamp() + interval '1 hour'"
                " WHERE tick_at = (SELECT min(tick_at) FROM schedule_ticks)"
            )
            for change in (_AGAIN, pending, _AGAIN):
                await orchestra.change(change)
                await go_on_with_backfills(pool)
                assert 2 == len(states(orchestra))
            await make_due(orchestra, 1)
            await until(lambda: ("timed", "started", "") in states(orchestra))
            assert ("backfill", "pending", "") in states(orchestra)
            await orchestra.change(
                "UPDATE schedule_ticks SET try_at = clock_timestamp() WHERE state = 'pending'"
            )
            orchestra.sql.execute("NOTIFY qflow_schedules")
            await until(lambda: settled(orchestra, 3))
            await runner.until(lambda: len(runner.held) == 3)
            for assign in list(runner.held.values())[:1]:
                runner.succeed(assign, 1)
            await until(lambda: settled(orchestra, 4))
            await runner.until(lambda: len(runner.held) == 3)
            await orchestra.change(_AGAIN)
            await go_on_with_backfills(pool)
            assert [(1,)] == orchestra.rows(running)
            for assign in list(runner.held.values()):
                runner.succeed(assign, 1)
            await until(lambda: [(0,)] == orchestra.rows(running))
    assert [("backfill", "started", "")] * 3 == sorted(states(orchestra))[:3]


async def test_a_cancelled_backfill_starts_nothing_more(orchestra: Orchestra) -> None:
    async with orchestra.running(), (await orchestra.runner(hold)).attached():
        made = await create(orchestra, timing=every(3600), paused=True)
        request = pb.BackfillScheduleRequest(
            schedule_id=made.id, start_time=moment(hours=9), end_time=moment(hours=0)
        )
        backfill = (await stub(orchestra).BackfillSchedule(request)).backfill
        await until(lambda: settled(orchestra))
        cancel = pb.CancelScheduleBackfillRequest(backfill_id=backfill.id)
        for _ in range(2):
            answered = await stub(orchestra).CancelScheduleBackfill(cancel)
            assert schedule_pb2.SCHEDULE_BACKFILL_STATE_CANCELLED == answered.backfill.state
    assert [("backfill", "started", "")] == states(orchestra)


@pytest.mark.parametrize(
    ("begin", "end", "reason"),
    [
        ({"hours": 1}, {"hours": 2}, "RANGE_INVALID"),
        ({"hours": 1}, {"hours": -1}, "RANGE_INVALID"),
        ({"days": 2000}, {"days": 1}, "RANGE_TOO_LARGE"),
        ({"minutes": 0.001}, {"minutes": 0}, "RANGE_INVALID"),
    ],
)
async def test_a_range_that_cannot_be_made_up_for_is_refused(
    orchestra: Orchestra, begin: dict[str, float], end: dict[str, float], reason: str
) -> None:
    async with orchestra.running():
        made = await create(orchestra, timing=every(3600))
        request = pb.BackfillScheduleRequest(
            schedule_id=made.id, start_time=moment(**begin), end_time=moment(**end)
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub(orchestra).BackfillSchedule(request)
    assert (grpc.StatusCode.INVALID_ARGUMENT, reason) == (
        refused.value.code(),
        details(refused.value)[0],
    )
