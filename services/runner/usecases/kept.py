"""The existing interpreters: how long they are kept, and how they end."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine

import structlog

from services.runner.domain.pooling import IDLE_MAX_S
from services.runner.gateways.sandbox.port import SandboxDied
from services.runner.usecases.kinds import Kinds
from services.runner.usecases.spares import Spares
from services.runner.usecases.turns import Turns
from services.runner.usecases.warm import Warm

log = structlog.get_logger()


class Kept(Kinds):
    """Keeps sandboxes; idle ones end when they were not needed for a while."""

    def __init__(self, turns: Turns, *, spares: Spares, clock: Callable[[], float]) -> None:
        super().__init__(turns)
        self._spares = spares
        self._clock = clock
        self._idle: OrderedDict[Warm, None] = OrderedDict()  # least recently used first
        self._alive: set[Warm] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def retire(self, warm: Warm) -> None:
        """Give an interpreter no further calls; it ends after the current ones."""
        warm.retired = True
        self._shut(warm)

    async def kill(self, warm: Warm, *, grace_s: float) -> None:
        """Kill an interpreter that runs an attempt; its call then fails with SandboxDied."""
        warm.killed = True
        usage = await warm.sandbox.kill(grace_s=grace_s)
        warm.memory_peak_bytes = max(warm.memory_peak_bytes, usage.memory_peak_bytes)

    async def shrink(self) -> float | None:
        """End interpreters that were idle for long; return the seconds until the next is due."""
        await self._spares.shrink()
        now = self._clock()
        while self._idle:
            warm = next(iter(self._idle))
            left = warm.since + IDLE_MAX_S - now
            if left > 0:
                return left
            self._drop_idle(warm)
            self._end(warm)
        return None

    def vacate(self, environment_key: str) -> None:
        """End the idle sandboxes of an environment; busy ones continue."""
        for warm in [each for each in self._idle if each.key.environment_key == environment_key]:
            self._drop_idle(warm)
            self._end(warm)
        self._spares.vacate(environment_key)

    async def close(self) -> None:
        """End all sandboxes, and fail the waiting calls."""
        self._closed = True
        for waiter in [each for kind in self._wanted for each in kind.waiting]:
            if not waiter.given.done():
                self.leave(waiter)
                waiter.given.set_exception(SandboxDied("the runner stops"))
        for warm in list(self._alive):
            if warm in self._idle:
                self._drop_idle(warm)
            self._end(warm)
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._spares.close()

    async def kill_all(self) -> None:
        """Kill every sandbox, but stay open: the lease is lost, so nothing here may act."""
        await asyncio.gather(*(warm.sandbox.kill() for warm in list(self._alive)))
        for warm in list(self._idle):
            self._drop_idle(warm)
            self._end(warm)
        await self._spares.drop()

    def _evict(self) -> bool:
        """End the least recently used idle interpreter; False if there is none."""
        if not self._idle:
            return False
        warm = next(iter(self._idle))
        self._drop_idle(warm)
        self._end(warm)
        return True

    def _drop_idle(self, warm: Warm) -> None:
        del self._idle[warm]
        self._shut(warm)

    def _ended_by_itself(self, warm: Warm) -> None:
        if warm in self._idle:
            self._drop_idle(warm)
            self._end(warm)
        else:
            self._shut(warm)

    def _end(self, warm: Warm) -> None:
        if warm in self._alive:
            self._alive.discard(warm)
            self._spawn(self._finish(warm))
        self._forget_left(self._kinds.get(warm.key))

    async def _finish(self, warm: Warm) -> None:
        died = not warm.sandbox.alive() and not warm.killed
        usage = await warm.sandbox.kill()
        warm.memory_peak_bytes = max(warm.memory_peak_bytes, usage.memory_peak_bytes)
        warm.row.ended("error" if died else "stopped", warm.usage())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("sandbox_task_failed", exc_info=task.exception())
