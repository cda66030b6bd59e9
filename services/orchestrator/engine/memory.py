"""The memory: loads open runs from their rows, and reloads them after a failed flush."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final
from uuid import UUID

import asyncpg
import structlog

from services.kit.errors import Unavailable
from services.orchestrator.domain.records import ENGINE_ERROR, Failure
from services.orchestrator.domain.restore import latest
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NODE_FINAL
from services.orchestrator.domain.steps.attempts import Outcome
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.unusable import give_up
from services.orchestrator.engine.ended import Ended
from services.orchestrator.engine.journal import (
    DATABASE_FAULTS,
    Fence,
    Journal,
    OutcomeUnknownError,
)
from services.orchestrator.engine.loaded import Load, Loaded
from services.orchestrator.engine.member import Member
from services.orchestrator.engine.outlet import Outlet
from services.orchestrator.engine.shards import Shards, Strays
from services.orchestrator.engine.streams import Stream
from services.orchestrator.engine.treasury import Treasury
from services.orchestrator.storage.flush import Seal

log = structlog.get_logger()

_RECONNECT_MAX_S: Final = 2.0
# A run that fails this often is ended: the first time it is only reloaded. If its end cannot be
# derived either, its rows are ended as they are; if they cannot be written, the run is left alone.
_TIMES_MAX: Final = 2


class Memory(Outlet):
    """The open runs of this member's shards, as committed and as queued for commit."""

    def __init__(
        self,
        *,
        member: Member,
        connect: Callable[[], Awaitable[asyncpg.Connection[asyncpg.Record]]],
        load: Load,
        shards: Shards | None = None,
        trace: Callable[[Run], None] | None = None,
        treasury: Treasury | None = None,
        seal: Seal | None = None,
    ) -> None:
        super().__init__(member=member, shards=shards, trace=trace)
        self.strays = Strays()
        self._load = load
        self.treasury = treasury
        self._loading: set[UUID] = set()  # runs being reloaded, with their sub-workflows
        self._settled = asyncio.Event()  # set while `_loading` is empty
        self._settled.set()
        self._late: list[tuple[UUID, Outcome]] = []  # received meanwhile
        self.recoveries = 0
        self._rebuilt = 0  # how often all of it was reloaded from the rows
        self.journal = Journal(
            connect,
            ensure_live=self._ensure_live,
            release=self._released,
            culprit=self._refused,
            seal=seal,
            family=self._root_of,
        )

    async def begin(self) -> None:
        """Load the open runs of the member's shards."""
        await self._rebuild()
        self.work.set()  # so that the lease loop runs, and gives the lease back when idle

    async def run(self) -> None:
        """Write and recover until cancelled; raises `FencedError` when another member took over."""
        try:
            while True:
                try:
                    await self.journal.run()
                except OutcomeUnknownError as error:
                    log.warning("journal_outcome_unknown", error=repr(error.__cause__))
                    await self._recover()
        finally:
            self.recovering = True  # nothing is written from here on: let no caller wait for it
            self.journal.end()
            self._callers.all_loaded_again(())

    async def _recover(self) -> None:
        """Drop all memory and reload it: the only rollback there is.

        A new epoch makes sure that no flush of the old one is committed later. Messages that arrive
        meanwhile change the old core only and are lost with it: runners keep results until they are
        acknowledged, and callers are told to repeat their calls.
        """
        self.recovering = True
        self.recoveries += 1
        self.ended = Ended()  # a promoted replica may not have these ends
        delay_s = 0.05
        while True:
            try:
                await self.journal.close()
                await self.member.advance()
                await self._rebuild()
                break
            except DATABASE_FAULTS as error:
                log.warning("recovery_waits", error=repr(error))
            await asyncio.sleep(delay_s * random.uniform(0.5, 1))  # noqa: S311
            delay_s = min(delay_s * 2, _RECONNECT_MAX_S)

    async def _rebuild(self) -> None:
        await self.member.read_owned()
        owned = self.member.owned
        loaded = await self._load(shards=sorted(owned))
        self._rebuilt += 1
        self.shards.put(owned)
        # No await from here on: no event may see half of the old state and half of the new.
        self.recovering = False
        self.journal.clear()
        self.core = self._new_core()
        self._refusals.clear()
        self._faults.clear()
        self._loading.clear()
        self._settled.set()
        self.silent_since.clear()
        for stream in list(self.streams.values()):
            stream.close()  # runners reconnect and report what they have
        self.streams.clear()
        self._adopt(loaded)
        self._callers.all_loaded_again(self.core.runs)
        self.hub.resync()
        log.info("executions_loaded", count=len(loaded.runs), epoch=self.member.epoch)

    def _adopt(self, loaded: Loaded) -> None:
        now = self.now()
        if loaded.clock is not None:
            self.database_clock.told(loaded.clock)
        self.core.unlocked |= loaded.unlocked
        self.core.held |= loaded.held
        self.core.quotas_known(loaded.quotas)
        self.core.ledger.budgets |= loaded.budgets
        self._apply(self.core.limits_known(loaded.limits, now=now))
        self.hear_of_limits()  # they may have changed since they were loaded
        for run, due_s, deadline_s in loaded.runs:
            self.journal.not_before(latest(run))
            run.watchers = self.hub.watchers(run.id)
            self.core.adopt(run, now=now, due_s=due_s, deadline_s=deadline_s)
        for child in loaded.ended_children:
            self.core.child_ended(child)
        for runner_id, runner in self.core.runners.items():
            if not runner.connected:
                self.silent_since.setdefault(runner_id, now)
                self.attempts_begun.set()
        self._apply([*loaded.given_up, *self.core.redispatch()])

    async def settled(self) -> None:
        """Wait until no run is being reloaded: a runner's attempts cannot be judged before."""
        while self._loading:  # another may have begun by the time this task wakes
            await self._settled.wait()

    def outcomes(self, runner_id: UUID, outcomes: Iterable[Outcome]) -> None:
        """Apply outcomes of attempts that a runner reports."""
        if self._loading or not self.shards.whole:
            outcomes = self._judged_here(runner_id, outcomes)
        try:
            self._apply(self.core.outcomes(runner_id, outcomes, now=self.now()))
        except Exception:
            # Memory may be half-way between two states; the rows are not: reload.
            log.exception("outcomes_not_taken")
            self.journal.doubt()

    def _judged_here(self, runner_id: UUID, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Return the outcomes of known attempts; keep the others until they can be judged."""
        known = []
        for outcome in outcomes:
            if self.core.find(outcome.attempt_ref) is not None:
                known.append(outcome)
            elif self._loading:
                self._late.append((runner_id, outcome))  # its run may be the one being reloaded
            else:
                self.strays.add(runner_id, outcome.attempt_ref, outcome.token)
        return known

    def _apply(self, transitions: Iterable[Transition]) -> None:
        if self.core.faults:
            self._read_faulty()
        super()._apply(transitions)

    def _read_faulty(self) -> None:
        """Reload the runs whose steps raised, and only those."""
        faults, self.core.faults = self.core.faults, []
        for fault in faults:
            run_id = fault.run_ids[0]
            log.error("execution_step_failed", execution_id=str(run_id), exc_info=fault.error)
            times = 0
            if not fault.asked:  # a caller's change that raised is not repeated by a reload
                times = self._faults[run_id] = self._faults.get(run_id, 0) + 1
            reason = f"a fault of the engine's: {fault.error!r}"
            self._begin_loading(run_id)  # outcomes of its attempts cannot be judged from now on
            take_out = partial(self._take_out, fault.run_ids, reason, times)
            self.journal.first(fault.run_ids, take_out)

    def _begin_loading(self, run_id: UUID) -> None:
        self._loading.add(run_id)
        self._settled.clear()

    async def _refused(self, run_id: UUID, reason: str) -> None:
        """Reload a run whose changes the database refused."""
        times = self._refusals[run_id] = self._refusals.get(run_id, 0) + 1
        reason = f"the engine could not record it: {reason}"
        await self._take_out([run_id], reason, times)

    async def _take_out(self, run_ids: Sequence[UUID], reason: str, times: int) -> None:
        """Reload a run whose memory and rows may differ; the second time, end it.

        The runs it is part of and its sub-workflows are reloaded with it, so that none of the
        family is ahead of the others.
        """
        run_id = run_ids[0]
        family = self.core.parts_of(run_ids)
        for each in family:
            self.core.forget(each)
        self._begin_loading(run_id)
        try:
            loaded = await self._load(ids=family)
        except DATABASE_FAULTS as error:
            raise OutcomeUnknownError from error  # everything is reloaded once the database is back
        finally:
            self._loading.discard(run_id)
            if not self._loading:
                self._settled.set()
            late, self._late = self._late, []
        there = {run.id for run, _, _ in loaded.runs}
        for each in family:
            self._callers.loaded_again(each, there=each in there)
        if self._refusals.get(run_id, 0) > _TIMES_MAX:
            # Not even its end can be written: it needs an operator.
            log.error("execution_given_up", execution_id=str(run_id), reason=reason)
        elif times > _TIMES_MAX:
            self._apply(_ends(loaded, reason))
        else:
            self._adopt_again(loaded)
        if times == _TIMES_MAX and run_id in self.core.runs:
            failure = Failure(error_type=ENGINE_ERROR, message=reason)
            self._apply(self.core.break_off(run_id, failure))
        for runner_id, outcome in late:
            self.outcomes(runner_id, [outcome])

    def _adopt_again(self, loaded: Loaded) -> None:
        self._adopt(loaded)
        # Its runners' attempts may differ from what was loaded: they reconnect and report them.
        for run, _, _ in loaded.runs:
            for record in run.records:
                if record is not None and record.runner in self.streams:
                    self._drop(self.streams[record.runner])

    def _root_of(self, run_id: UUID) -> UUID:
        return self.core.root_of(run_id)  # late-bound: a recovery replaces the core

    def _drop(self, stream: Stream) -> None:
        """Close a stream from this side; its runner reconnects and reports what it has."""
        stream.close()
        self.detach(stream)

    def detach(self, stream: Stream) -> None:
        """Handle the end of a stream."""
        if self.streams.get(stream.runner) is not stream:
            return
        del self.streams[stream.runner]
        if stream.runner in self.core.runners:
            self.core.detached(stream.runner)
        if stream.runner in self.core.runners:
            self.silent_since[stream.runner] = self.now()
            self.attempts_begun.set()
            self.sweep_now.set()

    def hear_of_limits(self, freed: UUID | None = None) -> None:
        """Have limits reread, or just recheck the one of which another member freed a slot."""
        if freed is None:
            self.limits_changed = True
        else:
            self.core.limited.stir(freed)
        self.limits_wanted.set()

    async def _ensure_live(self, again: bool) -> Fence:  # noqa: FBT001  # the signature of `Member`
        fence = await self.member.ensure_live(again)
        ready, owned = self.shards.ready, self.member.owned
        if ready is not owned and not ready <= owned:
            raise Unavailable("SHARDS_TAKEN", "others took shards while this member had no lease")
        return fence


def _ends(loaded: Loaded, why: str) -> list[Transition]:
    return [
        give_up(
            run.id,
            run.revision,
            [
                (each.id, each.token)
                for each in run.records
                if each is not None and each.status not in NODE_FINAL
            ],
            why,
        )
        for run, _, _ in loaded.runs
    ]
