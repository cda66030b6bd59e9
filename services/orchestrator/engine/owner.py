"""The owner: holds this member's shards by its lease, takes shards in and gives them away."""

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
    """What is this member's: no other may have any run of that, and it knows them all."""

    async def wake(self) -> None:
        """Hold the lease, so that what this member owns stays its own."""
        try:
            await self.member.renew()
        except FencedError:
            self.shards.look.set()  # that ends the process
            raise try_again() from None
        if not self.shards.ready <= self.member.owned:  # taken while it rested: no run was in them
            self.shards.put(self.shards.ready & self.member.owned)
            # What was judged by the shards of before is not said: runners come back, and ask anew.
            for stream in list(self.streams.values()):
                self._drop(stream)
        self.work.set()

    async def knows(self, *, anew: bool = False) -> bool:
        """Whether what memory says of runs is so: no other member can have any of them by now.

        Asked before runners are told anything that follows from it. `anew` takes the database's
        word for it and not the lease's: what a runner forgot nobody can give it back.
        """
        if self.member.certain and not anew:
            return True
        rested = not self.member.live
        if not await self.member.holds(anew=anew):
            self.shards.look.set()  # that ends the process
            return False
        if rested:
            self.work.set()
            if not self.shards.ready <= self.member.owned:
                self.journal.doubt()  # others have some of it: all is loaded again
                return False
        return True

    async def take_in(self, shards: Collection[int]) -> None:
        """Load the runs of shards that have come to this member, and have their runners report."""
        rebuilt = self._rebuilt
        loaded = await self._load(shards=sorted(shards))
        if rebuilt != self._rebuilt:
            return  # all was loaded meanwhile, these among it
        self.shards.put(self.shards.ready | frozenset(shards))
        self._adopt(loaded)
        self._ask_runners(loaded)
        for run, _, _ in loaded.runs:
            self.hub.publish(run.id, Change(0, [], complete=False, final=False))
        log.info("shards_taken_in", shards=len(shards), executions=len(loaded.runs))

    def _ask_runners(self, loaded: Loaded) -> None:
        """Have runners say anew what they have: memory and they may differ on these runs."""
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
        """Give a shard to another member: write what is queued, forget its runs, then let it go.

        Whether it was given. Where it was not its runs are loaded again, with the next look.
        """
        rebuilt = self._rebuilt
        self.shards.put(self.shards.ready - {shard})
        forgotten: dict[UUID, list[tuple[UUID, Owned]]] = {}
        while await self.journal.written():  # first the starts that drew it, which are answered now
            reading = bool(self._loading)  # such a run is in no list, and may be ended by its rows
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
    """Give what runners have of a run, as another member's."""
    return [
        (each.runner, Owned(each.id, each.killing or each.token, taker))
        for each in run.records
        if each is not None and each.status is NodeStatus.RUNNING and each.runner is not None
    ]
