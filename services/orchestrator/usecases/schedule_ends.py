"""Ends of runs that schedules wait for, so that a deferred tick starts as soon as possible.

Polling rows for the end of a run would be costly. So ends are received from the engine, or for runs
of other members by a long poll to their owner.
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

# How long to wait for an end before looking again, since some are not reported, as after a reload.
_LOOK_AGAIN_S: Final = 10.0
# How long to wait for another member, which may be gone.
_ANSWER_S: Final = 15.0
# Before a run is checked again that had ended, or had no owner, from the start.
_MOMENT_S: Final = 1.0


class RunEnds:
    """Collects schedules of which a tick may start because the runs before it have ended."""

    def __init__(self, watcher: Watcher, told: Callable[[], None]) -> None:
        self._watcher = watcher
        self._told = told  # wakes the schedule loop
        self._over: set[UUID] = set()
        self._listening: dict[UUID, asyncio.Task[None]] = {}

    def take(self) -> list[UUID]:
        """Return and clear the schedules collected since the last call."""
        over, self._over = sorted(self._over), set()
        return over

    def follow(self, schedule_id: UUID, run_ids: Sequence[UUID]) -> None:
        """Wait in the background for the ends of a schedule's runs, at their owners.

        If that fails, nothing is reported: the next attempt at the tick follows them again.
        """
        if schedule_id not in self._listening:
            listening = asyncio.create_task(self._listen(schedule_id, run_ids))
            self._listening[schedule_id] = listening

    async def stop(self) -> None:
        """Stop waiting."""
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
        """Wait until a run has ended, or has no owner."""
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
