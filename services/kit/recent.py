"""Answers of the last moment, cached in this process: bounded, loaded once, dropped on request."""

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

# Entries end at different moments, so that what was read together is not loaded together again.
_JITTER: Final = 0.2


@dataclass(frozen=True, slots=True)
class Loaded(Generic[V]):
    """What was loaded: how heavy it is, 0 where it must not be kept."""

    value: V
    weight: int


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    weight: int
    until: float


class Recent(Generic[K, V]):
    """Values by tenant and key, none older than `ttl_s` from before it was asked for.

    Whoever asks for what is being loaded waits for that. What is loaded while its tenant is
    forgotten is given to those who wait, since they asked before, and is not kept.
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
        # The keys of each tenant, kept or being loaded: to forget one tenant costs what it has.
        self._keys: dict[UUID, set[tuple[UUID, K]]] = {}

    async def get(self, tenant_id: UUID, key: K, load: Callable[[], Awaitable[Loaded[V]]]) -> V:
        """Give what is known, or load it; a load that fails fails for all who wait, once."""
        whole = (tenant_id, key)
        entry = self._kept.get(whole)
        if entry is not None and entry.until > self._clock():
            self._kept.move_to_end(whole)
            self._hits += 1
            return entry.value
        self._misses += 1
        task = self._loading.get(whole)
        if task is None:
            # From before the question: its answer is no younger.
            jitter = random.random() * _JITTER  # noqa: S311  # no secret
            until = self._clock() + self._ttl_s * (1 - jitter)
            task = asyncio.create_task(self._load(whole, load, until))
            self._loading[whole] = task
            self._keys.setdefault(tenant_id, set()).add(whole)
            task.add_done_callback(lambda done: self._loaded(whole, done))
        # Shielded: the one who asked first may go away while others wait for the answer.
        return await asyncio.shield(task)

    def asked(self) -> tuple[int, int]:
        """Tell how often an answer was known, and how often it had to be loaded."""
        return self._hits, self._misses

    def forget(self, tenant_id: UUID) -> None:
        """Forget all of a tenant, and what is being loaded for it."""
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
            task.exception()  # those who wait have it; nobody may be left to

    def _keep(self, whole: tuple[UUID, K], entry: _Entry[V]) -> None:
        # What is too old to be given goes now, and not only where the bound is reached: else a
        # moment with many different questions is remembered for as long as the process lives.
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
