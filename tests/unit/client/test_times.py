"""Moments as people write them on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from qflow.cli.times import moment, span, span_text
from qflow.exceptions import AuthoringError

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("+30m", NOW + timedelta(minutes=30)),
        ("2026-01-31T13:00:00+01:00", NOW),
        ("2026-01-31T12:00", NOW),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
    ],
)
def test_a_moment_is_one_of_the_calendar_or_so_long_from_now(text: str, expected: datetime) -> None:
    assert expected == moment(text, now=NOW)


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "30m", "+", "+99999999999d", "9999-12-31T23:59:59-12:00"]
)
def test_what_is_no_moment_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(AuthoringError, match="2026-01-31T12:00:00"):
        moment(text, now=NOW)


@pytest.mark.parametrize("text", ["1s", "90s", "15m", "90m", "6h", "1d", "36h", "365d"])
def test_a_span_is_written_as_it_is_read(text: str) -> None:
    assert text == span_text(span(text))


def test_a_span_that_is_not_whole_seconds_is_written_out() -> None:
    assert "0:00:01.500000" == span_text(timedelta(milliseconds=1500))
