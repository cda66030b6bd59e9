# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=2,<3"]
# ///
"""Fit a line through the daily highs. What it needs stands above, as PEP 723 says it."""

from __future__ import annotations

from datetime import date
from typing import TypedDict

import numpy as np


class Trend(TypedDict):
    """A fitted line: its slope, and how far the days lie from it."""

    per_year_c: float
    spread_c: float


def warming_trend(day: list[date], high_c: list[float]) -> Trend:
    """Fit by least squares; four years are weather, not climate."""
    years = np.array([when.toordinal() for when in day], dtype=np.float64) / 365.25
    highs = np.array(high_c, dtype=np.float64)
    x, y = years - years.mean(), highs - highs.mean()
    slope = (x @ y) / (x @ x)
    return {
        "per_year_c": round(float(slope), 3),
        "spread_c": round(float(np.std(y - slope * x)), 3),
    }
