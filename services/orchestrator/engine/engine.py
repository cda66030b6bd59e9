"""The engine: what callers ask, what runners say, and what others learn goes through the core."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple
from uuid import UUID

from services.kit.errors import QflowError, QuotaExceeded, ResourceExhausted, Unavailable
from services.orchestrator.domain.amounts import NOTHING, Amounts
from services.orchestrator.domain.cache_queue import Answer
from services.orchestrator.domain.ledger import Budget, Quota
from services.orchestrator.domain.limits import Claim, Limit
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.partly import Partly
from services.orchestrator.domain.records import Failure
from services.orchestrator.domain.rows import Follows, NodeCopy, RunInsert
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RUN_FINAL
from services.orchestrator.domain.transition import Transition
from services.orchestrator.engine.callers import Starts, try_again
from services.orchestrator.engine.hub import Moved
from services.orchestrator.engine.owner import Owner
from services.orchestrator.engine.streams import Owned, Stream

JOURNAL_BYTES_MAX: Final = 8 * 1024 * 1024
STREAM_PAUSE_BYTES: Final = 32 * 1024 * 1024
_END_MAX_S: Final = 5.0
_SHARD_WAIT_S: Final = 5.0
# Of many starts at once so many share a turn of the loop, a few milliseconds: a flush of its own.
_START_SLICE: Final = 250


class Beginning(NamedTuple):
    """A run as it is handed to the engine, with its row."""

    run: Run
    row: RunInsert
    follows: tuple[Follows, ...] = ()
    copies: Sequence[NodeCopy] = ()
    partly: Sequence[Partly] = ()
    budget: Budget | None = None


class Engine(Owner):
    """One orchestrator's actor, on one event loop; only what says `async` waits."""

    # --- what callers ask -----------------------------------------------------------------------

    async def start(
        self,
        run: Run,
        row: RunInsert,
        follows: tuple[Follows, ...] = (),
        copies: Sequence[NodeCopy] = (),
        partly: Sequence[Partly] = (),
        budget: Budget | None = None,
    ) -> None:
        """Start a run; returns once it is committed, and what it follows was so in that moment.

        Raises `NotStarted` when it was refused; the caller looks why.
        """
        starts = Starts(1)
        beginning = Beginning(run, row, follows, copies, partly, budget)
        self._begin(beginning, await self._draw(row.shard), starts)
        await starts.done
        for error in starts.refused.values():
            raise error

    async def start_many(self, beginnings: Sequence[Beginning]) -> Mapping[UUID, Exception]:
        """Start runs; returns once all are committed or refused: which were, and why, by run."""
        starts = Starts(len(beginnings))
        for number, each in enumerate(beginnings, 1):
            try:
                shard = await self._draw(each.row.shard)
            except Unavailable as error:
                for left in beginnings[number - 1 :]:  # none waits for a shard as long once more
                    starts.answer(left.run.id, error)
                break
            try:
                self._begin(each, shard, starts)
            except QflowError as error:
                starts.answer(each.run.id, error)
            if not number % _START_SLICE:
                await asyncio.sleep(0)  # streams and timers have their turn
        if beginnings:
            await starts.done
        return starts.refused

    def _begin(self, beginning: Beginning, shard: int, starts: Starts) -> None:
        run, row, follows, copies, partly, budget = beginning
        if self.recovering:
            raise try_again()
        if self.journal.pending_bytes > JOURNAL_BYTES_MAX:
            raise ResourceExhausted(
                "JOURNAL_FULL", "the engine is behind with writing; try again", retry_after_s=1.0
            )
        run.shard = shard  # the row's own only says how starts are spread
        self._callers.start(run.id, starts)
        begun = self.core.start(
            run,
            row if row.shard == shard else row._replace(shard=shard),
            now=self.now(),
            follows=follows,
            copies=copies,
            partly=partly,
            budget=budget,
        )
        self._apply(begun)

    async def reserve(self, run: Run, asked: Amounts) -> Budget | None:
        """Take what a run may consume out of what its tenant has left; None without a limit.

        Raises `QuotaExceeded` where that is too little.
        """
        for answer in (await self.reserve_many([(run, asked)])).values():
            if isinstance(answer, QuotaExceeded):
                raise answer
            return answer
        return None

    async def reserve_many(
        self, wanted: Iterable[tuple[Run, Amounts]]
    ) -> Mapping[UUID, Budget | QuotaExceeded]:
        """Do the same for each of many runs, in their order; those without a limit are left out."""
        if self.treasury is None:
            return {}
        ledger = self.core.ledger
        limited = [
            (run, asked)
            for run, asked in wanted
            if asked != NOTHING or run.tenant_id in ledger.quotas
        ]
        return await self.treasury.reserve(ledger, self.member.id, limited) if limited else {}

    async def unreserve(self, runs: Collection[UUID]) -> None:
        """Give that back: these runs did not begin."""
        assert self.treasury is not None
        await self.treasury.release(self.member.id, runs)

    async def cancel(self, run_id: UUID) -> None:
        """Ask a run to stop; returns once that is committed."""
        if self.recovering:
            raise try_again()
        run = self.core.runs.get(run_id)
        if run is None and self._loading:  # it may be the one that is read again
            raise try_again()
        if run is None or run.cancel_requested_at is not None:
            return
        future = self._callers.cancelling(run_id)
        if future is None and run.status in RUN_FINAL:
            # It is on its way to disk, from here or, where it has moved, as another has it.
            with self.hub.subscribed(run_id, ends_only=True) as end, suppress(Moved):
                await end.next(_END_MAX_S)
            return
        if future is None:
            future = self._callers.cancel(run_id)
            self._apply(self.core.cancel(run_id))
        await asyncio.shield(future)

    async def change(self, run_id: UUID, transitions: Iterable[Transition]) -> None:
        """Write what a caller did to a run; returns once it is committed."""
        changes = list(transitions)
        fault = self.core.fault_of(run_id)
        if fault is not None:
            self._apply(changes)
            raise fault.error  # the run is read again, as it was before
        if not changes:
            return
        future = self._callers.change(run_id, changes[-1])
        self._apply(changes)
        await asyncio.shield(future)

    def watch(self, run_id: UUID, change: int) -> None:
        """Count a watcher in or out: while there are any, transitions carry what they change."""
        run = self.core.runs.get(run_id)
        if run is not None:
            run.watchers = max(0, run.watchers + change)

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

    # --- other members --------------------------------------------------------------------------

    def meet(self, peers: Mapping[UUID, str]) -> None:
        """Know the other members, and have runners know them."""
        if self.shards.meet(peers):
            self.tell_all(self.known_peers())

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

    def declined(self, runner_id: UUID, ref: UUID, token: int) -> None:
        """Take back an attempt."""
        self._apply(self.core.declined(runner_id, ref, token))

    def granted(self, runner_id: UUID, credits_: int, grant_epoch: int) -> None:
        """Take a runner's window."""
        if runner_id in self.core.runners:
            self._apply(self.core.granted(runner_id, credits_, grant_epoch))

    def lost(self, runner_id: UUID, *, in_order: bool = False) -> None:
        """Take back all attempts of a runner that was fenced, or that has left in order."""
        self.silent_since.pop(runner_id, None)
        self._apply(self.core.lost(runner_id, in_order=in_order))
        stream = self.streams.get(runner_id)
        if stream is not None:
            stream.close()

    # --- what is known by now -------------------------------------------------------------------

    def lock_known(self, node_version_id: UUID, failure: Failure | None) -> None:
        """Let go, or fail, what waited for a node version's lock."""
        self._apply(self.core.lock_known(node_version_id, failure))

    def limits_known(self, limits: Sequence[Limit]) -> None:
        """Hold what waits against the limits as they are now."""
        self._apply(self.core.limits_known(limits, now=self.now()))

    def quotas_known(self, quotas: Mapping[UUID, Quota]) -> None:
        """Know the quotas of all tenants as they are now."""
        self.core.quotas_known(quotas)

    def quotas_used(self, used: Mapping[UUID, Amounts]) -> None:
        """End the runs of tenants that used up their day."""
        self._apply(self.core.quotas_used(used))

    def slots_taken(self, claims: Sequence[Claim]) -> None:
        """Let those go on for whom places were taken."""
        self._apply(self.core.slots_taken(claims, now=self.now()))

    def cache_answered(self, answers: Sequence[Answer]) -> None:
        """Take what the cache says."""
        self._apply(self.core.cache_answered(answers, now=self.now()))
