"""Ends that schedules wait for: whose run is this engine's own is told of it at once.

Nothing in the rows tells when a run ends, and each look at them costs. So whoever puts a tick off
for a run listens to the engine. A run that another orchestrator has is looked at now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final
from uuid import UUID

from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.hub import Moved

# What is heard of no end, such as that of a run whose memory was lost meanwhile.
_LOOK_AGAIN_S: Final = 10.0


class RunEnds:
    """Knows of which schedules a tick may begin, as the runs that it waited for are over."""

    def __init__(self, engine: Engine, told: Callable[[], None]) -> None:
        self._engine = engine
        self._told = told  # whoever starts what is due
        self._over: set[UUID] = set()
        self._listening: dict[UUID, asyncio.Task[None]] = {}

    def take(self) -> list[UUID]:
        """Give the schedules of which this was found since it was last asked."""
        over, self._over = sorted(self._over), set()
        return over

    def follow(self, schedule_id: UUID, run_ids: Iterable[UUID]) -> None:
        """Listen for the ends of a schedule's runs, of those that are here."""
        here = [each for each in run_ids if each in self._engine.core.runs]
        if here and schedule_id not in self._listening:
            self._listening[schedule_id] = asyncio.create_task(self._listen(schedule_id, here))

    async def stop(self) -> None:
        """Listen no more."""
        tasks = list(self._listening.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, schedule_id: UUID, run_ids: Iterable[UUID]) -> None:
        try:
            for each in run_ids:
                await self._end(each)
        finally:
            self._listening.pop(schedule_id, None)
        self._over.add(schedule_id)
        self._told()

    async def _end(self, run_id: UUID) -> None:
        """Wait until a run is over, or this engine's no more: whoever looks then will see."""
        with self._engine.hub.subscribed(run_id, ends_only=True) as end:
            while run_id in self._engine.core.runs:
                try:
                    change = await end.next(_LOOK_AGAIN_S)
                except Moved:
                    return
                if change is not None and change.final:
                    return
