"""When schedules are due: by clocks that jump, at equal distances, and what is owed when late."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qflow.orchestrator.v1 import schedule_pb2 as pb

from services.kit.errors import InvalidArgument
from services.orchestrator.domain import ticks
from services.orchestrator.domain.ticks import CatchUp, look
from services.orchestrator.domain.timing import (
    Cron,
    Interval,
    SkippedTime,
    Timing,
    check,
    from_json,
    next_after,
    put_off,
    to_json,
    upcoming,
)
from services.orchestrator.rpc.schedule_codec import timing_from

_ID = UUID(int=7)
_HOUR = timedelta(hours=1)
_ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo"),
    *("Africa/Cairo", "Asia/Kathmandu", "Pacific/Apia", "Asia/Beirut", "Antarctica/Troll"),
)


def cron(expression: str, zone: str = "UTC", rule: SkippedTime = "after_gap") -> Timing:
    return Timing(times=Cron(expression=expression, time_zone=zone, skipped_time=rule))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("zone", "expression", "after", "expected"),
    [
        # 2026-03-29 02:00 to 03:00 is not there.
        (
            "Europe/Berlin",
            "30 2 * * *",
            "2026-03-28T12:00+01:00",
            ["2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00"],
        ),
        # All that fell into the gap is one, with what stands right behind it.
        (
            "Europe/Berlin",
            "0,15,30 2,3 * * *",
            "2026-03-28T12:00+01:00",
            ["2026-03-29T03:00+02:00", "2026-03-29T03:15+02:00", "2026-03-29T03:30+02:00"],
        ),
        # 2026-10-25 02:00 to 03:00 comes twice.
        (
            "Europe/Berlin",
            "30 2 * * *",
            "2026-10-24T12:00+02:00",
            ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00"],
        ),
        # Asked between the two, the first is over.
        (
            "Europe/Berlin",
            "30 2 * * *",
            "2026-10-25T02:10+01:00",
            ["2026-10-26T02:30+01:00"],
        ),
        # What goes by elapsed time does so in the long hour too.
        (
            "Europe/Berlin",
            "*/30 * * * *",
            "2026-10-25T02:10+02:00",
            [
                *("2026-10-25T02:30+02:00", "2026-10-25T02:00+01:00"),
                *("2026-10-25T02:30+01:00", "2026-10-25T03:00+01:00"),
            ],
        ),
        (
            "America/New_York",
            "0 2 * * SUN",
            "2026-03-07T12:00-05:00",
            ["2026-03-08T03:00-04:00", "2026-03-15T02:00-04:00"],
        ),
        # A jump of half an hour: 02:00 to 02:30 is not there, 02:45 is.
        (
            "Australia/Lord_Howe",
            "15,45 2 * * *",
            "2026-10-03T12:00+10:30",
            ["2026-10-04T02:30+11:00", "2026-10-04T02:45+11:00"],
        ),
        # Half an hour comes twice: 02:00 before it does not, and 02:00 after it does.
        (
            "Australia/Lord_Howe",
            "0 */2 * * *",
            "2026-04-05T00:30+11:00",
            ["2026-04-05T02:00+10:30", "2026-04-05T04:00+10:30"],
        ),
        # A clock that went back a minute after midnight, to the day before.
        (
            "America/St_Johns",
            "0 */2 * * *",
            "2006-10-28T21:00-02:30",
            [
                *("2006-10-28T22:00-02:30", "2006-10-29T00:00-02:30"),
                *("2006-10-29T00:00-03:30", "2006-10-29T02:00-03:30"),
            ],
        ),
        # Midnight itself is not there.
        (
            "Africa/Cairo",
            "0 0 * * *",
            "2026-04-23T12:00+02:00",
            ["2026-04-24T01:00+03:00", "2026-04-25T00:00+03:00"],
        ),
        # Two hours at once.
        (
            "Antarctica/Troll",
            "30 1,2 * * *",
            "2026-03-28T12:00+00:00",
            ["2026-03-29T03:00+02:00", "2026-03-30T01:30+02:00"],
        ),
    ],
)
def test_clocks_that_jump_lose_no_day_and_double_none(
    zone: str, expression: str, after: str, expected: list[str]
) -> None:
    """I34, F33."""
    found = upcoming(cron(expression, zone), at(after), count=len(expected))
    assert expected == [
        each.astimezone(ZoneInfo(zone)).isoformat(timespec="minutes") for each in found
    ]


def test_a_day_without_the_time_is_left_out_by_rule() -> None:
    found = upcoming(
        cron("30 2 * * *", "Europe/Berlin", "omit"), at("2026-03-28T12:00+01:00"), count=1
    )
    assert [at("2026-03-30T02:30+02:00")] == found


# As the strategy wants them: without the zone that it adds.
_BEGIN, _END = (datetime.fromisoformat(f"{year}-01-01") for year in (2005, 2035))


@st.composite
def _expressions(draw: st.DrawFn) -> str:
    def part(low: int, high: int) -> str:
        kind = draw(st.sampled_from(["*", "step", "list"]))
        if kind == "*":
            return "*"
        if kind == "step":
            return f"*/{draw(st.integers(1, high))}"
        return ",".join(
            str(each) for each in draw(st.lists(st.integers(low, high), min_size=1, max_size=4))
        )

    days = draw(st.sampled_from(["* * *", "1 * *", "L * *", "* 3,10 *", "* * SUN", "* * MON#2"]))
    return f"{part(0, 59)} {part(0, 23)} {days}"


@settings(deadline=None, max_examples=30)
@given(
    expression=_expressions(),
    zone=st.sampled_from(_ZONES),
    rule=st.sampled_from(["after_gap", "omit"]),
    after=st.datetimes(_BEGIN, _END, timezones=st.just(UTC)),
)
def test_times_grow_and_are_the_same_from_wherever_one_asks(
    expression: str, zone: str, rule: SkippedTime, after: datetime
) -> None:
    """I34: whoever asks again after a tick is told the next, never the same or one before."""
    timing = cron(expression, zone, rule)
    found = upcoming(timing, after, count=12)
    assert all(before < later for before, later in pairwise([after, *found]))
    stepped = [after]
    for _ in found:
        following = next_after(timing, stepped[-1])
        assert following is not None
        stepped.append(following)
    assert found == stepped[1:]
    assert found == upcoming(from_json(to_json(timing)), after, count=12)


@settings(deadline=None, max_examples=30)
@given(
    expression=_expressions(),
    zone=st.sampled_from(_ZONES),
    after=st.datetimes(_BEGIN, _END, timezones=st.just(UTC)),
)
def test_every_local_day_that_has_the_time_has_its_tick(
    expression: str, zone: str, after: datetime
) -> None:
    """Held against a plain search: each local minute of two days, by the fields alone."""
    minutes, hours, *_days = expression.split()
    timing = cron(f"{minutes} {hours} * * *", zone)
    local = ZoneInfo(zone)
    end = after + timedelta(days=2)
    found = {each for each in upcoming(timing, after, count=3_000) if each < end}
    moment = (after + timedelta(minutes=1)).replace(second=0, microsecond=0)
    while moment < end:
        wall = moment.astimezone(local)
        wanted = _has(minutes, wall.minute, 60) and _has(hours, wall.hour, 24)
        # The second of two equal hours counts only where hours are not named.
        again = wall.fold == 1 and not hours.startswith("*")
        if wanted and not again:
            assert moment in found, wall
        moment += timedelta(minutes=1)


def _has(field: str, value: int, size: int) -> bool:
    if field == "*":
        return True
    if field.startswith("*/"):
        return value in range(0, size, int(field[2:]))
    return value in {int(each) for each in field.split(",")}


@given(
    every_ms=st.integers(1_000, 31_536_000_000),
    share=st.floats(0, 1, exclude_max=True),
    after=st.datetimes(_BEGIN, _END, timezones=st.just(UTC)),
)
def test_intervals_are_exact(every_ms: int, share: float, after: datetime) -> None:
    timing = Timing(times=Interval(every_ms=every_ms, offset_ms=int(every_ms * share)))
    first, second = upcoming(timing, after, count=2)
    assert after < first <= after + timedelta(milliseconds=every_ms)
    assert second - first == timedelta(milliseconds=every_ms)


def test_nothing_is_due_before_the_start_or_from_the_end_on() -> None:
    timing = Timing(
        times=Interval(every_ms=3_600_000),
        starts_at=at("2026-01-01T10:00+00:00"),
        ends_at=at("2026-01-01T12:00+00:00"),
    )
    found = upcoming(timing, at("2026-01-01T00:00+00:00"), count=9)
    assert [at("2026-01-01T10:00+00:00"), at("2026-01-01T11:00+00:00")] == found


@pytest.mark.parametrize(
    "expression",
    [
        *("0 0 30 2 *", "0 0 31 4,6,9,11 *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *"),
        *("* * * * 8", "*/0 * * * *", "5-1 * * * *", "* * * *", "* * * * * *", "@daily", ""),
        *("1,,2 * * * *", "1/2/3 * * * *", "* * * * MON#6", "² * * * *", "-1 * * * *"),
        *("a b c d e", "* * L-1 * *"),
        *("1- * * * *", "*,* * * * MON-", "* * W * *", "# # # # #", "L L L L L", "* * 1#1 * *"),
    ],
)  # fmt: skip
def test_what_no_calendar_has_is_refused(expression: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check(cron(expression), field="timing", now=at("2026-01-01T00:00+00:00"))
    assert "CRON_INVALID" == refused.value.reason
    assert "timing.cron.expression" == refused.value.fields[0].field


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        *(("60 * * * *", "0 to 59"), ("* * * FOO *", "JAN to DEC"), ("* * * * 8", "SUN to SAT")),
        *(("0 0 32 2 *", "1 to 31"), ("0 0 30 2 *", "none of its months has such a day")),
    ],
)
def test_what_a_field_takes_is_told(expression: str, allowed: str) -> None:
    with pytest.raises(InvalidArgument, match=allowed):
        check(cron(expression), field="timing", now=at("2026-01-01T00:00+00:00"))


@pytest.mark.parametrize("expression", ["30 2 * 3 SUN#2", "0-59 2 * 3 SUN#2"])
def test_times_that_clocks_leave_out_each_year_never_come(expression: str) -> None:
    """The clocks of New York jump from two to three on each second Sunday of March."""
    timing = cron(expression, "America/New_York", "omit")
    with pytest.raises(InvalidArgument) as refused:
        check(timing, field="timing", now=at("2026-01-01T00:00+00:00"))
    assert "SCHEDULE_NEVER_DUE" == refused.value.reason


def test_times_that_clocks_leave_out_in_some_years_come_in_the_others() -> None:
    timing = cron("30 2 11 3 *", "America/New_York", "omit")  # a Sunday in 2029 and in 2035
    years = [each.year for each in upcoming(timing, at("2028-01-01T00:00+00:00"), count=8)]
    assert [2028, 2030, 2031, 2032, 2033, 2034, 2036, 2037] == years


@given(text=st.text(alphabet="0123456789*/,-#LWMONJAN? ", max_size=40))
def test_no_expression_is_anything_but_read_or_refused(text: str) -> None:
    reason = ""
    try:
        check(cron(text, "Europe/Berlin"), field="timing", now=at("2026-01-01T00:00+00:00"))
    except InvalidArgument as error:
        reason = error.reason
    assert reason in {"", "CRON_INVALID", "SCHEDULE_NEVER_DUE"}


@pytest.mark.parametrize(
    ("timing", "field", "reason"),
    [
        (
            Timing(times=Interval(every_ms=60_000, offset_ms=60_000)),
            "interval.offset",
            "OFFSET_INVALID",
        ),
        (
            Timing(
                times=Interval(every_ms=60_000, offset_ms=0),
                starts_at=datetime(1899, 12, 31, tzinfo=UTC),
            ),
            *("start_time", "TIME_INVALID"),
        ),
        (
            Timing(
                times=Interval(every_ms=60_000, offset_ms=0),
                ends_at=datetime(9000, 1, 2, tzinfo=UTC),
            ),
            *("end_time", "TIME_INVALID"),
        ),
    ],
)
def test_what_no_schedule_can_be_is_refused_by_its_field(
    timing: Timing, field: str, reason: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check(timing, field="timing", now=at("2026-01-01T00:00+00:00"))
    told = (refused.value.reason, refused.value.fields[0].field)
    assert (reason, f"timing.{field}") == told


@pytest.mark.parametrize(
    "timing",
    [
        Timing(times=Interval(every_ms=60_000, offset_ms=59_999), jitter_ms=1),
        Timing(
            times=Cron(expression="0 6 * * *", time_zone="Europe/Berlin", skipped_time="omit"),
            starts_at=datetime(1900, 1, 1, tzinfo=UTC),
            ends_at=datetime(2026, 1, 1, 12, 0, 0, 5, tzinfo=UTC),
            jitter_ms=3_600_000,
        ),
    ],
)
def test_a_timing_is_stored_whole(timing: Timing) -> None:
    timing = replace(timing, time_input="day")
    assert timing == from_json(to_json(timing))


@pytest.mark.parametrize(
    "zone", ["Mars/Phobos", "localtime", "../etc/passwd", "Europe", "utc8", ""]
)
def test_only_zones_that_mean_the_same_everywhere_are_known(zone: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check(cron("0 0 * * *", zone), field="timing", now=at("2026-01-01T00:00+00:00"))
    assert "TIME_ZONE_UNKNOWN" == refused.value.reason


def test_jitter_is_the_same_each_time_and_within_its_bound() -> None:
    timing = Timing(times=Interval(every_ms=60_000), jitter_ms=30_000)
    moments = upcoming(timing, at("2026-01-01T00:00+00:00"), count=200)
    waits = {(put_off(timing, _ID, each) - each).total_seconds() for each in moments}
    assert all(0 <= wait < 30 for wait in waits)
    assert len(waits) > 150
    assert put_off(timing, _ID, moments[0]) == put_off(timing, _ID, moments[0])


def owed(
    catch_up: CatchUp, late: timedelta, *, window: timedelta = _HOUR, every_s: int = 600
) -> list[tuple[bool, int]]:
    now = at("2026-01-01T12:00+00:00") + timedelta(seconds=5)
    timing = Timing(times=Interval(every_ms=every_s * 1000))
    due_at = next_after(timing, now - late)
    assert due_at is not None
    found: list[tuple[bool, int]] = []
    while due_at is not None and due_at <= now:
        step = look(timing, _ID, due_at=due_at, now=now, catch_up=catch_up, window=window)
        assert step.due_at is None or step.due_at > due_at
        found += [(tick.missed, tick.count) for tick in step.ticks]
        due_at = step.due_at
    return found


@pytest.mark.parametrize(
    ("catch_up", "late", "expected"),
    [
        ("none", timedelta(seconds=20), [(False, 1)]),
        ("last", timedelta(seconds=20), [(False, 1)]),
        ("all", timedelta(seconds=20), [(False, 1)]),
        # The newest of these is five seconds late: that is on time.
        ("none", timedelta(minutes=35), [(True, 3), (False, 1)]),
        ("last", timedelta(minutes=35), [(True, 3), (False, 1)]),
        ("all", timedelta(minutes=35), [(False, 1)] * 4),
        # Only seven of 18 are in the window.
        ("all", timedelta(hours=3), [(True, 12), *[(False, 1)] * 6]),
        ("last", timedelta(hours=3), [(True, 17), (False, 1)]),
    ],
)
def test_what_was_missed_is_caught_up_by_policy(
    catch_up: CatchUp, late: timedelta, expected: list[tuple[bool, int]]
) -> None:
    assert expected == owed(catch_up, late)


def test_a_single_tick_that_is_too_late_for_its_window_is_missed() -> None:
    now = at("2026-01-01T12:00+00:00")
    timing = cron("0 0 1 1 *")
    for catch_up in ("none", "last", "all"):
        step = look(
            timing,
            _ID,
            due_at=at("2026-01-01T00:00+00:00"),
            now=now,
            catch_up=catch_up,
            window=_HOUR,
        )
        assert [(True, 1)] == [(each.missed, each.count) for each in step.ticks]
        assert at("2027-01-01T00:00+00:00") == step.due_at


@pytest.mark.parametrize("catch_up", ["none", "last", "all"])
def test_years_of_seconds_are_over_in_a_few_steps(catch_up: CatchUp) -> None:
    found = owed(catch_up, timedelta(days=900), every_s=1, window=timedelta(minutes=1))
    assert len(found) < 200
    assert (False, 1) == found[-1]


@pytest.mark.parametrize("more", [0, 1, 2])
@pytest.mark.parametrize("catch_up", ["none", "last"])
def test_the_newest_starts_where_just_as_many_are_due_as_are_looked_at(
    catch_up: CatchUp, more: int
) -> None:
    """I34: each is told once, and the last is the one that starts."""
    count = ticks.TICKS_MAX + more
    found = owed(catch_up, timedelta(seconds=count), every_s=1)
    assert (False, 1) == found[-1]
    assert count == sum(each for _, each in found)


@pytest.mark.parametrize("catch_up", ["none", "last", "all"])
def test_what_is_less_than_a_minute_late_is_on_time_whatever_the_window(catch_up: CatchUp) -> None:
    due_at = at("2026-01-01T12:00+00:00")
    now = due_at + timedelta(seconds=59)
    step = look(
        cron("0 * * * *"), _ID, due_at=due_at, now=now, catch_up=catch_up, window=timedelta(0)
    )
    assert [(False, due_at)] == [(each.missed, each.at) for each in step.ticks]


def test_all_of_a_long_window_start_in_order_and_none_twice() -> None:
    found = owed("all", timedelta(days=2), every_s=10, window=timedelta(days=3))
    assert [(False, 1)] * (2 * 8640) == found


def test_jitter_that_is_not_over_holds_a_tick_back_and_does_not_make_it_late() -> None:
    timing = Timing(times=Interval(every_ms=3_600_000), jitter_ms=3_000_000)
    due_at = at("2026-01-01T12:00+00:00")
    now = put_off(timing, _ID, due_at) + timedelta(seconds=1)
    step = look(timing, _ID, due_at=due_at, now=now, catch_up="none", window=_HOUR)
    assert [(False, due_at)] == [(each.missed, each.at) for each in step.ticks]
    assert due_at + _HOUR == step.due_at
    assert step.fire_at == put_off(timing, _ID, due_at + _HOUR)


def test_a_start_has_the_same_request_id_whoever_makes_it() -> None:
    moment = at("2026-01-01T12:00+00:00")
    assert ticks.request_id(_ID, moment) == ticks.request_id(_ID, moment)
    assert ticks.request_id(_ID, moment) != ticks.request_id(_ID, moment + _HOUR)
    assert ticks.request_id(_ID, moment) != ticks.request_id(UUID(int=8), moment)


@pytest.mark.parametrize("field", ["every", "offset"])
def test_a_span_that_times_add_up_is_in_whole_milliseconds(field: str) -> None:
    timing = pb.ScheduleTiming()
    timing.interval.every.FromSeconds(1)
    getattr(timing.interval, field).FromMicroseconds(1_000_500)
    with pytest.raises(InvalidArgument, match=r"is 1\.0005 s; give whole milliseconds") as refused:
        timing_from(timing, field="timing")
    assert [f"timing.interval.{field}"] == [each.field for each in refused.value.fields]
