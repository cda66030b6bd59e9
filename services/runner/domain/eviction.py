"""Which environments and caches to remove when they take up too much space: least missed first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

# Evict down to this share of the budget, so that not every later build evicts again.
KEEP_SHARE: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A folder that may be removed: an environment, or a build cache.

    `files` are sizes by inode. A file hard-linked into two folders has one inode, and its space is
    only freed when both are removed.
    """

    name: str
    is_cache: bool
    used_at: float
    pinned: bool
    files: Mapping[int, int]


def total_bytes(kept: Sequence[Kept]) -> int:
    """Return the size of all folders together, counting each file once."""
    sizes: dict[int, int] = {}
    for each in kept:
        sizes.update(each.files)
    return sum(sizes.values())


def to_remove(kept: Sequence[Kept], excess_bytes: int) -> Iterator[Kept]:
    """Yield what to remove, in order, until enough bytes are free or nothing more may be removed.

    First come caches that alone hold files, since no run needs them; then environments, the least
    recently used first. A caller that cannot remove one simply continues.
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
        elif environments or caches:  # caches that share files only free them together
            chosen = (environments or caches).pop(0)
        else:
            return
        excess_bytes -= _freed_bytes(chosen, holders)
        holders.subtract(chosen.files.keys())
        yield chosen


def _freed_bytes(kept: Kept, holders: Mapping[int, int]) -> int:
    return sum(size for number, size in kept.files.items() if holders[number] == 1)
