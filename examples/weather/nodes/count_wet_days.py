"""Count the days on which it rained."""

from __future__ import annotations


def count_wet_days(rain_mm: list[float], threshold_mm: float = 1.0) -> int:
    """Count the days with at least so much rain."""
    return sum(1 for amount in rain_mm if amount >= threshold_mm)
