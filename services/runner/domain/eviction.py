"""Which environments and caches go when they take up too much room: what nobody misses, first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

# Down to this much of the budget: so that not every build after the first removes something.
KEEP_SHARE: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A folder that may go: an environment, or the cache of those who built some.

    `files` are its files by number with their sizes. One that is linked into two folders has one
    number, and takes room until it has gone from both.
    """

    name: str
    is_cache: bool
    used_at: float
    pinned: bool
    files: Mapping[int, int]


def total_bytes(kept: Sequence[Kept]) -> int:
    """Sum what folders take up together, each file once."""
    sizes: dict[int, int] = {}
    for each in kept:
        sizes.update(each.files)
    return sum(sizes.values())


def to_remove(kept: Sequence[Kept], excess_bytes: int) -> Iterator[Kept]:
    """Give what to remove, in this order, until so many bytes are free or nothing more may go.

    What a cache alone holds goes first, since no run needs it; then environments, from the one
    that was used the longest ago. Whoever finds that one cannot be removed after all goes on.
    """
    holders = Counter(number for each in kept for number in each.files)
    oldest = sorted((each for each in kept if not each.pinned), key=lambda each: each.used_at)
    caches = [each for each in oldest if each.is_cache]
    environments = [each for each in oldest if not each.is_cache]
    while excess_bytes > 0:
        idle = next((each for each in caches if _freed_bytes(each, holders)), None)
        if idle is not None:
            caches.remove(idle)
            chosen = idle
        elif environments or caches:  # caches that hold the same files free them together
            chosen = (environments or caches).pop(0)
        else:
            return
        excess_bytes -= _freed_bytes(chosen, holders)
        holders.subtract(chosen.files.keys())
        yield chosen


def _freed_bytes(kept: Kept, holders: Mapping[int, int]) -> int:
    return sum(size for number, size in kept.files.items() if holders[number] == 1)
