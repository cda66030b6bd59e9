"""Schedules over real PostgreSQL: made by callers, started by the engine, once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from qflow.orchestrator.v1 import schedule_pb2, schedule_service_pb2_grpc
from qflow.orchestrator.v1 import schedule_service_pb2 as pb

from services.kit.errors import ResourceExhausted
from services.kit.pg import open_pool, transaction
from services.orchestrator.storage import schedule_due
from services.orchestrator.usecases import schedule_runs
from services.orchestrator.usecases.schedule_runs import make_ticks
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_floating import details

FAR = schedule_pb2.ScheduleTiming(cron=schedule_pb2.CronTiming(expression="0 0 1 1 *"))
STARTED = schedule_pb2.SCHEDULE_TICK_STATE_STARTED


def answer(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
    return inputs["x"]


def hold(_define: Any, _assign: Any, _inputs: dict[str, Any]) -> object:
    return None  # it goes on until the test answers


def workflow(orchestra: Orchestra, owner: factories.User | None = None, **more: Any) -> str:
    owner = owner or orchestra.owner
    node = factories.node(orchestra.sql, owner)
    return str(
        factories.workflow(
            orchestra.sql,
            owner,
            nodes={"a": node},
            edges=[("", "x", "a", "x")],
            outputs=[("out", "a")],
            **more,
        )
    )


def stub(orchestra: Orchestra, owner: factories.User | None = None) -> Any:
    channel = orchestra.channel((owner or orchestra.owner).token)
    return schedule_service_pb2_grpc.ScheduleServiceStub(channel)


def definition(**fields: Any) -> schedule_pb2.ScheduleDefinition:
    given = {"name": "nightly", "input_json": '{"x":1}', "timing": FAR, **fields}
    return schedule_pb2.ScheduleDefinition(**given)


async def create(
    orchestra: Orchestra, workflow_id: str | None = None, *, paused: bool = False, **fields: Any
) -> Any:
    request = pb.CreateScheduleRequest(
        workflow_id=workflow_id or workflow(orchestra),
        definition=definition(**fields),
        paused=paused,
        request_id=str(uuid.uuid4()),
    )
    return (await stub(orchestra).CreateSchedule(request)).schedule


async def ticks(orchestra: Orchestra, schedule_id: str) -> list[Any]:
    request = pb.ListScheduleTicksRequest(schedule_id=schedule_id)
    return list((await stub(orchestra).ListScheduleTicks(request)).ticks)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for rows: the engine writes them by itself."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # rows tell nobody
            await asyncio.sleep(0.05)


def states(orchestra: Orchestra) -> list[tuple[object, ...]]:
    return orchestra.rows("SELECT kind, state, reason FROM schedule_ticks ORDER BY tick_at")


def settled(orchestra: Orchestra, count: int = 1) -> bool:
    found = states(orchestra)
    return len(found) >= count and all(state != "pending" for _, state, _ in found)


async def make_due(orchestra: Orchestra, *agos: float) -> None:
    """Have every schedule been due so many seconds ago, but for paused ones, as if unseen since."""
    for ago in agos:
        await orchestra.change(
            "UPDATE schedules SET due_at = date_trunc('second', clock_timestamp() - %s),"
            " fire_at = clock_timestamp() - %s WHERE paused_at IS NULL",
            *(timedelta(seconds=ago), timedelta(seconds=ago)),
        )
    orchestra.sql.execute("NOTIFY qflow_schedules")


def every(seconds: int) -> schedule_pb2.ScheduleTiming:
    timing = schedule_pb2.ScheduleTiming()
    timing.interval.every.seconds = seconds
    return timing


async def test_a_due_tick_starts_its_workflow_once_as_its_owner(orchestra: Orchestra) -> None:
    """I34."""
    async with orchestra.running(), (await orchestra.runner(answer)).attached():
        made = await create(orchestra)
        assert "nightly" == made.definition.name
        assert (1, 1) == (made.next_time.ToDatetime().month, made.next_time.ToDatetime().day)
        await make_due(orchestra, 1)
        await until(lambda: settled(orchestra))
        [tick] = await ticks(orchestra, made.id)
        assert STARTED == tick.state
        assert schedule_pb2.SCHEDULE_TICK_KIND_TIMED == tick.kind
        [row] = orchestra.rows(
            "SELECT id::text, created_by, tenant_id, input_data::text FROM workflow_executions"
        )
        owner = orchestra.owner.id
        assert (tick.execution_id, owner, owner, '{"x":1}') == row
        request = pb.ListScheduleTicksRequest(execution_id=tick.execution_id)
        assert [tick] == list((await stub(orchestra).ListScheduleTicks(request)).ticks)
        shown = await stub(orchestra).GetSchedule(pb.GetScheduleRequest(schedule_id=made.id))
        assert tick.tick_time == shown.schedule.last_time
        assert shown.schedule.next_time == made.next_time


async def test_what_was_due_while_nothing_ran_is_started_once_after_a_restart(
    orchestra: Orchestra,
) -> None:
    """I34."""
    async with orchestra.running():
        await create(orchestra)
    await make_due(orchestra, 1800)
    for _ in range(2):
        async with orchestra.running():
            await until(lambda: settled(orchestra))
    assert [("timed", "started", "")] == states(orchestra)
    assert [(1,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


async def test_a_start_that_was_made_and_not_written_is_found_again(
    orchestra: Orchestra,
) -> None:
    """I34: killed between the two, also where the schedule or its maker was changed meanwhile."""
    async with orchestra.running():
        made = await create(orchestra)
        await make_due(orchestra, 1)
        await until(lambda: settled(orchestra))
        [(first,)] = orchestra.rows("SELECT execution_id FROM schedule_ticks")
        for change in (
            "UPDATE schedules SET input_data = '{\"x\":1}'",
            "UPDATE schedules SET input_data = '{\"x\":2}'",
            "UPDATE users SET is_active = false WHERE NOT is_owner",
        ):
            await orchestra.change(change)
            await orchestra.change(
                "UPDATE schedule_ticks SET state = 'pending', execution_id = NULL,"
                " try_at = clock_timestamp() WHERE schedule_id = %s",
                made.id,
            )
            orchestra.sql.execute("NOTIFY qflow_schedules")
            await until(lambda: settled(orchestra))
            assert [(first,)] == orchestra.rows("SELECT execution_id FROM schedule_ticks")
    assert [(first,)] == orchestra.rows("SELECT id FROM workflow_executions")


async def test_however_many_look_at_once_each_tick_is_one(orchestra: Orchestra) -> None:
    """I34: several orchestrators over one database make the ticks of the same schedules."""
    pool = await open_pool(
        orchestra.database.url("qflow_orchestrator_engine"),
        application_name="other",
        setting="test",
        size_max=6,
    )
    async with orchestra.running():
        made = await create(
            orchestra,
            timing=every(60),
            catch_up=schedule_pb2.CATCH_UP_POLICY_ALL,
            overlap=schedule_pb2.OVERLAP_POLICY_ALLOW,
        )
        orchestra.sql.execute(
            "INSERT INTO schedules (workflow_id, name, input_data, timing, overlap, catch_up,"
            " catch_up_window_ms, due_at, fire_at, tenant_id, created_by)"
            " SELECT workflow_id, name, input_data, timing, overlap, catch_up, catch_up_window_ms,"
            " due_at, fire_at, tenant_id, created_by FROM schedules, generate_series(1, 11)"
            " WHERE id = %s",
            (made.id,),
        )
        await orchestra.change(
            "UPDATE schedules SET due_at = due_at - interval '3 minutes',"
            " fire_at = due_at - interval '3 minutes'"
        )
        orchestra.sql.execute("NOTIFY qflow_schedules")
        await asyncio.gather(*(make_ticks(pool) for _ in range(12)))
        await until(lambda: settled(orchestra, 36))
    await pool.close()
    # A minute may have begun meanwhile; each that was due has its one run, in order.
    counted = orchestra.rows(
        "SELECT count(*), count(DISTINCT tick_at), count(DISTINCT execution_id), min(state),"
        " max(state) FROM schedule_ticks GROUP BY schedule_id"
    )
    assert 12 == len(counted)
    for count, times, runs, least, most in counted:
        assert count == times == runs
        assert ("started", "started") == (least, most)
    assert orchestra.rows("SELECT count(*) FROM schedule_ticks") == orchestra.rows(
        "SELECT count(*) FROM workflow_executions"
    )


async def test_a_claim_of_one_that_died_runs_out(orchestra: Orchestra) -> None:
    async with orchestra.running():
        await create(orchestra)
    await make_due(orchestra, 1)
    await orchestra.change(
        "UPDATE schedules SET claimed_until = clock_timestamp() + interval '1 second'"
    )
    async with orchestra.running():
        await until(lambda: settled(orchestra))
    assert [("timed", "started", "")] == states(orchestra)


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [("NONE", ["skipped"]), ("LAST", ["skipped", "started"]), ("ALL", ["started"] * 3)],
)
async def test_missed_ticks_are_caught_up_as_the_policy_says(
    orchestra: Orchestra, catch_up: str, expected: list[str]
) -> None:
    policy = schedule_pb2.CatchUpPolicy.Value(f"CATCH_UP_POLICY_{catch_up}")
    async with orchestra.running():
        made = await create(
            orchestra,
            timing=every(86_400),
            catch_up=policy,
            catch_up_window={"seconds": 3 * 86_400 + 7200},
            overlap=schedule_pb2.OVERLAP_POLICY_ALLOW,
        )
        await orchestra.change(
            "UPDATE schedules SET due_at = due_at - interval '3 days',"
            " fire_at = due_at - interval '3 days'"
        )
        # Late by more than a minute, unless the test runs in the first minute of a day.
        now = datetime.now(UTC)
        if (now.hour, now.minute) == (0, 0):
            pytest.skip("the newest is on time in the first minute of a day")
        orchestra.sql.execute("NOTIFY qflow_schedules")
        await until(lambda: settled(orchestra, len(expected)))
        found = orchestra.rows("SELECT state, tick_count FROM schedule_ticks ORDER BY tick_at")
        assert expected == [state for state, _ in found]
        missed = 3 - expected.count("started")
        assert missed == sum(int(str(n)) for state, n in found if state == "skipped")
        shown = await stub(orchestra).GetSchedule(pb.GetScheduleRequest(schedule_id=made.id))
        assert missed == shown.schedule.skipped_count


async def test_a_tick_is_skipped_behind_one_that_could_not_start_and_says_so(
    orchestra: Orchestra,
) -> None:
    """No run was under way: what is told is that the tick before it had not started."""
    async with orchestra.running(), (await orchestra.runner(answer)).attached():
        await create(orchestra)
        await make_due(orchestra, 10)
        await until(lambda: settled(orchestra))
        over = "SELECT count(*) FROM workflow_executions WHERE status = 'completed'"
        await until(lambda: [(1,)] == orchestra.rows(over))
        await orchestra.change(  # as a quota would put it off
            "UPDATE schedule_ticks SET state = 'pending', execution_id = NULL, attempts = 1,"
            " try_at = clock_timestamp() + interval '1 hour'"
        )
        await make_due(orchestra, 1)
        await until(lambda: ("timed", "skipped", "OVERLAP") in states(orchestra))
    [(message,)] = orchestra.rows("SELECT message FROM schedule_ticks WHERE state = 'skipped'")
    assert "another tick's run had not started yet, and only one may be under way" == message


async def test_a_tick_is_skipped_while_a_run_is_not_over(orchestra: Orchestra) -> None:
    async with orchestra.running(), (await orchestra.runner(hold)).attached():
        await create(orchestra)
        await make_due(orchestra, 10)
        await until(lambda: settled(orchestra))
        await make_due(orchestra, 1)
        await until(lambda: settled(orchestra, 2))
    assert [("timed", "started", ""), ("timed", "skipped", "OVERLAP")] == states(orchestra)


async def test_one_tick_waits_for_the_run_before_it(orchestra: Orchestra) -> None:
    async with orchestra.running():
        runner = await orchestra.runner(hold)
        async with runner.attached():
            await create(orchestra, overlap=schedule_pb2.OVERLAP_POLICY_BUFFER_ONE)
            await make_due(orchestra, 30)
            await until(lambda: settled(orchestra))
            await runner.until(lambda: bool(runner.held))
            for ago in (20, 10):
                await make_due(orchestra, ago)
                await until(
                    lambda: bool(orchestra.rows("SELECT 1 FROM schedules WHERE fire_at > now()"))
                )
            await until(lambda: ("timed", "skipped", "OVERLAP") in states(orchestra))
            assert ("timed", "pending", "OVERLAP") in states(orchestra)
            [assign] = runner.held.values()
            runner.succeed(assign, 1)
            await until(lambda: settled(orchestra, 3))
    assert ["started", "started", "skipped"] == [state for _, state, _ in states(orchestra)]


async def test_a_run_that_is_not_over_is_cancelled_for_the_next(orchestra: Orchestra) -> None:
    async with orchestra.running(), (await orchestra.runner(hold)).attached():
        await create(orchestra, overlap=schedule_pb2.OVERLAP_POLICY_CANCEL_RUNNING)
        await make_due(orchestra, 20)
        await until(lambda: settled(orchestra))
        await make_due(orchestra, 1)
        await until(lambda: settled(orchestra, 2))
    assert [("timed", "started", "")] * 2 == states(orchestra)
    assert [("cancelled",), ("running",)] == orchestra.rows(
        "SELECT status FROM workflow_executions ORDER BY created_at"
    )


async def test_who_was_shut_out_cancels_nothing_for_the_next_run_and_harms_no_other_schedule(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running(), (await orchestra.runner(hold)).attached():
        made = await create(orchestra, overlap=schedule_pb2.OVERLAP_POLICY_CANCEL_RUNNING)
        await make_due(orchestra, 20)
        await until(lambda: settled(orchestra))
        await orchestra.change("UPDATE schedules SET created_by = %s", shut_out(orchestra))
        await make_due(orchestra, 1)
        await until(lambda: settled(orchestra, 2))
        other = await create(orchestra, name="other")
        await make_due(orchestra, 1)
        await until(lambda: settled(orchestra, 3))
        assert [STARTED] == [each.state for each in await ticks(orchestra, other.id)]
    assert ("timed", "failed", "OWNER_INACTIVE") in states(orchestra)
    assert [(True,)] == orchestra.rows(
        f"SELECT paused_at IS NOT NULL FROM schedules WHERE id = '{made.id}'"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("catch_up_window_ms = 60000", "QUOTA_EXCEEDED"),
        ("paused_at = now(), due_at = NULL, fire_at = NULL", "PAUSED"),
    ],
)
async def test_a_tick_that_nothing_can_start_is_given_up_after_its_window_and_with_a_pause(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch, change: str, reason: str
) -> None:
    async def refuse(*_: Any) -> uuid.UUID:
        raise ResourceExhausted("QUOTA_EXCEEDED", "too little is left of the day", retry_after_s=9)

    monkeypatch.setattr(schedule_runs, "_started", refuse)
    async with orchestra.running():
        await create(orchestra)
        await make_due(orchestra, 90)
        await until(lambda: ("timed", "pending", "QUOTA_EXCEEDED") in states(orchestra))
        await orchestra.change(f"UPDATE schedules SET {change}")
        await until(lambda: ("timed", "skipped", reason) in states(orchestra))


def shut_out(orchestra: Orchestra) -> uuid.UUID:
    user = factories.user(orchestra.sql)
    orchestra.sql.execute("UPDATE users SET is_active = false WHERE id = %s", (user.id,))
    return user.id


async def test_a_schedule_that_cannot_be_served_ends_no_orchestrator(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt: list[uuid.UUID] = []
    pending = schedule_due.pending

    async def spoils(db: Any, schedule: schedule_due.Claimed, *, limit: int) -> Any:
        if not spoilt:
            spoilt.append(schedule.id)
            raise RuntimeError("what it has makes no sense")
        return await pending(db, schedule, limit=limit)

    monkeypatch.setattr(schedule_due, "pending", spoils)
    async with orchestra.running(), (await orchestra.runner(answer)).attached():
        for name in ("one", "other"):
            await create(orchestra, name=name)
        await make_due(orchestra, 1)
        await until(lambda: ("timed", "started", "") in states(orchestra))
        # The one that was served is let go, the other is looked at again once its claim has lapsed.
        claimed = (
            "SELECT id, claimed_until > clock_timestamp() FROM schedules"
            " WHERE claimed_until IS NOT NULL"
        )
        await until(lambda: len(orchestra.rows(claimed)) < 2)
        assert [(spoilt[0], True)] == orchestra.rows(claimed)


# A tick that is put off for a run is due again in an hour, whatever the engine said.
PUT_OFF = """
    CREATE FUNCTION put_off() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.try_at := clock_timestamp() + interval '1 hour';
        RETURN NEW;
    END $$;
    CREATE TRIGGER put_off BEFORE UPDATE ON schedule_ticks FOR EACH ROW
      WHEN (NEW.reason = 'OVERLAP' AND OLD.reason = '' AND NEW.state = 'pending')
    EXECUTE FUNCTION put_off()
