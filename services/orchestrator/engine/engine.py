"""The engine: passes calls, runner messages and news from the loops to the core."""

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
# How many runs of a bulk start begin per turn of the event loop: a few milliseconds, one flush.
_START_SLICE: Final = 250


class Beginning(NamedTuple):
    """A run to start, with its row."""

    run: Run
    row: RunInsert
    follows: tuple[Follows, ...] = ()
    copies: Sequence[NodeCopy] = ()
    partly: Sequence[Partly] = ()
    budget: Budget | None = None


class Engine(Owner):
    """The actor of one orchestrator, on one event loop; only `async` methods wait."""

    # --- calls ----------------------------------------------------------------------------------

    async def start(
        self,
        run: Run,
        row: RunInsert,
        follows: tuple[Follows, ...] = (),
        copies: Sequence[NodeCopy] = (),
        partly: Sequence[Partly] = (),
        budget: Budget | None = None,
    ) -> None:
        """Start a run; returns once it is committed.

        Raises `NotStarted` when the flush did not insert it, because a version it `follows` has
        changed or its request id or business key is taken; the caller finds out which.
        """
        starts = Starts(1)
        beginning = Beginning(run, row, follows, copies, partly, budget)
        self._begin(beginning, await self._draw(row.shard), starts)
        await starts.done
        for error in starts.refused.values():
            raise error

    async def start_many(self, beginnings: Sequence[Beginning]) -> Mapping[UUID, Exception]:
        """Start runs; returns once each is committed or refused: errors by refused run."""
        starts = Starts(len(beginnings))
        for number, each in enumerate(beginnings, 1):
            try:
                shard = await self._draw(each.row.shard)
            except Unavailable as error:
                for left in beginnings[number - 1 :]:  # the rest would wait as long, in vain
                    starts.answer(left.run.id, error)
                break
            try:
                self._begin(each, shard, starts)
            except QflowError as error:
                starts.answer(each.run.id, error)
            if not number % _START_SLICE:
                await asyncio.sleep(0)  # let streams and timers run
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
        run.shard = shard  # the shard in the row was only a proposal
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
        """Reserve a run's budget from its tenant's quota; None if neither limits it.

        Raises `QuotaExceeded` when too little of the quota is left.
        """
        for answer in (await self.reserve_many([(run, asked)])).values():
            if isinstance(answer, QuotaExceeded):
                raise answer
            return answer
        return None

    async def reserve_many(
        self, wanted: Iterable[tuple[Run, Amounts]]
    ) -> Mapping[UUID, Budget | QuotaExceeded]:
        """Reserve budgets of several runs, in order; runs without a limit are left out."""
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
        """Release the budgets of runs that were not started."""
        assert self.treasury is not None
        await self.treasury.release(self.member.id, runs)

    async def cancel(self, run_id: UUID) -> None:
        """Request cancellation of a run; returns once the request is committed."""
        if self.recovering:
            raise try_again()
        run = self.core.runs.get(run_id)
        if run is None and self._loading:  # it may be among the runs being reloaded
            raise try_again()
        if run is None or run.cancel_requested_at is not None:
            return
        future = self._callers.cancelling(run_id)
        if future is None and run.status in RUN_FINAL:
            # Its end is being written here or, if its shard has moved, by another member.
            with self.hub.subscribed(run_id, ends_only=True) as end, suppress(Moved):
                await end.next(_END_MAX_S)
            return
        if future is None:
            future = self._callers.cancel(run_id)
            self._apply(self.core.cancel(run_id))
        await asyncio.shield(future)

    async def change(self, run_id: UUID, transitions: Iterable[Transition]) -> None:
        """Write a caller's change to a run; returns once it is committed."""
        changes = list(transitions)
        fault = self.core.fault_of(run_id)
        if fault is not None:
            self._apply(changes)
            raise fault.error  # the run is reloaded as its rows say
        if not changes:
            return
        future = self._callers.change(run_id, changes[-1])
        self._apply(changes)
        await asyncio.shield(future)

    def watch(self, run_id: UUID, change: int) -> None:
        """Add to a run's count of watchers; while it has any, its transitions carry views."""
        run = self.core.runs.get(run_id)
        if run is not None:
            run.watchers = max(0, run.watchers + change)

    async def _draw(self, wanted: int) -> int:
        """Return an owned shard for a new run, waiting for one if there is none.

        The caller must use it before it awaits anything else: the shard may move after that.
        """
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
                    "this orchestrator owns no shard yet; try again",
                    retry_after_s=1.0,
                ) from None

    # --- other members --------------------------------------------------------------------------

    def meet(self, peers: Mapping[UUID, str]) -> None:
        """Set the addresses of the other members; tells runners if they changed."""
        if self.shards.meet(peers):
            self.tell_all(self.known_peers())

    # --- messages of runners --------------------------------------------------------------------

    def attach(self, runner_id: UUID, offer: Offer, inventory: dict[UUID, int]) -> Stream:
        """Register a runner's new stream and close its previous one.

        `inventory` is what the runner has: tokens by attempt.
        """
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
        self.sweep_now.set()  # it may have replaced a runner that died
        return stream

    def declined(self, runner_id: UUID, ref: UUID, token: int) -> None:
        """Take back an attempt that a runner declined."""
        self._apply(self.core.declined(runner_id, ref, token))

    def granted(self, runner_id: UUID, credits_: int, grant_epoch: int) -> None:
        """Set how many attempts a runner accepts."""
        if runner_id in self.core.runners:
            self._apply(self.core.granted(runner_id, credits_, grant_epoch))

    def lost(self, runner_id: UUID, *, in_order: bool = False) -> None:
        """Take back all attempts of a runner that was fenced, or that left (`in_order`)."""
        self.silent_since.pop(runner_id, None)
        self._apply(self.core.lost(runner_id, in_order=in_order))
        stream = self.streams.get(runner_id)
        if stream is not None:
            stream.close()

    # --- news from the loops --------------------------------------------------------------------

    def lock_known(self, node_version_id: UUID, failure: Failure | None) -> None:
        """Dispatch what waited for a node version's lock file, or fail it with `failure`."""
        self._apply(self.core.lock_known(node_version_id, failure))

    def limits_known(self, limits: Sequence[Limit]) -> None:
        """Replace the known limits, and check what waits against them."""
        self._apply(self.core.limits_known(limits, now=self.now()))

    def quotas_known(self, quotas: Mapping[UUID, Quota]) -> None:
        """Replace the known quotas, by tenant."""
        self.core.quotas_known(quotas)

    def quotas_used(self, used: Mapping[UUID, Amounts]) -> None:
        """Set today's usage by tenant, and end the runs of tenants whose quota is used up."""
        self._apply(self.core.quotas_used(used))

    def slots_taken(self, claims: Sequence[Claim]) -> None:
        """Dispatch what was granted slots of its limits."""
        self._apply(self.core.slots_taken(claims, now=self.now()))

    def cache_answered(self, answers: Sequence[Answer]) -> None:
        """Handle answers of the result cache."""
        self._apply(self.core.cache_answered(answers, now=self.now()))
