"""Say how much of a whole a part is."""

from __future__ import annotations


def share(part: float, whole: float) -> float:
    """Give the part in percent, to one decimal; an empty whole has no parts."""
    return round(100.0 * part / whole, 1) if whole else 0.0
