"""The pool of warm interpreters, reused by tenant and version; most serve one call at a time."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine

import structlog

from services.runner.domain.pooling import (
    IDLE_MAX_S,
    START_COST_S,
    Load,
    WarmKey,
    stuck,
    worn_out,
    worth_starting,
)
from services.runner.domain.reuse import VERSIONS_MAX, Reuse
from services.runner.gateways.sandbox.port import SandboxDied
from services.runner.usecases.loading import Loader
from services.runner.usecases.warm import LoadFailed, Need, Warm

log = structlog.get_logger()


class InterpreterPool:
    """Hands out warm interpreters and starts, keeps and ends sandboxes behind that."""

    def __init__(
        self,
        *,
        loader: Loader,
        sandboxes_max: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loader = loader
        self._spares = loader.spares
        self._sandboxes_max = sandboxes_max
        self._clock = clock
        self._idle: OrderedDict[Warm, None] = OrderedDict()  # the least recently used first
        self._open: dict[WarmKey, list[Warm]] = {}  # those that take one more call
        self._loads: dict[WarmKey, Load] = {}
        self._waiting: dict[WarmKey, deque[tuple[Need, asyncio.Future[Warm]]]] = {}
        self._alive: set[Warm] = set()
        self._starting = 0
        self._starved: deque[Need] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def sandboxes(self) -> int:
        """How many there are, being started included."""
        return len(self._alive) + self._starting

    def environment_keys(self) -> frozenset[str]:
        """Name the environments that sandboxes have, or that calls wait for."""
        keys = {warm.key.environment_key for warm in self._alive}
        keys |= {key.environment_key for key in self._waiting}
        keys |= {need.key.environment_key for need in self._starved}
        return frozenset(keys) | self._spares.environment_keys()

    def census(self) -> dict[str, int]:
        """Count the interpreters by state, and the calls that have none yet."""
        return {
            "idle": len(self._idle),
            "busy": len(self._alive) - len(self._idle),
            "starting": self._starting,
            "waiting": sum(map(len, self._waiting.values())),
        }

    def acquire_open(self, key: WarmKey, *, alone: bool = False) -> Warm | None:
        """Take an interpreter that has room, the one used last: its caches are the warmest."""
        while kept := self._open.get(key):
            warm = kept[-1]
            if alone and warm.calls:
                warm = next((each for each in reversed(kept) if not each.calls), warm)
                if warm.calls:
                    return None
            if warm.sandbox.alive():
                self._take(warm, alone=alone)
                return warm
            self._shut(warm)
            if not warm.calls:
                self._idle.pop(warm, None)
                self._end(warm)
        return None

    async def acquire(self, need: Need) -> Warm:
        """Take an interpreter, waiting for one or starting one; raises LoadFailed, SandboxDied."""
        warm = self.acquire_open(need.key, alone=need.alone)
        if warm is not None:
            return warm
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Warm] = loop.create_future()
        load = self._load_of(need.key)
        self._waiting.setdefault(need.key, deque()).append((need, waiter))
        starts = worth_starting(load)
        load.waiting += 1
        if starts:
            self._start(need)
        # The guess that one comes free soon may be wrong, and one that is started goes to whoever
        # has waited longest: then one is started after all.
        loop.call_later(START_COST_S, self._start_if_waiting, need, waiter, load.served)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            raise
        finally:
            load.waiting -= 1
            self._forget_load(need.key)

    def release(self, warm: Warm, *, recycle: bool = False, worked_s: float | None = None) -> None:
        """Give an interpreter back after a call, or up when it is not as it was.

        `worked_s` is how long the call's own work took: the rest of the time it held the
        interpreter it waited for processors, of which one interpreter more would not give it more.
        """
        now = self._clock()
        load = self._load_of(warm.key)
        load.busy -= 1
        held_s = now - warm.since
        load.note(held_s if worked_s is None else min(held_s, worked_s))
        warm.since = now
        warm.calls -= 1
        warm.alone = False
        if (
            recycle
            or self._closed
            or not warm.sandbox.alive()
            or warm.key.reuse is Reuse.CONTAINER
            or len(warm.prepared) >= VERSIONS_MAX
            or worn_out(
                uses=warm.uses,
                age_s=now - warm.born,
                memory_used=0.0  # a call's own process has given it back
                if warm.key.reuse.apart
                else warm.memory_peak_bytes / warm.key.limits.memory_bytes,
            )
        ):
            self.retire(warm)
        self._settle(warm)
        if self._starved:
            self._feed_starved()

    def retire(self, warm: Warm) -> None:
        """Give an interpreter no call any more; it ends after those that are in it."""
        warm.retired = True
        self._shut(warm)

    async def kill(self, warm: Warm, *, grace_s: float) -> None:
        """End an interpreter that runs an attempt; its call then fails with SandboxDied."""
        warm.killed = True
        usage = await warm.sandbox.kill(grace_s=grace_s)
        warm.memory_peak_bytes = max(warm.memory_peak_bytes, usage.memory_peak_bytes)

    async def shrink(self) -> float | None:
        """End what has been idle for long; give the seconds until the next one has been."""
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
        """End what is idle in an environment; what works there goes on."""
        for warm in [each for each in self._idle if each.key.environment_key == environment_key]:
            self._drop_idle(warm)
            self._end(warm)
        self._spares.vacate(environment_key)

    async def close(self) -> None:
        """End everything."""
        self._closed = True
        for waiting in self._waiting.values():
            for _, waiter in waiting:
                if not waiter.done():
                    waiter.set_exception(SandboxDied("the runner stops"))
        for warm in list(self._alive):
            if warm in self._idle:
                self._drop_idle(warm)
            self._end(warm)
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._spares.close()

    async def kill_all(self) -> None:
        """End every sandbox at once and go on: the lease is lost, so nothing here may act."""
        await asyncio.gather(*(warm.sandbox.kill() for warm in list(self._alive)))
        for warm in list(self._idle):
            self._drop_idle(warm)
            self._end(warm)
        await self._spares.drop()

    # -- starting

    def _start_if_waiting(self, need: Need, waiter: asyncio.Future[Warm], served: int) -> None:
        if waiter.done() or self._closed:
            return
        load = self._load_of(need.key)
        asked = any(each.key == need.key for each in self._starved)
        if not asked and load.waiting > load.starting * load.width and stuck(load, served):
            self._start(need)
        # As long as it waits: what was started may fail, or end before its turn comes.
        asyncio.get_running_loop().call_later(
            START_COST_S, self._start_if_waiting, need, waiter, load.served
        )

    def _start(self, need: Need) -> None:
        if self.sandboxes >= self._sandboxes_max and not self._evict():
            self._starved.append(need)
            return
        self._starting += 1
        self._load_of(need.key).starting += 1
        self._spawn(self._start_one(need))

    def _evict(self) -> bool:
        """End the least recently used idle interpreter to make room."""
        if not self._idle:
            return False
        warm = next(iter(self._idle))
        self._drop_idle(warm)
        self._alive.discard(warm)
        self._spawn(self._finish(warm))
        self._forget_load(warm.key)
        return True

    def _feed_starved(self) -> None:
        while self._starved:
            need = self._starved[0]
            if not self._waiting.get(need.key):
                self._starved.popleft()
                continue
            if self.sandboxes >= self._sandboxes_max and not self._evict():
                return
            self._starved.popleft()
            self._start(need)

    async def _start_one(self, need: Need) -> None:
        problem: Exception | None = None
        warm = None
        try:
            warm = await self._loader.load(need)
        except (LoadFailed, SandboxDied) as failed:
            problem = failed
        except Exception as broken:
            log.exception("sandbox_not_started")
            problem = SandboxDied(f"the sandbox could not be started: {type(broken).__name__}")
        finally:
            self._starting -= 1
            load = self._load_of(need.key)
            load.starting -= 1
        if warm is None:
            waiter = self._next_waiter(need.key)
            if waiter is not None and problem is not None:
                waiter[1].set_exception(problem)
            if self._starved:
                self._feed_starved()
            return
        self._alive.add(warm)
        warm.sandbox.ended.add_done_callback(lambda _: self._ended_by_itself(warm))
        if self._closed:
            self._end(warm)
        else:
            self._settle(warm)
        if self._starved:
            self._feed_starved()

    # -- handing over and ending

    def _take(self, warm: Warm, *, alone: bool = False) -> None:
        if not warm.calls:
            self._idle.pop(warm, None)
            warm.since = self._clock()
        warm.uses += 1
        warm.calls += 1
        warm.alone = alone
        self._load_of(warm.key).busy += 1
        if not warm.room:
            self._shut(warm)

    def _settle(self, warm: Warm) -> None:
        """Give what room there is to who waits, and know it by what is left."""
        while warm.room and (waiter := self._next_waiter(warm.key, empty=not warm.calls)):
            need, future = waiter
            self._take(warm, alone=need.alone)
            future.set_result(warm)
        if warm.retired and not warm.calls:
            self._end(warm)
            return
        if not warm.calls:
            self._idle[warm] = None
        if warm.room:
            kept = self._open.setdefault(warm.key, [])
            if warm not in kept:
                kept.append(warm)
        if not warm.calls:
            self._forget_load(warm.key)

    def _shut(self, warm: Warm) -> None:
        """Offer its room to nobody."""
        kept = self._open.get(warm.key)
        if kept is None or warm not in kept:
            return
        kept.remove(warm)
        if not kept:
            del self._open[warm.key]

    def _next_waiter(
        self, key: WarmKey, *, empty: bool = True
    ) -> tuple[Need, asyncio.Future[Warm]] | None:
        """Take who has waited longest, of those who may enter: some want an empty interpreter."""
        waiting = self._waiting.get(key)
        if waiting is None:
            return None
        while waiting and waiting[0][1].done():
            waiting.popleft()
        may_enter = (
            each for each in waiting if not each[1].done() and (empty or not each[0].alone)
        )
        found = next(may_enter, None)
        if found is not None:
            waiting.remove(found)
        if not waiting:
            del self._waiting[key]
        return found

    def _load_of(self, key: WarmKey) -> Load:
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = Load(width=key.concurrency)
        return load

    def _forget_load(self, key: WarmKey) -> None:
        load = self._loads.get(key)
        if load and not (load.busy or load.starting or load.waiting or key in self._open):
            del self._loads[key]

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
        self._forget_load(warm.key)

    async def _finish(self, warm: Warm) -> None:
        died = not warm.sandbox.alive() and not warm.killed
        usage = await warm.sandbox.kill()
        warm.row.ended(
            "error" if died else "stopped",
            {
                "attempts": warm.uses,
                "cpu_us": warm.cpu_us,
                "memory_peak_bytes": max(warm.memory_peak_bytes, usage.memory_peak_bytes),
                "io_read_bytes": warm.io_read_bytes,
                "io_write_bytes": warm.io_write_bytes,
            },
        )

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("sandbox_task_failed", exc_info=task.exception())
