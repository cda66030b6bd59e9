"""Disk space of environments and their caches: the size budget, and full disks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from services.kit.pg import Pool
from services.runner.domain.eviction import KEEP_SHARE, Kept, to_remove, total_bytes
from services.runner.gateways.environment_folders import (
    drop_cache,
    evict,
    free_bytes,
    measure,
)
from services.runner.storage import environments
from services.runner.usecases.patience import passing

log = structlog.get_logger()

# When the disk is short, this many times the minimum is freed, so that it is not short again soon.
_SPARE_SHARE: Final = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomLimits:
    """The limits that a deployment sets."""

    bytes_max: int
    free_bytes_min: int


class Room:
    """Tracks an upper bound of what environments take up, and measures when that is not enough.

    Measuring walks all folders, which is slow, so it is done only when the bound exceeds the
    budget, after failed builds, and when the disk itself is short.
    """

    def __init__(self, root: Path, pool: Pool, limits: RoomLimits) -> None:
        self._root = root
        self._pool = pool
        self._limits = limits
        self._bytes_max: int | None = None  # upper bound of the size; None: unknown
        self._working = asyncio.Lock()

    def note_built(self, size_bytes: int) -> None:
        """Add a build; files it shares with others count twice until the next measurement."""
        if self._bytes_max is not None:
            self._bytes_max += size_bytes

    def note_unknown(self) -> None:
        """Forget the bound: a failed build left something of unknown size."""
        self._bytes_max = None

    async def enough(self) -> bool:
        """Return whether a build may begin; frees space first if needed."""
        if self._is_short():
            await self.keep()
        return not self._is_short()

    async def keep(self) -> None:
        """Evict what was used the longest ago until within the limits; never what is in use."""
        known = self._bytes_max is not None and self._bytes_max <= self._limits.bytes_max
        if known and not self._is_short():
            return
        async with self._working:
            kept = await asyncio.to_thread(measure, self._root)
            total = total_bytes(kept)
            excess = total - round(self._limits.bytes_max * KEEP_SHARE)
            if total <= self._limits.bytes_max:
                excess = 0
            if self._is_short():
                wanted = round(self._limits.free_bytes_min * _SPARE_SHARE)
                excess = max(excess, wanted - free_bytes(self._root))
            freed = await self._remove(kept, excess)
            self._bytes_max = total - freed
        if self._bytes_max > self._limits.bytes_max or self._is_short():
            log.warning(
                "environments_need_room",
                bytes=self._bytes_max,
                bytes_max=self._limits.bytes_max,
                free_bytes=free_bytes(self._root),
            )

    def _is_short(self) -> bool:
        self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
        return free_bytes(self._root) < self._limits.free_bytes_min

    async def _remove(self, kept: list[Kept], excess: int) -> int:
        left = {each.name: each for each in kept}
        for each in to_remove(kept, excess):
            remove = drop_cache if each.is_cache else evict
            if not await asyncio.to_thread(remove, self._root / each.name):
                continue  # somebody uses it again
            del left[each.name]
            log.info("environment_evicted", name=each.name, cache=each.is_cache)
            if not each.is_cache:
                await self._tell(each)
        return total_bytes(kept) - total_bytes(list(left.values()))

    async def _tell(self, gone: Kept) -> None:
        try:
            await environments.evicted(self._pool, gone.name.rpartition("/")[2])
        except Exception as problem:
            if not passing(problem):
                raise
            log.warning("environment_row_delayed", fault=type(problem).__name__)
