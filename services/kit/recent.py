"""A short-lived cache of this process: bounded, loads each value once, can be invalidated."""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from uuid import UUID

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# Entries expire at different moments, so that what was loaded together is not reloaded together.
_JITTER: Final = 0.2


@dataclass(frozen=True, slots=True)
class Loaded(Generic[V]):
    """A loaded value with its weight; 0 if it must not be kept."""

    value: V
    weight: int


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    weight: int
    until: float


class Recent(Generic[K, V]):
    """Values by tenant and key, none older than `ttl_s`, counted from before it was loaded.

    Concurrent callers share one load. If the tenant is forgotten during a load, the value is still
    returned to its callers, who asked before, but is not kept.
    """

    def __init__(
        self,
        *,
        ttl_s: float,
        weight_max: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl_s = ttl_s
        self._weight_max = weight_max
        self._clock = clock
        self._weight = 0
        self._hits = self._misses = 0
        self._kept: OrderedDict[tuple[UUID, K], _Entry[V]] = OrderedDict()
        self._loading: dict[tuple[UUID, K], asyncio.Task[V]] = {}
        # Keys by tenant, kept or being loaded: forgetting a tenant only costs what it has.
        self._keys: dict[UUID, set[tuple[UUID, K]]] = {}

    async def get(self, tenant_id: UUID, key: K, load: Callable[[], Awaitable[Loaded[V]]]) -> V:
        """Return the cached value, or load it; a failed load raises for all who wait for it."""
        whole = (tenant_id, key)
        entry = self._kept.get(whole)
        if entry is not None and entry.until > self._clock():
            self._kept.move_to_end(whole)
            self._hits += 1
            return entry.value
        self._misses += 1
        task = self._loading.get(whole)
        if task is None:
            # Counted from before the load: the value may be as old as that.
            jitter = random.random() * _JITTER  # noqa: S311  # no secret
            until = self._clock() + self._ttl_s * (1 - jitter)
            task = asyncio.create_task(self._load(whole, load, until))
            self._loading[whole] = task
            self._keys.setdefault(tenant_id, set()).add(whole)
            task.add_done_callback(lambda done: self._loaded(whole, done))
        # Shielded: the first caller may be cancelled while others wait for the value.
        return await asyncio.shield(task)

    def asked(self) -> tuple[int, int]:
        """Return the numbers of hits and misses."""
        return self._hits, self._misses

    def forget(self, tenant_id: UUID) -> None:
        """Drop all values of a tenant, including those being loaded."""
        for whole in self._keys.pop(tenant_id, ()):
            self._loading.pop(whole, None)
            entry = self._kept.pop(whole, None)
            if entry is not None:
                self._weight -= entry.weight

    def __len__(self) -> int:
        return len(self._kept)

    async def _load(
        self, whole: tuple[UUID, K], load: Callable[[], Awaitable[Loaded[V]]], until: float
    ) -> V:
        loaded = await load()
        if self._loading.get(whole) is asyncio.current_task():
            self._drop(whole)
            if 0 < loaded.weight <= self._weight_max:
                self._keep(whole, _Entry(loaded.value, loaded.weight, until))
        return loaded.value

    def _loaded(self, whole: tuple[UUID, K], task: asyncio.Task[V]) -> None:
        if self._loading.get(whole) is task:
            del self._loading[whole]
            if whole not in self._kept:
                self._unlist(whole)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: the callers may be gone

    def _keep(self, whole: tuple[UUID, K], entry: _Entry[V]) -> None:
        # Expired entries are dropped now, not just at the limit: else a burst of many different
        # keys would stay in memory for as long as the process lives.
        now = self._clock()
        while self._kept and next(iter(self._kept.values())).until <= now:
            self._drop(next(iter(self._kept)))
        self._kept[whole] = entry
        self._weight += entry.weight
        while self._weight > self._weight_max:
            self._drop(next(iter(self._kept)))

    def _drop(self, whole: tuple[UUID, K]) -> None:
        entry = self._kept.pop(whole, None)
        if entry is not None:
            self._weight -= entry.weight
            if whole not in self._loading:
                self._unlist(whole)

    def _unlist(self, whole: tuple[UUID, K]) -> None:
        keys = self._keys.get(whole[0], set())
        keys.discard(whole)
        if not keys:
            self._keys.pop(whole[0], None)
