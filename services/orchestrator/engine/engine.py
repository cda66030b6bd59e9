"""The engine: runs the core over its journal, and lets out what is committed."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Protocol
from uuid import UUID

import asyncpg
import structlog

from services.kit import traces
from services.kit.errors import ResourceExhausted, Unavailable
from services.kit.ids import uuid7
from services.orchestrator.domain.amounts import NOTHING, Amounts
from services.orchestrator.domain.cache_queue import Answer
from services.orchestrator.domain.children import EndedChild
from services.orchestrator.domain.core import Core, Outcome
from services.orchestrator.domain.ledger import Budget, Quota
from services.orchestrator.domain.limits import Claim, Demand, Limit
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.partly import Partly
from services.orchestrator.domain.restore import latest
from services.orchestrator.domain.rows import (
    AssignCommand,
    CacheCommand,
    Command,
    Finished,
    Follows,
    NodeCopy,
    RunInsert,
    SupersededCommand,
    Transition,
)
from services.orchestrator.domain.state import ENGINE_ERROR, Failure, Run, Spliced
from services.orchestrator.domain.status import NODE_FINAL, RUN_FINAL, NodeStatus, RunStatus
from services.orchestrator.engine.callers import Callers, try_again
from services.orchestrator.engine.ended import Ended
from services.orchestrator.engine.hub import Change, Hub
from services.orchestrator.engine.journal import (
    DATABASE_FAULTS,
    Committed,
    Fence,
    FencedError,
    Journal,
    OutcomeUnknownError,
)
from services.orchestrator.engine.member import Member
from services.orchestrator.engine.placements import Placements
from services.orchestrator.engine.shards import Shards, Strays
from services.orchestrator.engine.streams import Assignment, Owned, Peers, Stream
from services.orchestrator.engine.streams import Command as Told
from services.orchestrator.engine.treasury import Treasury

log = structlog.get_logger()

INLINE_BYTES_MAX: Final = 64 * 1024
JOURNAL_BYTES_MAX: Final = 8 * 1024 * 1024
STREAM_PAUSE_BYTES: Final = 32 * 1024 * 1024
_RECONNECT_MAX_S: Final = 2.0
_END_MAX_S: Final = 5.0
_SHARD_WAIT_S: Final = 5.0
# The first time a run is loaded again, the second time it is ended; then it is let lie.
_REFUSALS_MAX: Final = 2


class Loaded:
    """Open runs as their rows say they stand."""

    def __init__(self) -> None:
        self.runs: list[tuple[Run, dict[int, float], float | None]] = []
        self.unlocked: set[UUID] = set()
        self.ended_children: list[EndedChild] = []
        self.limits: list[Limit] = []
        self.held: dict[UUID, Claim] = {}  # places under limits, by the run or node row
        self.quotas: Mapping[UUID, Quota] = {}  # by tenant
        self.budgets: dict[UUID, Budget] = {}  # by run
        # Ends of runs whose rows no run can be made of.
        self.given_up: list[Transition] = []


class Load(Protocol):
    """Gives open runs: the named ones, or those of some shards."""

    async def __call__(
        self, *, ids: Sequence[UUID] | None = None, shards: Sequence[int] | None = None
    ) -> Loaded:
        """Give them as their rows stand now."""


class Engine:
    """One orchestrator's actor, on one event loop; only what says `async` waits."""

    def __init__(
        self,
        *,
        member: Member,
        connect: Callable[[], Awaitable[asyncpg.Connection[asyncpg.Record]]],
        load: Load,
        shards: Shards | None = None,
        trace: Callable[[Run], None] | None = None,
        treasury: Treasury | None = None,
    ) -> None:
        self.member = member
        self.shards = shards or Shards()
        self.strays = Strays()
        self.placements = Placements()
        self.hub = Hub()
        self.core = self._new_core()
        self.streams: dict[UUID, Stream] = {}
        self.ended = Ended()
        self.silent_since: dict[UUID, float] = {}  # runners with attempts and without a stream
        self.work = asyncio.Event()  # set while there is anything to keep a lease for
        self.sweep_now = asyncio.Event()
        self.locks_wanted = asyncio.Event()
        self.attempts_begun = asyncio.Event()
        self.cache_wanted = asyncio.Event()  # set while the cache is asked, or is to keep something
        self.cache_kept: list[CacheCommand] = []
        self.limits_wanted = asyncio.Event()  # set while the limits' loop has anything to do
        self.limits_changed = True  # since they were last read
        self.limits_reading = asyncio.Lock()  # what was read later is known later
        self.limits_freed: set[UUID] = set()  # that other members have to hear of
        self.quota_charged = asyncio.Event()  # set while tenants with quotas used something of them
        self._load = load
        self.treasury = treasury
        self._trace = trace  # told of runs that are over, where traces are told
        self._callers = Callers()
        self._refusals: dict[UUID, int] = {}  # of runs since something of them was last written
        self._loading = False
        self._settled = asyncio.Event()  # not while a run is loaded again
        self._settled.set()
        self._late: list[tuple[UUID, Outcome]] = []  # said meanwhile
        self.recovering = False
        self.runs_ended: Counter[RunStatus] = Counter()
        self.recoveries = 0
        self._rebuilt = 0  # how often memory was made anew from the rows
        self._timer: asyncio.TimerHandle | None = None
        self.journal = Journal(
            connect,
            ensure_live=self._ensure_live,
            release=self._released,
            culprit=self._take_out,
            family=self._root_of,
        )

    # --- life -----------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Load what is open in the member's shards."""
        await self._rebuild()
        self.work.set()  # the lease that it joined with is to be given back when nothing comes

    async def run(self) -> None:
        """Write until cancelled; raises `FencedError` when another member took over."""
        try:
            while True:
                try:
                    await self.journal.run()
                except OutcomeUnknownError as error:
                    log.warning("journal_outcome_unknown", error=repr(error.__cause__))
                    await self._recover()
        finally:
            self.recovering = True  # nothing writes any more: nobody may wait for it
            self.journal.end()
            self._callers.all_loaded_again(())

    async def _recover(self) -> None:
        """Forget and reload: the only rollback. Nothing an older epoch wrote can still arrive.

        What streams and callers say meanwhile goes to the old core and is forgotten with it:
        runners keep their results until an Ack, and callers are told to repeat.
        """
        self.recovering = True
        self.recoveries += 1
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
        # From here on nothing waits: no event may see half of the old and half of the new.
        self.recovering = False
        self.journal.clear()
        earlier, self.core = self.core, self._new_core()
        # What was learnt of locks and of runners that were fenced is as true as before.
        self.core.unlocked |= earlier.unlocked
        self.core.fenced |= earlier.fenced
        self._refusals.clear()
        self.silent_since.clear()
        for stream in list(self.streams.values()):
            stream.close()  # runners come back and say what they have
        self.streams.clear()
        self._adopt(loaded)
        self._callers.all_loaded_again(self.core.runs)
        self.hub.resync()
        log.info("executions_loaded", count=len(loaded.runs), epoch=self.member.epoch)

    def _new_core(self) -> Core:
        return Core(epoch=self.member.epoch, new_id=uuid7, draw=random.random)

    def _adopt(self, loaded: Loaded) -> None:
        now = self.now()
        self.core.unlocked |= loaded.unlocked
        self.core.held |= loaded.held
        self.core.quotas_known(loaded.quotas)
        self.core.ledger.budgets |= loaded.budgets
        self._apply(self.core.limits_known(loaded.limits, now=now))
        self.hear_of_limits()  # they may have changed since they were read
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

    async def _take_out(self, run_id: UUID, reason: str) -> None:
        """Load a run again that the journal could not write; the second time, end it.

        With it goes all that is a part of it: none of that may be ahead of the others' rows.
        """
        family = self.core.part_of(run_id)
        for each in family:
            self.core.forget(each)
        self._loading = True
        self._settled.clear()
        try:
            loaded = await self._load(ids=family)
        except DATABASE_FAULTS as error:
            raise OutcomeUnknownError from error  # all is loaded again, once that is possible
        finally:
            self._loading = False
            self._settled.set()
            late, self._late = self._late, []
        there = {run.id for run, _, _ in loaded.runs}
        for each in family:
            self._callers.loaded_again(each, there=each in there)
        refusals = self._refusals[run_id] = self._refusals.get(run_id, 0) + 1
        if refusals > _REFUSALS_MAX:
            log.error("execution_given_up", execution_id=str(run_id), reason=reason)
            return  # not even its end can be written: an operator has to look
        self._adopt(loaded)
        # What its runners have, and what memory knew of that, may differ: they say it anew.
        for run, _, _ in loaded.runs:
            for record in run.records:
                if record is not None and record.runner in self.streams:
                    self._drop(self.streams[record.runner])
        if refusals == _REFUSALS_MAX and run_id in self.core.runs:
            failure = Failure(
                error_type=ENGINE_ERROR, message=f"the engine could not record it: {reason}"
            )
            self._apply(self.core.break_off(run_id, failure))
        for runner_id, outcome in late:
            self.outcomes(runner_id, [outcome])

    def _root_of(self, run_id: UUID) -> UUID:
        return self.core.root_of(run_id)  # of the core that there is by then

    async def settled(self) -> None:
        """Wait while a run is loaded again: what a runner has of it cannot be judged meanwhile."""
        await self._settled.wait()

    # --- what callers ask -----------------------------------------------------------------------

    async def start(
        self,
        run: Run,
        row: RunInsert,
        follows: tuple[Follows, ...],
        copies: Sequence[NodeCopy] = (),
        partly: Sequence[Partly] = (),
        budget: Budget | None = None,
    ) -> None:
        """Start a run; returns once it is committed, and what it follows was so in that moment.

        Raises `NotStarted` when it was refused; the caller looks why.
        """
        shard = await self._draw(row.shard)  # the row's own only says how starts are spread
        if self.recovering:
            raise try_again()
        run.shard, row = shard, row._replace(shard=shard)
        if self.journal.pending_bytes > JOURNAL_BYTES_MAX:
            raise ResourceExhausted(
                "JOURNAL_FULL", "the engine is behind with writing; try again", retry_after_s=1.0
            )
        future = self._callers.start(run.id)
        now = self.now()
        begun = self.core.start(
            run, row, now=now, follows=follows, copies=copies, partly=partly, budget=budget
        )
        self._apply(begun)
        await asyncio.shield(future)

    async def reserve(self, run: Run, asked: Amounts) -> Budget | None:
        """Take what a run may consume out of what its tenant has left; None without a limit.

        Raises `QuotaExceeded` where that is too little.
        """
        ledger = self.core.ledger
        if self.treasury is None or (asked == NOTHING and run.tenant_id not in ledger.quotas):
            return None
        return await self.treasury.reserve(
            ledger, self.member.id, tenant_id=run.tenant_id, run_id=run.id, asked=asked
        )

    async def unreserve(self, run: Run) -> None:
        """Give that back: the run did not begin."""
        assert self.treasury is not None
        await self.treasury.release(self.member.id, run.id)

    async def cancel(self, run_id: UUID) -> None:
        """Ask a run to stop; returns once that is committed."""
        if self.recovering:
            raise try_again()
        run = self.core.runs.get(run_id)
        if run is None or run.cancel_requested_at is not None:
            return
        future = self._callers.cancelling(run_id)
        if future is None and run.status in RUN_FINAL:
            with self.hub.subscribed(run_id, ends_only=True) as end:  # it is on its way to disk
                await end.next(_END_MAX_S)
            return
        if future is None:
            future = self._callers.cancel(run_id)
            self._apply(self.core.cancel(run_id))
        await asyncio.shield(future)

    # --- shards ---------------------------------------------------------------------------------

    def busy(self) -> bool:
        """Whether there is anything to keep a lease for."""
        return bool(self.core.runs) or not self.journal.idle

    async def wake(self) -> None:
        """Hold the lease, so that what this member owns stays its own."""
        try:
            await self.member.renew()
        except FencedError:
            self.shards.look.set()  # that ends the process
            raise try_again() from None
        if not self.shards.ready <= self.member.owned:  # taken while it rested: no run was in them
            self.shards.put(self.shards.ready & self.member.owned)
        self.work.set()

    async def knows(self) -> bool:
        """Whether what memory says of runs is so: no other member can have any of them by now.

        Asked before runners are told anything that follows from it.
        """
        if self.member.certain:
            return True
        rested = not self.member.live
        if not await self.member.holds():
            self.shards.look.set()  # that ends the process
            return False
        if rested:
            self.work.set()
            if not self.shards.ready <= self.member.owned:
                self.journal.doubt()  # others have some of it: all is loaded again
                return False
        return True

    async def _draw(self, wanted: int) -> int:
        """Give a shard for a run that starts: no event comes between, so that it stays here."""
        while True:
            if not self.member.live:
                await self.wake()
            shard = self.shards.draw(wanted)
            if shard is not None:
                return shard
            if self.shards.closing:
                raise Unavailable(
                    "DRAINING", "the server is stopping; resume at once", retry_after_s=0.1
                )
            self.shards.look.set()
            try:
                async with asyncio.timeout(_SHARD_WAIT_S):
                    await self.shards.some.wait()
            except TimeoutError:
                raise Unavailable(
                    "NO_SHARD",
                    "this orchestrator has nothing to start runs in yet; try again",
                    retry_after_s=1.0,
                ) from None

    async def _ensure_live(self, again: bool) -> Fence:  # noqa: FBT001  # as the member has it
        fence = await self.member.ensure_live(again)
        if not self.shards.ready <= self.member.owned:
            raise Unavailable("SHARDS_TAKEN", "others took shards while this member had no lease")
        return fence

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
        if not await self.journal.written():  # the starts that drew it are answered now
            return False
        runs = [run for run in self.core.runs.values() if run.shard == shard]
        held = [
            (each.runner, Owned(each.id, each.killing or each.token, taker))
            for run in runs
            for each in run.records
            if each is not None and each.status is NodeStatus.RUNNING and each.runner is not None
        ]
        for run in runs:
            self.core.forget(run.id)
        if not await self.journal.written() or rebuilt != self._rebuilt:
            return False
        given = await self.member.give(shard, taker)
        if given:
            for runner, owned in held:
                self._tell(runner, owned)
            for run in runs:
                self.hub.moved(run.id)
        self._apply(self.core.redispatch())
        return given

    def meet(self, peers: Mapping[UUID, str]) -> None:
        """Know the other members, and have runners know them."""
        if self.shards.meet(peers):
            self.tell_all(self.known_peers())

    def tell_all(self, command: Told) -> None:
        """Tell every runner."""
        for runner in self.streams:
            self._tell(runner, command)

    def known_peers(self) -> Peers:
        """Give where runners find the other members."""
        return Peers(tuple(sorted(set(self.shards.peers.values()))))

    def superseded(self, runner_id: UUID, ref: UUID, token: int) -> None:
        """Have a runner forget an attempt that no member waits for."""
        self._tell(runner_id, SupersededCommand(runner_id, ref, token))

    def elsewhere(self, runner_id: UUID, ref: UUID, token: int, owner: UUID) -> None:
        """Have a runner offer an attempt to the member that owns its run."""
        self._tell(runner_id, Owned(ref, token, owner))

    async def change(self, run_id: UUID, transitions: Iterable[Transition]) -> None:
        """Write what a caller did to a run; returns once it is committed."""
        changes = list(transitions)
        if not changes:
            return
        future = self._callers.change(run_id, changes[-1])
        self._apply(changes)
        await asyncio.shield(future)

    # --- what runners say -----------------------------------------------------------------------

    def attach(self, runner_id: UUID, offer: Offer, inventory: dict[UUID, int]) -> Stream:
        """Hold a runner's stream; one it had before ends."""
        earlier = self.streams.get(runner_id)
        if earlier is not None:
            earlier.close()
        stream = self.streams[runner_id] = Stream(runner_id)
        self.silent_since.pop(runner_id, None)
        if self.shards.peers:
            stream.send(self.known_peers())
        known = dict(inventory)
        for ref, token in inventory.items():
            if self.core.find(ref) is not None:
                stream.send(Owned(ref, token, self.member.id))
            elif not self.shards.whole:
                self.strays.add(runner_id, ref, known.pop(ref))
        self._apply(self.core.attached(runner_id, offer, known))
        self.sweep_now.set()  # a new runner may stand where an old one died
        return stream

    def _drop(self, stream: Stream) -> None:
        """End a stream from this side; its runner comes back and says what it has."""
        stream.close()
        self.detach(stream)

    def detach(self, stream: Stream) -> None:
        """Know that a stream has ended."""
        if self.streams.get(stream.runner) is not stream:
            return
        del self.streams[stream.runner]
        if stream.runner in self.core.runners:
            self.core.detached(stream.runner)
        if stream.runner in self.core.runners:
            self.silent_since[stream.runner] = self.now()
            self.attempts_begun.set()
            self.sweep_now.set()

    def outcomes(self, runner_id: UUID, outcomes: Iterable[Outcome]) -> None:
        """Take a runner's word on attempts."""
        known = []
        for outcome in outcomes:
            if self.core.find(outcome.attempt_ref) is not None:
                known.append(outcome)
            elif self._loading:
                self._late.append((runner_id, outcome))  # it may belong to what is being loaded
            elif not self.shards.whole:
                self.strays.add(runner_id, outcome.attempt_ref, outcome.token)
            else:
                known.append(outcome)
        try:
            self._apply(self.core.outcomes(runner_id, known, now=self.now()))
        except Exception:
            # Memory may stand half-way between two states: the rows do not.
            log.exception("outcomes_not_taken", attempts=len(known))
            self.journal.doubt()

    def declined(self, runner_id: UUID, ref: UUID, token: int) -> None:
        """Take back an attempt."""
        self._apply(self.core.declined(runner_id, ref, token))

    def granted(self, runner_id: UUID, credits_: int, grant_epoch: int) -> None:
        """Take a runner's window."""
        if runner_id in self.core.runners:
            self._apply(self.core.granted(runner_id, credits_, grant_epoch))

    def lost(self, runner_id: UUID) -> None:
        """Take back all attempts of a fenced runner."""
        self.silent_since.pop(runner_id, None)
        self._apply(self.core.lost(runner_id))
        stream = self.streams.get(runner_id)
        if stream is not None:
            stream.close()

    def lock_known(self, node_version_id: UUID, failure: Failure | None) -> None:
        """Let go, or fail, what waited for a node version's lock."""
        self._apply(self.core.lock_known(node_version_id, failure))

    # --- limits ---------------------------------------------------------------------------------

    def hear_of_limits(self, freed: UUID | None = None) -> None:
        """Know that limits changed, or that a place of one was given back elsewhere."""
        if freed is None:
            self.limits_changed = True
        else:
            self.core.limited.stir(freed)
        self.limits_wanted.set()

    def limits_known(self, limits: Sequence[Limit]) -> None:
        """Hold what waits against the limits as they are now."""
        self._apply(self.core.limits_known(limits, now=self.now()))

    def quotas_known(self, quotas: Mapping[UUID, Quota]) -> None:
        """Know the quotas of all tenants as they are now."""
        self.core.quotas_known(quotas)

    def quotas_used(self, used: Mapping[UUID, Amounts]) -> None:
        """End the runs of tenants that used up their day."""
        self._apply(self.core.quotas_used(used))

    def cache_answered(self, answers: Sequence[Answer]) -> None:
        """Take what the cache says."""
        self._apply(self.core.cache_answered(answers, now=self.now()))

    def slots_taken(self, claims: Sequence[Claim]) -> None:
        """Let those go on for whom places were taken."""
        self._apply(self.core.slots_taken(claims, now=self.now()))

    # --- inside ---------------------------------------------------------------------------------

    def now(self) -> float:
        """Give the loop's clock, which every timer of the engine goes by."""
        return asyncio.get_running_loop().time()

    def _apply(self, transitions: Iterable[Transition]) -> None:
        for transition in transitions:
            self.journal.submit(transition)
        if self.core.runs or not self.journal.idle:
            self.work.set()
        if self.core.locks_pending:
            self.locks_wanted.set()
        if self.core.limited.wanted:
            self.limits_wanted.set()
        if self.core.cache.wanted:
            self.cache_wanted.set()
        if self.core.ledger.charged:
            self.quota_charged.set()
        self._set_timer()

    def _set_timer(self) -> None:
        at = self.core.next_timer
        if self._timer is not None:
            if at is not None and self._timer.when() <= at and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer = asyncio.get_running_loop().call_at(at, self._due)

    def _due(self) -> None:
        self._timer = None
        self._apply(self.core.due(now=self.now()))

    def _released(self, committed: Committed) -> None:
        """Let out what hangs on a batch, in order."""
        refused = []
        for t in committed.batch:
            run = self.core.runs.get(t.run_id)
            if t.run_inserts and not self._answer_start(t, run, committed):
                refused.append(t.run_id)
                continue
            self._stamp(t, run, committed.at)
            self._refusals.pop(t.run_id, None)
            if t.frees:
                self.core.limited.freed(Demand(each.limit_id, each.key) for each in t.frees)
                self.limits_freed.update(each.limit_id for each in t.frees)
                self.limits_wanted.set()
            for command in t.commands:
                self._carry_out(command)
            self._callers.written(t)
        for run_id in refused:
            self.journal.drop(run_id)  # what followed its start would be refused as well
            for each in self.core.part_of(run_id):
                self.core.forget(each)
        if refused:
            self._apply(self.core.redispatch())

    def _answer_start(self, t: Transition, run: Run | None, committed: Committed) -> bool:
        if t.run_id not in committed.started:
            self._callers.refused(t.run_id)
            return False
        if run is not None:
            run.created_at = committed.at
            for record in run.records if t.copies else ():
                if record is not None and record.status is NodeStatus.COMPLETED:
                    record.started_at = record.started_at or committed.at
                    record.completed_at = record.completed_at or committed.at
            row = t.run_inserts[0]
            begins = max(committed.at, row.start_at or committed.at)
            if row.timeout_ms is not None:
                run.deadline_at = begins + timedelta(milliseconds=row.timeout_ms)
            if row.start_at is not None:
                delay_s = (begins - committed.at).total_seconds()
                timeout_ms = row.timeout_ms
                begun = self.core.begin_in(run, delay_s, now=self.now(), timeout_ms=timeout_ms)
                self._apply(begun)
        self._callers.started(t.run_id)
        return True

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, AssignCommand):
            self._send_assignment(command)
        elif isinstance(command, Finished):
            run = self.core.forget(command.run_id)
            if run is not None and run.completed_at is not None:
                self.runs_ended[run.status] += 1
                self.ended.keep(run, self.now())
                if self._trace is not None:
                    self._trace(run)
        elif isinstance(command, CacheCommand):
            self.cache_kept.append(command)
            self.cache_wanted.set()
        else:
            self._tell(command.runner, command)

    def _stamp(self, t: Transition, run: Run | None, at: datetime) -> None:
        for record in t.begun:
            record.started_at = at
        final = any(change.final for change in t.run_changes)
        if run is not None:
            if run.started_at is None and _starts(t):
                run.started_at = at
            if final:
                run.completed_at = max(at, run.started_at or at)
            if any(change.cancels for change in t.run_changes):
                run.cancel_requested_at = run.cancel_requested_at or at
        if not t.revision or not self.hub.watched(t.run_id):
            return
        for _, _, view in t.views:
            if view.started_at is None or any(view.id == each.id for each in t.begun):
                view.started_at = at
            if view.status in NODE_FINAL:
                view.completed_at = max(at, view.started_at)
        complete = t.complete_views and run is not None
        row = bool(t.run_changes)
        self.hub.publish(t.run_id, Change(t.revision, t.views, complete, final, row))

    def _tell(self, runner_id: UUID, command: Told) -> None:
        stream = self.streams.get(runner_id)
        if stream is not None:
            stream.send(command)

    def _send_assignment(self, command: AssignCommand) -> None:
        stream = self.streams.get(command.runner)
        run = self.core.runs.get(command.run_id)
        record = run.records[command.slot] if run is not None else None
        if stream is None or run is None or record is None:
            return  # it is sent when the runner comes back
        if record.status is not NodeStatus.RUNNING:
            return  # said twice, before and after its stream broke, and answered already
        if command.token not in (record.token, record.killing):
            return  # a later one follows. One to be killed goes out: its Kill wants an answer
        if not run.has_inputs(command.slot):
            self.take_back(run, command.slot)
            return
        bindings = run.bindings(command.slot)
        self.attempts_begun.set()
        values = run.inputs(command.slot)
        given = tuple([at for at, value in enumerate(values) if value is not None])
        inline = sum([len(value) for value in values if isinstance(value, bytes)])
        place = run.place_of(command.slot)
        first = bindings is run.plan.places[place].inputs
        definition = stream.define(run.plan, place, run.tenant_id, given, first=first)
        spliced = any(isinstance(value, Spliced) for value in values)
        pull = spliced or inline > INLINE_BYTES_MAX
        place_in_trace = run.options.traceparent
        stream.send(
            Assignment(
                attempt_ref=record.id,
                token=command.token,
                definition=definition.number,
                run_id=run.id,
                attempt=record.retry_count + record.delivery_count + 1,
                values=() if pull else tuple([value for value in values if value is not None]),
                pull=pull,
                progress=record.progress or "",
                traceparent=traces.below(place_in_trace, traces.execution_span(run.id))
                if place_in_trace
                else "",
            )
        )

    def take_back(self, run: Run, slot: int) -> None:
        """Take an attempt off its runner that has no inputs: its map or loop ended before it."""
        record = run.records[slot]
        if record is None or record.runner is None:
            return
        token = record.token if record.killing is None else record.killing
        self.superseded(record.runner, record.id, token)
        self._apply(self.core.declined(record.runner, record.id, token))

    def watch(self, run_id: UUID, change: int) -> None:
        """Count a watcher in or out: while there are any, transitions carry what they change."""
        run = self.core.runs.get(run_id)
        if run is not None:
            run.watchers = max(0, run.watchers + change)


def _starts(t: Transition) -> bool:
    """Say whether a transition writes that its run has started, as its row then says."""
    if any(change.starts for change in t.run_changes):
        return True
    return any(row.status == RunStatus.RUNNING for row in t.run_inserts)
