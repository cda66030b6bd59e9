"""Say how far the temperature moves within a day. That numpy is needed is read from the import."""

from __future__ import annotations

import numpy as np


def daily_range(high_c: list[float], low_c: list[float]) -> dict[str, float]:
    """Give the quartiles of highest minus lowest temperature of a day, in °C."""
    spans = np.array(high_c) - np.array(low_c)
    quartiles = np.percentile(spans, [25, 50, 75])
    named = zip(("lower", "median", "upper"), quartiles, strict=True)
    return {name: round(float(value), 2) for name, value in named}
