"""Put everything that was found into words."""

from __future__ import annotations

from calendar import month_name
from datetime import date


def write_report(
    place: str,
    wet_percent: float,
    monthly_mm: dict[int, float],
    hottest: list[date],
    per_year_c: float,
    daily_range_c: dict[str, float],
) -> str:
    """Write the report as plain text, one finding a line."""
    wettest = max(monthly_mm, key=lambda month: (monthly_mm[month], -month))
    driest = min(monthly_mm, key=lambda month: (monthly_mm[month], month))
    extremes = (
        f"{month_name[wettest]} is the wettest month ({monthly_mm[wettest]:.1f} mm), "
        f"{month_name[driest]} the driest ({monthly_mm[driest]:.1f} mm)"
    )
    lower, median, upper = (daily_range_c[name] for name in ("lower", "median", "upper"))
    return "\n".join(
        [
            f"Weather of {place}",
            f"- It rained on {wet_percent:.1f} % of the days.",
            f"- {extremes}.",
            f"- The hottest days: {', '.join(each.isoformat() for each in hottest)}.",
            f"- The daily highs moved by {per_year_c:+.2f} °C a year.",
            f"- Night and day lie {median:.1f} °C apart (quartiles {lower:.1f} to {upper:.1f}).",
        ]
    )
