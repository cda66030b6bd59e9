"""Say how much it rains in each month of the year."""

from __future__ import annotations

from collections import defaultdict
from datetime import date


def rain_by_month(day: list[date], rain_mm: list[float]) -> dict[int, float]:
    """Give the mean rain of a month (1 to 12) over the years, in mm."""
    total: defaultdict[int, float] = defaultdict(float)
    years: defaultdict[int, set[int]] = defaultdict(set)
    for when, amount in zip(day, rain_mm, strict=True):
        total[when.month] += amount
        years[when.month].add(when.year)
    return {month: round(total[month] / len(years[month]), 1) for month in sorted(total)}
