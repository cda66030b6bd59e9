"""Find the hottest days."""

from __future__ import annotations

from datetime import date


def hottest_days(day: list[date], high_c: list[float], count: int = 3) -> tuple[date, ...]:
    """Give the hottest days, the hottest first; of equal ones the earlier first."""
    ranked = sorted(zip(high_c, day, strict=True), key=lambda each: (-each[0], each[1]))
    return tuple(when for _, when in ranked[:count])
