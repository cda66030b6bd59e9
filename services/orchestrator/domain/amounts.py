"""Amounts of what runs consume: attempts at nodes, time of processors, memory over time, bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

_US: Final = 1_000_000


class Amounts(NamedTuple):
    """So much of each resource; None where nothing is said of it."""

    nodes: int | None = None  # attempts at nodes
    cpu_us: int | None = None
    gb_us: int | None = None  # GiB of memory times microseconds
    moved_bytes: int | None = None  # of values and files that attempts were given and gave


NOTHING: Final = Amounts()
_UNITS: Final = (
    (1, "attempts at nodes"),
    (_US, "CPU seconds"),
    (_US, "GB seconds"),
    (1, "bytes moved"),
)


def exceeded(most: Amounts, used: Amounts) -> Iterator[str]:
    """Say in words which amounts are used up."""
    for limit, taken, (unit, name) in zip(most, used, _UNITS, strict=True):
        if limit is not None and taken is not None and taken >= limit:
            yield f"{plain(limit, unit)} {name}"


def plain(amount: int, unit: int = 1) -> str:
    """Write an amount as people count it; whole ones exactly."""
    return str(amount // unit) if amount % unit == 0 else f"{amount / unit:g}"
