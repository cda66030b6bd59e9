"""The owner: keeps this member's shards under its lease, takes shards over and hands them on."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

import structlog

from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.engine.callers import try_again
from services.orchestrator.engine.hub import Change
from services.orchestrator.engine.journal import FencedError
from services.orchestrator.engine.loaded import Loaded
from services.orchestrator.engine.memory import Memory
from services.orchestrator.engine.streams import Owned

log = structlog.get_logger()


class Owner(Memory):
    """The shards owned by this member, which alone may change their runs, and knows all of them."""

    async def wake(self) -> None:
        """Renew a lease that was given up at rest."""
        try:
            await self.member.renew()
        except FencedError:
            self.shards.look.set()  # the members' loop ends the process
            raise try_again() from None
        if not self.shards.ready <= self.member.owned:  # some were taken at rest, without open runs
            self.shards.put(self.shards.ready & self.member.owned)
            # Unsent answers relied on the old shards: runners reconnect and ask again.
            for stream in list(self.streams.values()):
                self._drop(stream)
        self.work.set()

    async def knows(self, *, anew: bool = False) -> bool:
        """Return whether memory is right about its runs: no other member can have taken any.

        Checked before runners are told anything that depends on it. `anew` asks the database
        instead of trusting the lease: needed where a runner will drop a result for good.
        """
        if self.member.certain and not anew:
            return True
        rested = not self.member.live
        if not await self.member.holds(anew=anew):
            self.shards.look.set()  # the members' loop ends the process
            return False
        if rested:
            self.work.set()
            if not self.shards.ready <= self.member.owned:
                self.journal.doubt()  # others have taken some: reload everything
                return False
        return True

    async def take_in(self, shards: Collection[int]) -> None:
        """Load the runs of shards that this member took over, and have their runners report."""
        rebuilt = self._rebuilt
        loaded = await self._load(shards=sorted(shards))
        if rebuilt != self._rebuilt:
            return  # a recovery has loaded everything meanwhile, including these
        self.shards.put(self.shards.ready | frozenset(shards))
        self._adopt(loaded)
        self._ask_runners(loaded)
        for run, _, _ in loaded.runs:
            self.hub.publish(run.id, Change(0, [], complete=False, final=False))
        log.info("shards_taken_in", shards=len(shards), executions=len(loaded.runs))

    def _ask_runners(self, loaded: Loaded) -> None:
        """Have runners report again what they have: it may differ from memory for these runs."""
        runners = {
            each.runner
            for run, _, _ in loaded.runs
            for each in run.records
            if each is not None and each.status is NodeStatus.RUNNING
        }
        for runner in runners & self.streams.keys():
            assert runner is not None
            self._drop(self.streams[runner])

    async def release(self, shard: int, taker: UUID) -> bool:
        """Hand a shard to another member: write what is queued, forget its runs, change the owner.

        Returns whether it was handed over; if not, the next survey loads its runs again.
        """
        rebuilt = self._rebuilt
        self.shards.put(self.shards.ready - {shard})
        forgotten: dict[UUID, list[tuple[UUID, Owned]]] = {}
        while await self.journal.written():  # starts that drew this shard are committed first
            reading = bool(self._loading)  # a run being reloaded is not in `core.runs`
            await self.settled()
            if rebuilt != self._rebuilt or self.recovering:
                return False
            runs = [run for run in self.core.runs.values() if run.shard == shard]
            if not runs and not reading:
                break
            for run in runs:
                forgotten[run.id] = _held(run, taker)
                self.core.forget(run.id)
        else:
            return False
        given = await self.member.give(shard, taker)
        if given:
            for run_id, held in forgotten.items():
                for runner, owned in held:
                    self._tell(runner, owned)
                self.hub.moved(run_id)
        self._apply(self.core.redispatch())
        return given


def _held(run: Run, taker: UUID) -> list[tuple[UUID, Owned]]:
    """Return, by runner, the run's running attempts as owned by `taker`."""
    return [
        (each.runner, Owned(each.id, each.killing or each.token, taker))
        for each in run.records
        if each is not None and each.status is NodeStatus.RUNNING and each.runner is not None
    ]