"""


@pytest.mark.parametrize("overlap", ["BUFFER_ONE", "CANCEL_RUNNING"])
async def test_the_next_run_begins_as_soon_as_the_one_before_it_is_over(
    orchestra: Orchestra, overlap: str
) -> None:
    """By its end itself: nobody looks for an hour."""
    async with orchestra.running():
        await orchestra.change(PUT_OFF)
        runner = await orchestra.runner(hold)
        async with runner.attached():
            await create(orchestra, overlap=f"OVERLAP_POLICY_{overlap}")
            await make_due(orchestra, 20)
            await until(lambda: settled(orchestra))
            await runner.until(lambda: bool(runner.held))
            [assign] = runner.held.values()
            await make_due(orchestra, 1)
            if overlap == "BUFFER_ONE":
                await until(lambda: ("timed", "pending", "OVERLAP") in states(orchestra))
                runner.succeed(assign, 1)
            await until(lambda: settled(orchestra, 2))
        await orchestra.change("DROP TRIGGER put_off ON schedule_ticks; DROP FUNCTION put_off()")
    assert [("timed", "started", "")] * 2 == states(orchestra)


# One that the user who made it is not in.
_INTO_A_TEAM = (
    "WITH team AS (INSERT INTO tenants (kind, name) VALUES ('team', 't') RETURNING id)"
    " UPDATE schedules SET tenant_id = (SELECT id FROM team)"
)


@pytest.mark.parametrize(
    ("harm", "reason", "paused"),
    [
        ("UPDATE workflows SET is_active = false", "WORKFLOW_INACTIVE", False),
        ("UPDATE workflows SET deleted_at = now()", "WORKFLOW_NOT_FOUND", True),
        ("UPDATE users SET is_active = false WHERE NOT is_owner", "OWNER_INACTIVE", True),
        ("UPDATE users SET role = 'viewer' WHERE NOT is_owner", "NOT_ALLOWED", True),
        (
            _INTO_A_TEAM,
            "OWNER_NOT_A_MEMBER",
            True,
        ),
    ],
)
async def test_a_start_that_is_refused_is_shown_and_not_lost(
    orchestra: Orchestra, harm: str, reason: str, *, paused: bool
) -> None:
    async with orchestra.running():
        made = await create(orchestra)
    orchestra.sql.execute(harm.encode())
    await make_due(orchestra, 1)
    async with orchestra.running():
        await until(lambda: settled(orchestra))
    assert [("timed", "failed", reason)] == states(orchestra)
    [(shown, is_paused, is_due)] = orchestra.rows(
        "SELECT error_reason, paused_at IS NOT NULL, fire_at IS NOT NULL FROM schedules"
    )
    assert (reason, paused, not paused) == (shown, is_paused, is_due)
    assert made.id
    assert [(0,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


async def test_a_refusal_is_shown_until_the_next_start_that_is_not_refused(
    orchestra: Orchestra,
) -> None:
    shown = "SELECT error_reason, error_message, error_at IS NOT NULL FROM schedules"
    async with orchestra.running():
        await create(orchestra)
        await orchestra.change("UPDATE workflows SET is_active = false")
        await make_due(orchestra, 10)
        await until(lambda: settled(orchestra))
        [(reason, _, is_dated)] = orchestra.rows(shown)
        assert ("WORKFLOW_INACTIVE", True) == (reason, is_dated)
        await orchestra.change("UPDATE workflows SET is_active = true")
        await make_due(orchestra, 1)
        await until(lambda: [(None, None, False)] == orchestra.rows(shown))
    assert ["failed", "started"] == [state for _, state, _ in states(orchestra)]


async def test_what_is_settled_is_settled_no_other_way(orchestra: Orchestra) -> None:
    """I34: by one whose claim ran out while another did its work."""
    pool = await open_pool(
        orchestra.database.url("qflow_orchestrator_engine"),
        application_name="other",
        setting="test",
    )
    async with orchestra.running():
        made = await create(orchestra)
        await make_due(orchestra, 1)
        await until(lambda: settled(orchestra))
        before = orchestra.rows("SELECT tick_at, state, execution_id FROM schedule_ticks")
        [(tick_at, _, _)] = before
        told: Any = {"reason": "OVERLAP", "message": "late"}
        for late in (schedule_due.skipped, schedule_due.settle_failed):
            async with transaction(pool) as db:
                await late(db, uuid.UUID(made.id), cast("datetime", tick_at), **told)
        assert before == orchestra.rows("SELECT tick_at, state, execution_id FROM schedule_ticks")
        assert [(0,)] == orchestra.rows("SELECT skipped_count FROM schedules")
    await pool.close()


async def test_a_schedule_that_nobody_can_read_holds_up_no_other(orchestra: Orchestra) -> None:
    async with orchestra.running():
        await create(orchestra)
        await create(orchestra)
    await orchestra.change(
        "UPDATE schedules SET timing = jsonb_set(timing, '{time_zone}', '\"Gone/Away\"')"
        " WHERE id = (SELECT id FROM schedules LIMIT 1)"
    )
    await make_due(orchestra, 1)
    async with orchestra.running():
        await until(lambda: settled(orchestra))
    assert [("TIMING_UNKNOWN",), (None,)] == orchestra.rows(
        "SELECT error_reason FROM schedules ORDER BY error_reason NULLS LAST"
    )


async def test_a_paused_schedule_is_not_due_and_goes_on_with_the_next_time(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running():
        made = await create(orchestra)
        calls = stub(orchestra)
        paused = (
            await calls.PauseSchedule(
                pb.PauseScheduleRequest(schedule_id=made.id, reason="holiday")
            )
        ).schedule
        assert (True, "holiday", False) == (
            paused.paused,
            paused.pause_reason,
            paused.HasField("next_time"),
        )
        resumed = (
            await calls.ResumeSchedule(pb.ResumeScheduleRequest(schedule_id=made.id))
        ).schedule
        assert (False, "", made.next_time) == (
            resumed.paused,
            resumed.pause_reason,
            resumed.next_time,
        )


async def test_a_trigger_starts_a_run_beside_what_runs_paused_or_not(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running(), (await orchestra.runner(hold)).attached():
        made = await create(orchestra, paused=True)
        request = pb.TriggerScheduleRequest(schedule_id=made.id, request_id=str(uuid.uuid4()))
        first = await stub(orchestra).TriggerSchedule(request)
        assert first == await stub(orchestra).TriggerSchedule(request)
        await stub(orchestra).TriggerSchedule(pb.TriggerScheduleRequest(schedule_id=made.id))
        await until(lambda: settled(orchestra, 2))
    assert [("manual", "started", "")] * 2 == states(orchestra)


async def test_new_times_count_from_now_on_and_an_old_etag_is_refused(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running():
        made = await create(orchestra)
        request = pb.UpdateScheduleRequest(
            schedule_id=made.id,
            etag=made.etag,
            update_mask=FieldMask(paths=["timing", "labels"]),
            definition=definition(timing=every(3600), labels=["a"]),
        )
        changed = (await stub(orchestra).UpdateSchedule(request)).schedule
        assert changed.next_time.seconds - datetime.now(UTC).timestamp() < 3601
        assert ["a"] == list(changed.definition.labels)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub(orchestra).UpdateSchedule(request)
        assert (grpc.StatusCode.ABORTED, "ETAG_MISMATCH") == (
            refused.value.code(),
            details(refused.value)[0],
        )
        listed = await stub(orchestra).ListSchedules(pb.ListSchedulesRequest(label="a"))
        assert [changed] == list(listed.schedules)
        none = await stub(orchestra).ListSchedules(pb.ListSchedulesRequest(label="b"))
        assert [] == list(none.schedules)


def cron(expression: str, zone: str = "", **more: Any) -> schedule_pb2.ScheduleTiming:
    times = schedule_pb2.CronTiming(expression=expression, time_zone=zone)
    return schedule_pb2.ScheduleTiming(cron=times, **more)


@pytest.mark.parametrize(
    ("fields", "reason", "place"),
    [
        ({"timing": cron("0 0 30 2 *")}, "CRON_INVALID", "definition.timing.cron.expression"),
        ({"timing": cron("* * * * * *")}, "CRON_INVALID", "definition.timing.cron.expression"),
        ({"timing": cron("0 0 * * *", "Mars/X")}, "TIME_ZONE_UNKNOWN",
         "definition.timing.cron.time_zone"),
        ({"timing": cron("0 0 * * *", end_time={"seconds": 1})}, "SCHEDULE_NEVER_DUE",
         "definition.timing"),
        ({"timing": cron("0 0 * * *", end_time={"seconds": 1 << 40})}, "INVALID_REQUEST",
         "definition.timing.end_time"),
        ({"timing": cron("0 0 * * *", start_time={"nanos": -1})}, "INVALID_REQUEST",
         "definition.timing.start_time"),
        ({"timing": None}, "TIMING_MISSING", "definition.timing"),
        ({"input_json": '{"y":1}'}, "INPUT_INVALID", "input_json.y"),
        ({"name": " "}, "NAME_MISSING", "definition.name"),
    ],
)  # fmt: skip
async def test_a_schedule_that_could_never_run_is_refused_at_its_field(
    orchestra: Orchestra, fields: dict[str, Any], reason: str, place: str
) -> None:
    async with orchestra.running():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create(orchestra, **fields)
        assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()
        found, fields_named = details(refused.value)
        assert (reason, place) == (found, fields_named[0])
    assert [] == orchestra.rows("SELECT 1 FROM schedules")


async def test_times_are_shown_before_there_is_a_schedule(orchestra: Orchestra) -> None:
    async with orchestra.running():
        request = pb.PreviewScheduleRequest(
            timing=cron("30 2 * * *", "Europe/Berlin"),
            after_time=Timestamp(seconds=int(datetime(2026, 3, 28, 12, tzinfo=UTC).timestamp())),
            count=2,
        )
        shown = await stub(orchestra).PreviewSchedule(request)
    assert ["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"] == [
        each.ToJsonString() for each in shown.tick_times
    ]


def moment(**ago: float) -> Timestamp:
    encoded = Timestamp()
    encoded.FromDatetime(datetime.now(UTC) - timedelta(**ago))
    return encoded


async def test_a_stranger_sees_no_schedule_and_no_tick(orchestra: Orchestra) -> None:
    """X14."""
    stranger = factories.user(orchestra.sql)
    async with orchestra.running():
        made = await create(orchestra)
        await make_due(orchestra, 1)
        await until(lambda: settled(orchestra))
        calls = stub(orchestra, stranger)
        assert not (await calls.ListSchedules(pb.ListSchedulesRequest())).schedules
        asked = pb.ListScheduleTicksRequest(schedule_id=made.id)
        assert not (await calls.ListScheduleTicks(asked)).ticks
        for call, request in (
            (calls.GetSchedule, pb.GetScheduleRequest(schedule_id=made.id)),
            (calls.DeleteSchedule, pb.DeleteScheduleRequest(schedule_id=made.id)),
            (calls.TriggerSchedule, pb.TriggerScheduleRequest(schedule_id=made.id)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(request)
            assert grpc.StatusCode.NOT_FOUND == refused.value.code()


async def test_a_deleted_schedule_takes_its_ticks_and_leaves_its_runs(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running():
        made = await create(orchestra)
        await make_due(orchestra, 1)
        await until(lambda: settled(orchestra))
        request = pb.DeleteScheduleRequest(schedule_id=made.id, request_id=str(uuid.uuid4()))
        for _ in range(2):
            await stub(orchestra).DeleteSchedule(request)
    assert [] == states(orchestra)
    assert [(1,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")


@pytest.mark.slow
async def test_a_hundred_schedules_that_are_not_due_cost_nothing(orchestra: Orchestra) -> None:
    async with orchestra.running():
        made = await create(orchestra)
        orchestra.sql.execute(
            "INSERT INTO schedules (workflow_id, name, timing, overlap, catch_up,"
            " catch_up_window_ms, due_at, fire_at, tenant_id, created_by)"
            " SELECT workflow_id, name, timing, overlap, catch_up, catch_up_window_ms, due_at,"
            " fire_at, tenant_id, created_by FROM schedules, generate_series(1, 99) WHERE id = %s",
            (made.id,),
        )
        latest = (
            "SELECT max(query_start) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'qflow%%'"
        )
        spans = []
        for _ in range(4):  # the first may still have the end of what came before
            before = orchestra.rows(latest)
            await asyncio.sleep(3)  # the span in which nobody may ask anything
            spans.append(before == orchestra.rows(latest))
        assert any(spans)
