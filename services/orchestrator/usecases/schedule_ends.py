"""Ends that schedules wait for: whoever puts a tick off for a run is told as soon as it is over.

Nothing in the rows tells when a run ends, and each look at them costs. So the engine is listened to
for the runs that are here, and the orchestrator that has the run for all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

import structlog

from services.orchestrator.engine.journal import DATABASE_FAULTS
from services.orchestrator.gateways.peers import PeerGone
from services.orchestrator.usecases.watch import Watcher

log = structlog.get_logger()

# What is heard of no end, such as that of a run whose memory was lost meanwhile.
_LOOK_AGAIN_S: Final = 10.0
# For an answer of another, which may have gone: then its runs are somebody else's.
_ANSWER_S: Final = 15.0
# Before a run is looked at again that was over, or nobody's, before anything was heard of it.
_MOMENT_S: Final = 1.0


class RunEnds:
    """Knows of which schedules a tick may begin, as the runs that it waited for are over."""

    def __init__(self, watcher: Watcher, told: Callable[[], None]) -> None:
        self._watcher = watcher
        self._told = told  # whoever starts what is due
        self._over: set[UUID] = set()
        self._listening: dict[UUID, asyncio.Task[None]] = {}

    def take(self) -> list[UUID]:
        """Give the schedules of which this was found since it was last asked."""
        over, self._over = sorted(self._over), set()
        return over

    def follow(self, schedule_id: UUID, run_ids: Sequence[UUID]) -> None:
        """Listen for the ends of a schedule's runs, wherever each is.

        Where nothing can be heard, nothing is told: whoever looks again follows them again.
        """
        if schedule_id not in self._listening:
            listening = asyncio.create_task(self._listen(schedule_id, run_ids))
            self._listening[schedule_id] = listening

    async def stop(self) -> None:
        """Listen no more."""
        tasks = list(self._listening.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, schedule_id: UUID, run_ids: Sequence[UUID]) -> None:
        try:
            for each in run_ids:
                await self._end(each)
        except (PeerGone, *DATABASE_FAULTS) as error:
            log.info("end_not_heard", schedule_id=str(schedule_id), error=repr(error))
            return
        finally:
            self._listening.pop(schedule_id, None)
        self._over.add(schedule_id)
        self._told()

    async def _end(self, run_id: UUID) -> None:
        """Wait until a run is over, or nobody's: whoever looks then will see."""
        watcher, heard = self._watcher, False
        while True:
            while run_id in watcher.engine.core.runs:
                await watcher.await_end(run_id, timeout_s=_LOOK_AGAIN_S)
                heard = True
            address = await watcher.router.address(run_id)
            if address is None:
                if not heard:
                    await asyncio.sleep(_MOMENT_S)
                return
            await watcher.router.peers.await_end(address, run_id, _ANSWER_S)
            heard = True
