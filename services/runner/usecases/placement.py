"""Places runners on a cluster: started for waiting work, withdrawn when there is none."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import structlog

from services.runner.domain.placing import (
    Decision,
    Machine,
    Placed,
    Size,
    Waiting,
    decide,
    size_of,
    steady,
)

log = structlog.get_logger()

# A runner that ends this soon lacks something that the next one would lack too.
_SOON_S: Final = 5.0
_PAUSE_MAX_S: Final = 30.0


class Machines(Protocol):
    """The cluster: Ray, or a fake in tests."""

    async def machines(self) -> list[Machine]:
        """Return the machines that exist now."""

    def placed(self) -> Sequence[Placed]:
        """Return the runners that were requested and have not ended."""

    async def start(self, size: Size, settings: Mapping[str, str]) -> str:
        """Request a runner; return its name."""

    async def withdraw(self, name: str) -> None:
        """Withdraw a runner."""


class Placement:
    """The waiting work by orchestrator, and the runners started for it."""

    def __init__(
        self,
        engine: Machines,
        *,
        plain: Size,
        runners_max: int,
        settings_of: Callable[[Size], Mapping[str, str]],
        changed: asyncio.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._plain = plain
        self._runners_max = runners_max
        self._settings_of = settings_of
        self._clock = clock
        self._heard: dict[str, Mapping[Waiting, int]] = {}
        self._before: Mapping[Size, int] = {}
        self._started: dict[str, float] = {}  # when, by name
        self._failures = 0  # in a row
        self._pause_until = 0.0
        self.changed = changed

    def hear(self, orchestrator: str, waiting: Mapping[Waiting, int]) -> None:
        """Replace what waits at an orchestrator."""
        self._heard[orchestrator] = waiting
        self.changed.set()

    def forget(self, orchestrator: str) -> None:
        """Remove what waits at an orchestrator."""
        self._heard.pop(orchestrator, None)
        self.changed.set()

    @property
    def restless(self) -> bool:
        """Whether to look again soon."""
        return bool(self._before) or any(not each.ready for each in self._engine.placed())

    async def look(self) -> Decision:
        """Start the runners that are needed, and withdraw the others; return the decision."""
        demand = self._demand()
        placed = self._engine.placed()
        self._note_ends(placed)
        decision = decide(steady(self._before, demand), placed, runners_max=self._runners_max)
        self._before = demand
        for name in decision.withdraw:
            log.info("runner_withdrawn", runner=name)
            await self._engine.withdraw(name)
            self._started.pop(name, None)
        if self._clock() < self._pause_until:
            return decision._replace(start=())
        for size in decision.start:
            name = await self._engine.start(size, self._settings_of(size))
            self._started[name] = self._clock()
            log.info("runner_placed", runner=name, **size._asdict())
        return decision

    def _demand(self) -> Mapping[Size, int]:
        found: Counter[Size] = Counter()
        for waiting in self._heard.values():
            for needs, count in waiting.items():
                found[size_of(needs, self._plain)] += count
        return found

    def _note_ends(self, placed: Sequence[Placed]) -> None:
        """Back off while runners end right after their start."""
        now = self._clock()
        there = {each.name: each for each in placed}
        for name, began in list(self._started.items()):
            if name not in there:
                del self._started[name]
                if now - began < _SOON_S:
                    self._failures += 1
                    self._pause_until = now + min(2.0**self._failures, _PAUSE_MAX_S)
                    log.warning("placement_paused", runners_lost=self._failures)
            elif not there[name].begun:
                self._started[name] = now  # still waits for its machine, so it has not started
            elif now - began >= _SOON_S:
                self._failures = 0
