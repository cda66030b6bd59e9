"""For how long transactions have been open, told by when they were seen."""

from __future__ import annotations

from services.telemetry.domain.condition import OpenSince


def test_the_age_of_the_oldest_counts_from_when_it_was_first_seen() -> None:
    """F17."""
    since = OpenSince()
    assert 0.0 == since.oldest_s(["3/7"], 100.0)
    assert 60.0 == since.oldest_s(["3/7", "4/1"], 160.0)
    assert 60.0 == since.oldest_s(["4/1"], 220.0)


def test_one_that_ended_is_forgotten() -> None:
    since = OpenSince()
    since.oldest_s(["3/7"], 100.0)
    assert 0.0 == since.oldest_s([], 160.0)
    assert 0.0 == since.oldest_s(["3/7"], 220.0)
