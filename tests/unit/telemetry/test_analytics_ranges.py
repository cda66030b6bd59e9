"""Which ranges may be asked about, and how finely."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from services.kit.errors import InvalidArgument
from services.telemetry.domain.analytics import Range, bucket_width, range_of

NOW = datetime(2026, 1, 31, tzinfo=UTC)
DAY = timedelta(days=1)


def test_a_range_that_nobody_states_is_the_usual_one_up_to_now() -> None:
    assert Range(NOW - DAY, NOW) == range_of(None, None, now=NOW, usual=DAY)
    assert Range(NOW - 3 * DAY, NOW - 2 * DAY) == range_of(None, NOW - 2 * DAY, now=NOW, usual=DAY)


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (NOW, NOW, "RANGE_EMPTY"),
        (NOW + DAY, None, "RANGE_EMPTY"),
        (NOW - 367 * DAY, NOW, "RANGE_TOO_LONG"),
        (datetime(1, 1, 1, tzinfo=UTC), None, "RANGE_TOO_LONG"),
        (None, datetime(1, 1, 1, tzinfo=UTC), "RANGE_EMPTY"),
    ],
)
def test_a_range_is_neither_empty_nor_endless(
    start: datetime | None, end: datetime | None, reason: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        range_of(start, end, now=NOW, usual=DAY)
    assert refused.value.reason == reason


def test_a_thousand_buckets_fit_and_no_more() -> None:
    span = Range(NOW - timedelta(seconds=1000), NOW)
    assert bucket_width(span, None) == timedelta(seconds=1000)
    assert bucket_width(span, timedelta(seconds=1)) == timedelta(seconds=1)
    with pytest.raises(InvalidArgument) as refused:
        bucket_width(Range(span.start, NOW + timedelta(microseconds=1)), timedelta(seconds=1))
    assert refused.value.reason == "TOO_MANY_BUCKETS"
