"""Moments as nodes read them."""

from __future__ import annotations

import functools
from datetime import UTC, datetime


def moment_text(seconds: float) -> str:
    """Give a time since 1970 in ISO 8601, to the microsecond.

    What is the same within one second is kept: to make all of it took most of a call's context.
    """
    micros = int(seconds * 1_000_000)
    whole, rest = divmod(micros, 1_000_000)
    return f"{_second_text(whole)}.{rest:06d}+00:00"


@functools.lru_cache(maxsize=64)
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
