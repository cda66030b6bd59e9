"""Times as nodes read them."""

from __future__ import annotations

import functools
from datetime import UTC, datetime


def moment_text(seconds: float) -> str:
    """Return a Unix time in ISO 8601, to the microsecond.

    Texts of whole seconds are cached: formatting them took most of the time of building a call's
    context.
    """
    micros = int(seconds * 1_000_000)
    whole, rest = divmod(micros, 1_000_000)
    return f"{_second_text(whole)}.{rest:06d}+00:00"


@functools.lru_cache(maxsize=64)
def _second_text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
