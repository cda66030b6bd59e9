"""The pool of warm interpreters, reused by tenant and version; most serve one call at a time."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import deque
from collections.abc import Callable

import structlog

from services.kit.alarm import Alarm
from services.runner.domain.pooling import (
    START_COST_S,
    WarmKey,
    stuck,
    takes_turns,
    worn_out,
    worth_starting,
)
from services.runner.domain.reuse import VERSIONS_MAX, Reuse
from services.runner.gateways.sandbox.port import SandboxDied
from services.runner.usecases.kept import Kept
from services.runner.usecases.kinds import Given, Kind, Waiter
from services.runner.usecases.loading import Loader
from services.runner.usecases.turns import PATIENCE_S, Turns
from services.runner.usecases.warm import LoadFailed, Need, Warm

log = structlog.get_logger()


class InterpreterPool(Kept):
    """Hands out warm interpreters, and starts, keeps and ends their sandboxes."""

    def __init__(
        self,
        *,
        loader: Loader,
        sandboxes_max: int,
        processors: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`processors` is how many short calls work at once; 0 for as many as are usable."""
        turns = Turns(processors or len(os.sched_getaffinity(0)), clock=clock)
        super().__init__(turns, spares=loader.spares, clock=clock)
        self._loader = loader
        self._sandboxes_max = sandboxes_max
        self._places = itertools.count()
        self._looking = Alarm()  # set while calls wait
        self._starting = 0
        self._starved: deque[Need] = deque()

    @property
    def sandboxes(self) -> int:
        """How many there are, including those being started."""
        return len(self._alive) + self._starting

    def environment_keys(self) -> frozenset[str]:
        """Return the keys of environments that sandboxes use or calls wait for."""
        keys = {warm.key.environment_key for warm in self._alive}
        keys |= {kind.key.environment_key for kind in self._wanted}
        keys |= {need.key.environment_key for need in self._starved}
        return frozenset(keys) | self._spares.environment_keys()

    def census(self) -> dict[str, int]:
        """Count the interpreters by state, and the calls that wait for one."""
        return {
            "idle": len(self._idle),
            "busy": len(self._alive) - len(self._idle),
            "starting": self._starting,
            "waiting": sum(len(kind.waiting) for kind in self._wanted),
        }

    def acquire_open(self, key: WarmKey, *, alone: bool = False) -> Warm | None:
        """Take an interpreter with room for a call, if there is one and it is the call's turn."""
        kind = self._kinds.get(key)
        if kind is None or not (kind.open and self._may_begin(kind)):
            return None
        return self._take_open(kind, alone=alone)

    def _take_open(self, kind: Kind, *, alone: bool) -> Warm | None:
        """Take an interpreter with room, the last used first: its caches are the warmest."""
        while kind.open:
            warm = kind.open[-1]
            if alone and warm.calls:
                warm = next((each for each in reversed(kind.open) if not each.calls), warm)
                if warm.calls:
                    return None
            if warm.sandbox.alive():
                self._take(kind, warm, alone=alone)
                return warm
            kind.shut(warm)
            if not warm.calls:
                self._idle.pop(warm, None)
                self._end(warm)
        return None

    async def acquire(self, need: Need) -> Warm:
        """Take an interpreter, waiting for one or starting one; raises LoadFailed, SandboxDied."""
        return self.acquire_open(need.key, alone=need.alone) or await self.wait(need)

    async def wait(self, need: Need) -> Warm:
        """Wait for an interpreter, or start one, without trying to take one first."""
        given: asyncio.Future[Warm] = asyncio.get_running_loop().create_future()
        waiter = self.enter(need, given)
        try:
            return await given
        except asyncio.CancelledError:
            if given.cancelled():
                self.leave(waiter)
            elif given.exception() is None:
                self.release(given.result())
            raise

    def enter(self, need: Need, given: Given) -> Waiter:
        """Queue for an interpreter, and start one if that is likely to be quicker."""
        loop = asyncio.get_running_loop()
        kind = self._kind_of(need.key)
        load = kind.load
        waiter = Waiter(next(self._places), need, given, loop.time(), load.served)
        kind.waiting.append(waiter)
        self._wanted[kind] = None
        has_room = self._has_room(need)
        starts = not has_room and worth_starting(load)
        load.waiting += 1
        if starts:
            self._start(need)
        self._look_after(PATIENCE_S if has_room else START_COST_S)
        return waiter

    def release(self, warm: Warm, *, recycle: bool = False, worked_s: float | None = None) -> None:
        """Release an interpreter after a call; `recycle` it if it may not be reused.

        `worked_s` is how long the call itself worked: the rest of the time it waited for a
        processor, which one more interpreter would not shorten.
        """
        now = self._clock()
        kind = self._kind_of(warm.key)
        load = kind.load
        load.busy -= 1
        held_s = now - warm.since
        load.note(held_s if worked_s is None else min(held_s, worked_s))
        self._turns.give_back(warm)
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
                memory_used=0.0  # the call's own process has returned it
                if warm.key.reuse.apart
                else warm.memory_peak_bytes / warm.key.limits.memory_bytes,
            )
        ):
            self.retire(warm)
        self._settle(kind, warm)
        if self._starved:
            self._feed_starved()

    # -- starting

    def _look(self) -> None:
        """Serve the waiting calls, and start interpreters for those that are stuck.

        Runs periodically while calls wait. A turn may be held by a call that turned out long. The
        guess that an interpreter becomes free soon may be wrong; one that was started goes to the
        call that waited longest, and its start may fail.
        """
        if self._closed:
            return
        self._turns.end_overdue()
        self._serve()
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for kind in list(self._wanted):
            for waiter in list(kind.waiting):
                if not waiter.given.done() and now_s - waiter.since_s >= START_COST_S:
                    self._start_if_stuck(waiter)
                    waiter.since_s = now_s
        if self._wanted:
            has_room = any(self._has_room(kind.waiting[0].need) for kind in self._wanted)
            self._look_after(PATIENCE_S if has_room else START_COST_S)

    def _look_after(self, wait_s: float) -> None:
        self._looking.by(asyncio.get_running_loop().time() + wait_s, self._look)

    def _start_if_stuck(self, waiter: Waiter) -> None:
        need = waiter.need
        load = self._kind_of(need.key).load
        asked = self._has_room(need) or any(each.key == need.key for each in self._starved)
        if not asked and load.waiting > load.starting * load.width and stuck(load, waiter.served):
            self._start(need)
        waiter.served = load.served

    def _has_room(self, need: Need) -> bool:
        """Return whether a call waits only for its turn."""
        return bool(self._kind_of(need.key).open) and not need.alone

    def _start(self, need: Need) -> None:
        if self.sandboxes >= self._sandboxes_max and not self._evict():
            self._starved.append(need)
            return
        self._starting += 1
        self._kind_of(need.key).load.starting += 1
        self._spawn(self._start_one(need))

    def _feed_starved(self) -> None:
        while self._starved:
            need = self._starved[0]
            kind = self._kinds.get(need.key)
            if kind is None or not kind.waiting:
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
            kind = self._kind_of(need.key)
            kind.load.starting -= 1
        if warm is None:
            waiter = kind.first_waiter()
            if waiter is not None and problem is not None:
                self._waits_no_longer(kind, waiter)
                waiter.given.set_exception(problem)
            elif not kind.waiting:
                self._wanted.pop(kind, None)
            if self._starved:
                self._feed_starved()
            return
        self._alive.add(warm)
        warm.sandbox.ended.add_done_callback(lambda _: self._ended_by_itself(warm))
        if self._closed:
            self._end(warm)
        else:
            self._settle(kind, warm)
        if self._starved:
            self._feed_starved()

    # -- handing over and ending

    def _take(self, kind: Kind, warm: Warm, *, alone: bool = False) -> None:
        if not warm.calls:
            self._idle.pop(warm, None)
            warm.since = self._clock()
        warm.uses += 1
        warm.calls += 1
        warm.alone = alone
        kind.load.busy += 1
        if takes_turns(kind.load):
            self._turns.take(warm)
        if not warm.room:
            kind.shut(warm)

    def _settle(self, kind: Kind, warm: Warm) -> None:
        """Offer an interpreter with room, and serve waiting calls; end it if it is retired."""
        if warm.retired and not warm.calls:
            self._end(warm)
        elif warm.room:
            if not warm.calls:
                self._idle[warm] = None
            if warm not in kind.open:
                kind.open.append(warm)
        if self._wanted:
            self._serve()
        if not warm.calls:
            self._forget_left(kind)

    def _serve(self) -> None:
        """Give interpreters with room to waiting calls, the longest first, as turns allow."""
        while found := self._next_to_begin():
            kind, waiter = found
            warm = self._take_open(kind, alone=waiter.need.alone)
            if warm is not None:
                self._waits_no_longer(kind, waiter)
                waiter.given.set_result(warm)
            elif kind.open:
                return
