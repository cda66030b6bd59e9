"""Points as they are sorted out and summed up, minutes that buckets share, batches that fit."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from services.telemetry.domain.analytics import Range, shared_minutes
from services.telemetry.domain.points import Series, checked, mark_of, sums_of

_NOW_US = 1_800_000_000_000_000
_VALUES = st.floats(min_value=-1e23, max_value=1e23, allow_nan=False)
_START = datetime(2026, 1, 5, 10, tzinfo=UTC)


def series(values: list[float], times_us: list[int] | None = None) -> Series:
    return Series(
        name="m",
        unit="",
        execution_id=None,
        keeps_points=False,
        values=values,
        times_us=times_us or [_NOW_US] * len(values),
    )


@given(_VALUES, _VALUES)
def test_marks_are_in_the_order_of_their_values(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert mark_of(low) <= mark_of(high)


@given(st.floats(min_value=1e-5, max_value=1e23))
def test_two_values_of_a_mark_are_within_a_hundredth(value: float) -> None:
    assert mark_of(value) == -mark_of(-value)
    assert mark_of(value * 1.011) > mark_of(value)


@given(st.lists(_VALUES, min_size=1, max_size=50), st.integers(0, 3))
def test_nothing_is_lost_by_summing_up(values: list[float], minutes: int) -> None:
    times = [_NOW_US + at % (minutes + 1) * 60_000_000 for at in range(len(values))]
    sums = [*sums_of(series(values, times), None)]
    assert len(values) == sum(each.count for each in sums)
    assert math.isclose(sum(each.total for each in sums), sum(values), rel_tol=1e-9, abs_tol=1e15)
    assert (min(values), max(values)) == (
        min(each.low for each in sums),
        max(each.high for each in sums),
    )
    assert len(sums) == len({(each.minute_us, each.mark) for each in sums})


def test_what_cannot_be_recorded_takes_nothing_else_with_it() -> None:
    """B75, B77."""
    run = uuid4()
    about = Series(
        name="m",
        unit="",
        execution_id=run,
        keeps_points=True,
        values=[1.0],
        times_us=[_NOW_US],
    )
    given_ = [series([1.0, math.nan, 2.0]), about, series([math.inf])]
    found = checked(given_, {}, now_us=_NOW_US)
    assert [[1.0, 2.0]] == [each.values for each in found.series]
    assert (2, 3) == (found.count, found.refused_count)
    assert [(0, 1, False), (1, None, True), (2, 0, False)] == [
        (each.series_index, each.point_index, each.is_missing) for each in found.refusals
    ]
    assert 3 == checked(given_, {run: None}, now_us=_NOW_US).count


def test_minutes_are_shared_where_an_end_lies_within_them() -> None:
    whole = Range(_START, _START + timedelta(hours=1))
    assert [] == shared_minutes(whole, timedelta(minutes=10))
    ragged = Range(_START + timedelta(seconds=5), _START + timedelta(minutes=59, seconds=30))
    found = shared_minutes(ragged, timedelta(minutes=30))
    assert [0, 30, 59] == [(each - _START) // timedelta(minutes=1) for each in found]
    seconds = shared_minutes(Range(_START, _START + timedelta(minutes=3)), timedelta(seconds=20))
    assert [0, 1, 2] == [(each - _START) // timedelta(minutes=1) for each in seconds]
