"""A moment as nodes read it: to the microsecond, also where its second was asked for before."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.runner.domain.moments import moment_text


@pytest.mark.parametrize("seconds", [0.0, 1.000001, 1795789530.5, 1795789530.999999, 4e9 + 0.25])
def test_it_reads_as_what_it_was(seconds: float) -> None:
    told = datetime.fromisoformat(moment_text(seconds))
    assert UTC.utcoffset(None) == told.utcoffset()
    assert abs(told.timestamp() - seconds) <= 2e-6


def test_texts_of_one_second_differ_in_its_parts_alone() -> None:
    first, second = moment_text(1795789530.25), moment_text(1795789530.75)
    assert first == "2026-11-27T14:25:30.250000+00:00"
    assert second == first.replace(".25", ".75")
