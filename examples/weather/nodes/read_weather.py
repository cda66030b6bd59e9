"""Read the table of daily weather into columns."""

from __future__ import annotations

import csv
import io
from datetime import date
from typing import TypedDict


class Weather(TypedDict):
    """One entry per day in each column."""

    days: int
    day: list[date]
    rain_mm: list[float]
    high_c: list[float]
    low_c: list[float]


def read_weather(csv_text: str) -> Weather:
    """Read the columns of the CSV text, in the order of its rows."""
    rows = list(csv.DictReader(io.StringIO(csv_text)))
    print(f"read {len(rows)} days")
    return {
        "days": len(rows),
        "day": [date.fromisoformat(row["date"].replace("/", "-")) for row in rows],
        "rain_mm": [float(row["precipitation"]) for row in rows],
        "high_c": [float(row["temp_max"]) for row in rows],
        "low_c": [float(row["temp_min"]) for row in rows],
    }
