"""Durations and times as people write them."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Final

from qflow.exceptions import AuthoringError

_DIGITS_MAX: Final = 18
_SPAN_S_MAX: Final = 315_576_000_000
_SPAN: Final = re.compile(r"(\d+)\s*(s|m|h|d)")
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def span(text: str) -> timedelta:
    """Parse a duration: `30s`, `15m`, `6h`, `1d`."""
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise AuthoringError(f"an interval is a number and s, m, h or d, not {text!r}")
    # Within what Python parses and a protobuf Duration holds.
    seconds = int(found[1]) * _UNITS_S[found[2]] if len(found[1]) <= _DIGITS_MAX else math.inf
    if seconds > _SPAN_S_MAX:
        raise AuthoringError(f"an interval of {text[:40]} is too long: at most {_SPAN_S_MAX}s")
    return timedelta(seconds=seconds)


def span_text(given: timedelta) -> str:
    """Format a duration in its largest whole unit."""
    seconds = given / timedelta(seconds=1)
    for unit, unit_s in reversed(_UNITS_S.items()):
        if seconds % unit_s == 0 and seconds >= unit_s:
            return f"{seconds // unit_s:.0f}{unit}"
    return str(given)


def moment(text: str, *, now: datetime) -> datetime:
    """Parse a time: ISO 8601 (UTC without offset), or a duration from now, such as `+30m`."""
    said = text.strip()
    try:
        if said.startswith("+"):
            return now + span(said[1:])
        told = datetime.fromisoformat(said)
        return (told if told.tzinfo else told.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, AuthoringError):
        fault = f"a moment is as 2026-01-31T12:00:00+01:00, or from now as +30m, not {text!r}"
        raise AuthoringError(fault) from None
