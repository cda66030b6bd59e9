"""An input of a scheduled run that takes the time of its tick."""

from __future__ import annotations

import json
from typing import Any, Final

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from qflow.orchestrator.v1 import schedule_pb2
from qflow.orchestrator.v1 import schedule_service_pb2 as pb

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_floating import details, rename_its_input
from tests.integration.orchestrator.test_schedules import (
    answer,
    create,
    definition,
    make_due,
    settled,
    stub,
    ticks,
    until,
)

BERLIN: Final = schedule_pb2.CronTiming(expression="0 6 * * *", time_zone="Europe/Berlin")
AT: Final = schedule_pb2.ScheduleTiming(cron=BERLIN, time_input="day")


def workflow(orchestra: Orchestra, kind: str) -> str:
    of = {"t": kind}
    node = factories.node(orchestra.sql, orchestra.owner, inputs=("day",), takes=of)
    made = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": node},
        edges=[("", "day", "a", "day")],
        inputs=("day",),
        takes=of,
        outputs=[("out", "a")],
    )
    return str(made)


def moment(text: str) -> Timestamp:
    encoded = Timestamp()
    encoded.FromJsonString(text)
    return encoded


def one(_define: Any, _assign: Any, _inputs: dict[str, Any]) -> object:
    return 1


def given(orchestra: Orchestra) -> list[Any]:
    query = (
        "SELECT run.input_data::text FROM schedule_ticks AS tick"
        " JOIN workflow_executions AS run ON run.id = tick.execution_id ORDER BY tick_at"
    )
    return [json.loads(str(text))["day"] for (text,) in orchestra.rows(query)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("date", ["2026-03-28", "2026-03-29"]),
        ("datetime", ["2026-03-28T06:00:00+01:00", "2026-03-29T06:00:00+02:00"]),
        ("str", ["2026-03-28T06:00:00+01:00", "2026-03-29T06:00:00+02:00"]),
    ],
)
async def test_each_run_of_a_backfill_has_its_own_time(
    orchestra: Orchestra, kind: str, expected: list[str]
) -> None:
    """I34. In the zone of the schedule, over a change of its clocks."""
    async with orchestra.running(), (await orchestra.runner(one)).attached():
        made = await create(orchestra, workflow(orchestra, kind), timing=AT, input_json="")
        assert "day" == made.definition.timing.time_input
        await stub(orchestra).BackfillSchedule(
            pb.BackfillScheduleRequest(
                schedule_id=made.id,
                start_time=moment("2026-03-28T00:00:00Z"),
                end_time=moment("2026-03-30T00:00:00Z"),
                max_running=2,
            )
        )
        await until(lambda: settled(orchestra, 2))
    assert expected == given(orchestra)


async def test_a_tick_gives_the_time_that_was_due(orchestra: Orchestra) -> None:
    """I34."""
    async with orchestra.running(), (await orchestra.runner(one)).attached():
        made = await create(orchestra, workflow(orchestra, "datetime"), timing=AT, input_json="")
        await make_due(orchestra, 1)
        await until(lambda: settled(orchestra))
        [tick] = await ticks(orchestra, made.id)
    [found] = given(orchestra)
    assert tick.tick_time == moment(found)


@pytest.mark.parametrize(
    ("kind", "time_input", "text", "reason"),
    [
        ("date", "when", "", "INPUT_UNKNOWN"),
        ("date", "day", '{"day":"2026-01-31"}', "INPUT_GIVEN"),
        ("int", "day", "", "TYPE_MISMATCH"),
    ],
)
async def test_an_input_that_cannot_take_a_time_is_refused(
    orchestra: Orchestra, kind: str, time_input: str, text: str, reason: str
) -> None:
    timing = schedule_pb2.ScheduleTiming(cron=BERLIN, time_input=time_input)
    async with orchestra.running():
        of = workflow(orchestra, kind)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create(orchestra, of, timing=timing, input_json=text)
    assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()
    assert (reason, ["definition.timing.time_input"]) == details(refused.value)


async def test_that_input_is_looked_for_in_the_version_of_now(orchestra: Orchestra) -> None:
    async with orchestra.running():
        of = workflow(orchestra, "date")
        await create(orchestra, of, timing=AT, input_json="")
        await rename_its_input(orchestra, of)
        timing = schedule_pb2.ScheduleTiming(cron=BERLIN, time_input="z")
        made = await create(orchestra, of, timing=timing, input_json="")
    assert "z" == made.definition.timing.time_input


async def test_a_change_of_that_input_is_held_against_the_workflow(orchestra: Orchestra) -> None:
    async with orchestra.running(), (await orchestra.runner(answer)).attached():
        made = await create(orchestra, workflow(orchestra, "date"), timing=AT, input_json="")
        request = pb.UpdateScheduleRequest(
            schedule_id=made.id,
            update_mask=FieldMask(paths=["timing"]),
            definition=definition(timing=schedule_pb2.ScheduleTiming(cron=BERLIN)),
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub(orchestra).UpdateSchedule(request)
        assert "INPUT_INVALID" == details(refused.value)[0]
        request.update_mask.paths.append("input_json")
        request.definition.input_json = '{"day":"2026-01-31"}'
        changed = (await stub(orchestra).UpdateSchedule(request)).schedule
    assert "" == changed.definition.timing.time_input
