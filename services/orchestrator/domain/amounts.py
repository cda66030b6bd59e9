"""Amounts of resources that runs consume: attempts, CPU time, memory over time, bytes moved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

_US: Final = 1_000_000


class Amounts(NamedTuple):
    """An amount of each resource; None means unlimited or unknown."""

    nodes: int | None = None  # attempts at nodes
    cpu_us: int | None = None
    gb_us: int | None = None  # GiB of memory times microseconds
    moved_bytes: int | None = None  # of values and files, into and out of attempts


NOTHING: Final = Amounts()
_UNITS: Final = (
    (1, "attempts at nodes"),
    (_US, "CPU seconds"),
    (_US, "GB seconds"),
    (1, "bytes moved"),
)


def exceeded(most: Amounts, used: Amounts) -> Iterator[str]:
    """Yield descriptions of the amounts that are used up."""
    for limit, taken, (unit, name) in zip(most, used, _UNITS, strict=True):
        if limit is not None and taken is not None and taken >= limit:
            yield f"{plain(limit, unit)} {name}"


def plain(amount: int, unit: int = 1) -> str:
    """Format an amount in units; whole numbers exactly."""
    return str(amount // unit) if amount % unit == 0 else f"{amount / unit:g}"
