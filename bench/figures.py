"""What a bench says of its samples."""

from __future__ import annotations

import statistics
from typing import Any


def figure(
    samples: list[float],
    unit: str,
    better: str,
    *,
    target: float,
    floor: float,
    value: float | None = None,
) -> dict[str, Any]:
    """Give the median, or `value`, with its target and floor, whether it is met, and the spread."""
    if value is None:
        value = statistics.median(samples)
    good = value <= target if better == "lower" else value >= target
    return {
        "value": round(value, 4),
        "unit": unit,
        "better": better,
        "target": round(target, 4),
        "floor": round(floor, 4),
        "ratio": round(value / floor, 3) if floor else None,
        "met": good,
        "spread": [round(min(samples), 4), round(max(samples), 4)],
        "rounds": len(samples),
    }
