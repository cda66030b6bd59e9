"""How fast retention goes, by what others do."""

from __future__ import annotations

import pytest

from services.telemetry.domain.pace import BATCH_BUSY_MIN, Pace
from services.telemetry.domain.retention import BATCH_MIN


def _after(*, of_others: int, own: int = 0) -> Pace:
    """Give a pace that has seen so many transactions of others in two seconds."""
    pace = Pace()
    pace.seen(1_000, 10.0)
    for _ in range(own):
        pace.done()
    pace.seen(1_000 + of_others + own, 12.0)
    return pace


def test_it_is_gentle_until_it_knows_better() -> None:
    pace = Pace()
    assert BATCH_BUSY_MIN == pace.first_batch(most=1000)
    pace.seen(5, 10.0)
    assert pace.is_busy


def test_beside_others_it_takes_a_tenth_of_the_time_in_short_batches() -> None:
    """E9, F35."""
    pace = _after(of_others=200)
    assert pace.is_busy
    assert 0.9 == pytest.approx(pace.breath_s(0.1))
    assert 20 == pace.batch_after(40, 0.006, most=1000)
    assert BATCH_BUSY_MIN == pace.batch_after(BATCH_BUSY_MIN, 9.0, most=1000)
    assert 80 == pace.batch_after(40, 0.0015, most=1000)


def test_alone_it_goes_as_fast_as_it_can_whatever_it_does_itself() -> None:
    pace = _after(of_others=10, own=500)
    assert not pace.is_busy
    assert 1000 == pace.first_batch(most=1000)
    assert pace.breath_s(0.2) < 0.05
    assert 400 == pace.batch_after(400, 0.2, most=1000)
    assert 200 == pace.batch_after(400, 0.3, most=1000)
    assert BATCH_MIN == pace.batch_after(BATCH_MIN, 9.0, most=1000)
    assert 1000 == pace.batch_after(800, 0.01, most=1000)


def test_a_count_taken_too_soon_says_nothing() -> None:
    pace = _after(of_others=0)
    pace.seen(9_000, 12.5)
    assert not pace.is_busy
    pace.seen(9_000, 13.5)
    assert pace.is_busy
