"""Disk space for environments and their caches: the budget they keep to, and full disks."""

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

# A disk that is short of room is given this much more than the least, so that it is not so at once.
_SPARE_SHARE: Final = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomLimits:
    """What a deployment allows."""

    bytes_max: int
    free_bytes_min: int


class Room:
    """Knows roughly what environments take up, and exactly when that may be too much.

    Walking them all is slow, so it is done when the sum of what was built could be over the budget,
    after builds that failed, and when the disk itself is short.
    """

    def __init__(self, root: Path, pool: Pool, limits: RoomLimits) -> None:
        self._root = root
        self._pool = pool
        self._limits = limits
        self._bytes_max: int | None = None  # what there is at most; None: not known
        self._working = asyncio.Lock()

    def note_built(self, size_bytes: int) -> None:
        """Count what was built; what it shares with others counts twice until the next look."""
        if self._bytes_max is not None:
            self._bytes_max += size_bytes

    def note_unknown(self) -> None:
        """Count nothing more: something was left somewhere."""
        self._bytes_max = None

    async def enough(self) -> bool:
        """Whether a build may begin; makes room first where there is none."""
        if self._is_short():
            await self.keep()
        return not self._is_short()

    async def keep(self) -> None:
        """Remove what was used the longest ago while there is too much; never what is in use."""
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
                continue  # somebody came in between
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
