"""Dispatch: everything that a slot waits for until a runner takes it.

That is its node version's lock file, a cache look-up, slots of limits, and a runner's credit, in
this order. Limit slots are released when its row or its run ends.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from services.orchestrator.domain import groups, planner
from services.orchestrator.domain.cache_queue import CacheQueue
from services.orchestrator.domain.credits import ReadyQueue, Runner
from services.orchestrator.domain.effects import Effects, Ready
from services.orchestrator.domain.families import Families
from services.orchestrator.domain.ledger import Ledger
from services.orchestrator.domain.limit_lanes import WHOLE_RUN, Waiting
from services.orchestrator.domain.limit_queue import LimitQueue
from services.orchestrator.domain.limits import Claim, Demand, Lane, Limits
from services.orchestrator.domain.needs import takes
from services.orchestrator.domain.out import Out
from services.orchestrator.domain.rows import SlotFree, SlotUse
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.domain.timers import Timers
from services.orchestrator.domain.transition import Transition

TOKENS_PER_EPOCH: Final = 1 << 40
_GIVEABLE: Final = frozenset({NodeStatus.RETRYING, NodeStatus.PENDING})


class Dispatch(Families):
    """The runs of one orchestrator, the runners, and what waits for them."""

    def __init__(
        self,
        *,
        epoch: int,
        new_id: Callable[[], UUID],
        draw: Callable[[], float],
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__()
        self.epoch = epoch  # of the member, when this memory was loaded
        self.runners: dict[UUID, Runner] = {}
        self.timers = Timers(self.runs)
        self.ready = ReadyQueue()
        self.ledger = Ledger()  # quotas and budgets
        self.limits = Limits()
        self.limited = LimitQueue()  # what waits for limit slots
        self.held: dict[UUID, Claim] = {}  # limit slots, by the run or node row that holds them
        self._freeing: dict[UUID, list[UUID]] = {}  # not yet committed, by run
        self.cache = CacheQueue()  # look-ups before dispatch
        # Slots that wait for a lock file, by node version and run.
        self.locks_pending: dict[UUID, dict[UUID, set[int]]] = {}
        self.unlocked: set[UUID] = set()  # node versions with a lock file, or that need none
        # Fenced runners, which may not know it yet and get nothing more.
        self.fenced: set[UUID] = set()
        self._emptying: UUID | None = None  # the runner that gets nothing until it is empty
        self._refs: dict[UUID, tuple[Run, int]] = {}
        self._token = epoch * TOKENS_PER_EPOCH
        self._now = 0.0  # as of the last event that had a time
        self._clock = clock
        self.fx = Effects(new_id=new_id, draw=draw, next_token=self._next_token, wall=wall)

    def pythons(self) -> frozenset[str]:
        """Return the Python versions of the attached runners."""
        return frozenset().union(*(each.pythons for each in self.runners.values()))

    def kept(self) -> list[Runner]:
        """Return the runners reserved for an attempt that must run alone."""
        return [
            each
            for each in self.runners.values()
            if each.connected and (each.exclusive or each.incarnation == self._emptying)
        ]

    def runs_alone(self) -> list[Run]:
        """Return the runs with attempts that run alone on a runner, then those that wait to."""
        refs = [ref for each in self.runners.values() if each.exclusive for ref in each.in_flight]
        found = [self._refs[ref][0] for ref in refs if ref in self._refs]
        found += [self.runs[run_id] for run_id, *_ in self.ready.alone() if run_id in self.runs]
        return list({run.id: run for run in found}.values())

    def find(self, ref: UUID) -> tuple[Run, int] | None:
        """Return the run and slot of a node row."""
        return self._refs.get(ref)

    def forget(self, run_id: UUID) -> Run | None:
        """Drop a run from memory: it has ended or is to be reloaded."""
        run = self.runs.pop(run_id, None)
        if run is None:
            return None
        for record in run.records:
            if record is not None:
                self._refs.pop(record.id, None)
                if self.held:
                    self._let_go(record.id)
                if record.runner is not None and record.status is NodeStatus.RUNNING:
                    self._free(record.runner, record.id)
        self._let_go(run_id)
        self.limited.abandoned.extend(self._freeing.pop(run_id, ()))
        self.ledger.budgets.pop(run_id, None)
        self.limits.forget(run_id)
        self.limited.forget(run_id, whole=True)
        self.cache.forget(run_id)
        self.ready.forget(run_id)
        self.timers.forget(run_id)
        if self.locks_pending:
            self._forget_locks(run_id)
        return run

    def _forget_locks(self, run_id: UUID) -> None:
        for version in [each for each, runs in self.locks_pending.items() if run_id in runs]:
            del self.locks_pending[version][run_id]
            if not self.locks_pending[version]:
                del self.locks_pending[version]

    def _unqueue(self, run_id: UUID) -> dict[int, int]:
        """Drop everything that slots of a run wait for; the run itself keeps waiting.

        Returns the turns of its slots in the queues of limits.
        """
        self.ready.forget(run_id)
        turns = self.limited.forget(run_id)
        self.cache.unask(run_id)
        if self.locks_pending:
            self._forget_locks(run_id)
        run = self.runs.get(run_id)
        if run is not None:
            run.queued.clear()
        return turns

    # --- what a slot waits for ------------------------------------------------------------------

    def _push(self, ready: Ready) -> None:
        """Queue a slot, unless it is queued already.

        Queued twice, it would begin twice: the second entry would start its next attempt early.
        """
        if ready.slot not in ready.run.queued:
            self._go_through(ready)

    def _go_through(self, ready: Ready) -> None:
        """Queue a slot for the next thing that it has to wait for."""
        try:
            self._queue(ready)
        except Exception as error:  # noqa: BLE001  # as in `_step`, which would cost here
            self.fault(ready.run.id, error)

    def _queue(self, ready: Ready) -> None:
        run, slot, alone = ready
        if (self.faults and self._is_gone(run.id)) or not run.may_begin(slot):
            run.queued.discard(slot)
            return
        definition = run.place(slot)
        version = definition.node_version_id
        if slot not in run.queued:  # else it moves to another queue, and its time goes on
            run.queued.add(slot)
            self._bound_queueing(run, slot)
        if version in self.unlocked:
            if definition.cache_ttl_ms is not None and self.cache.asks(run, slot):
                return
            lane = self.limits.of_slot(run, slot)
            if lane:
                turn = run.limit_turns.pop(slot, 0)
                self._wait(lane, run, Waiting(run.id, slot, alone, since=turn))
            else:
                self._await_runner(run, slot, alone=alone)
        else:
            self.locks_pending.setdefault(version, {}).setdefault(run.id, set()).add(slot)

    def _bound_queueing(self, run: Run, slot: int) -> None:
        """Set the timer of a slot's queue timeout; time while paused does not count."""
        longest_ms = run.place(slot).queue_timeout_ms
        if longest_ms is not None:
            left_s = run.queue_left_s.pop(slot, longest_ms / 1000)
            self.timers.set_queued(self._time() + left_s, run.id, slot)

    def _await_runner(self, run: Run, slot: int, *, alone: bool) -> None:
        self.ready.push(
            run.id,
            slot,
            run.place(slot).wanted,
            tenant_id=run.tenant_id,
            owner=run.created_by,
            priority=run.options.priority,
            alone=alone,
        )

    # --- runners --------------------------------------------------------------------------------

    def _give_out(self, out: Out) -> None:
        """Assign queued slots to runners while there are both."""
        if self._emptying is not None or self.ready.has_alone:
            self._dispatch_alone(out)
        while self.ready.size and self._dispatch_one(out):
            pass

    def _dispatch_one(self, out: Out) -> bool:
        able = [
            each
            for each in self.runners.values()
            if each.free > 0 and not each.exclusive and each.incarnation != self._emptying
        ]
        if len(able) > 1:
            able.sort(key=lambda each: -each.free)
        for runner in able:
            found = self.ready.take(runner.offer)
            if found is not None:
                self._give(*found, runner, out, alone=False)
                return True
        return False

    def _dispatch_alone(self, out: Out) -> None:
        """Empty one runner at a time for the oldest slot that must run alone, and assign it."""
        emptying, self._emptying = self._emptying, None
        for run_id, place, wanted in self.ready.alone():
            if self.faults and self._is_gone(run_id):
                continue
            able = [
                each
                for each in self.runners.values()
                if each.connected
                and each.credits > 0
                and takes(each.offer, wanted)
                and not each.exclusive
            ]
            idle = [each for each in able if not each.in_flight]
            if not able:
                continue
            if idle:
                self.ready.take_alone(run_id, place)
                idle[0].exclusive = self._give(run_id, place, idle[0], out, alone=True)
            else:
                # Prefer the one that is being emptied already: another would take longer.
                first = min(
                    able, key=lambda each: (each.incarnation != emptying, len(each.in_flight))
                )
                self._emptying = first.incarnation
                return

    def _give(self, run_id: UUID, slot: int, runner: Runner, out: Out, *, alone: bool) -> bool:
        claim = self.limited.claim(run_id, slot)
        try:
            given = self._give_claimed(run_id, slot, runner, out, alone=alone, claim=claim)
        except Exception as error:  # noqa: BLE001  # as in `_step`, which would cost here
            used = any(each is claim for each in self.held.values())
            self.fault(run_id, error)
            if used:  # its limit slots were released with the forgotten run
                return False
            given = False
        if claim is not None and not given:
            self.limited.abandon(claim)
        return given and not (self.faults and self._is_gone(run_id))

    def _give_claimed(
        self, run_id: UUID, slot: int, runner: Runner, out: Out, *, alone: bool, claim: Claim | None
    ) -> bool:
        run = self.runs.get(run_id)
        if run is None:
            return False
        run.queued.discard(slot)
        if not is_wanted(run, slot):
            return False
        lane = self.limits.of_slot(run, slot) if claim is None else ()
        if lane:  # a limit was created while it waited for a runner
            run.queued.add(slot)
            self._wait(lane, run, Waiting(run_id, slot, alone))
            return False
        self.timers.taken(run_id, slot)
        group = run.groups.get(slot)
        if group is not None:
            group.queued = False
            if not group.room:
                return False
            slot = groups.next_part(run, group)
        t = out.of(run_id)
        record = planner.assign(run, slot, t, self.fx, runner=runner.incarnation, alone=alone)
        self._refs[record.id] = (run, slot)
        runner.in_flight[record.id] = record.token
        if claim is not None:
            self._use(claim, run_id, record.id, t)
        if group is not None:
            groups.fill(run, group, t, self.fx)
            ready, self.fx.ready = self.fx.ready, []
            for each in ready:
                self._push(each)
        return True

    def _free(self, runner_id: UUID, ref: UUID) -> None:
        runner = self.runners.get(runner_id)
        if runner is None:
            return
        runner.in_flight.pop(ref, None)
        if not runner.in_flight:
            runner.exclusive = False
            if not runner.connected:
                del self.runners[runner_id]

    def _time(self) -> float:
        """Return the time to count timers from; the last event that had one may be hours old."""
        return self._now if self._clock is None else self._clock()

    def _next_token(self) -> int:
        self._token += 1
        return self._token

    # --- slots of limits ------------------------------------------------------------------------

    def _waits_for_limit(self, run: Run) -> bool:
        """Queue a run that needs a limit slot itself before it begins; returns whether it waits."""
        if run.id in self.held:  # it may be asleep again if the clock was set back
            return False
        lane = self.limits.of_run(run)
        if lane:
            run.asleep = True
            turn = run.limit_turns.setdefault(WHOLE_RUN, self.limited.new_turn())
            self._wait(lane, run, Waiting(run.id, WHOLE_RUN, since=turn))
        return bool(lane)

    def _wait(self, lane: Lane, run: Run, waiting: Waiting) -> None:
        self.limited.push(
            lane,
            waiting,
            tenant_id=run.tenant_id,
            owner=(run.tenant_id, run.created_by),
            priority=run.options.priority,
        )

    def _use(self, claim: Claim, run_id: UUID, row: UUID | None, t: Transition) -> None:
        self.held[row or run_id] = claim
        t.uses = (*t.uses, *(SlotUse(each, run_id, row) for each in claim.slots))

    def _give_back(self, row: UUID, t: Transition) -> None:
        """Release the limit slots of a run or node row, with the change that ends it."""
        claim = self.held.pop(row, None)
        if claim is not None:
            freed = zip(claim.slots, claim.lane, strict=True)
            t.frees = (*t.frees, *(SlotFree(slot, *demand) for slot, demand in freed))
            self._freeing.setdefault(t.run_id, []).extend(claim.slots)

    def freed(self, t: Transition) -> None:
        """Make the limit slots that a committed change released available to others.

        Until the commit, a run that is forgotten may still hold slots according to its rows.
        """
        self.limited.freed(Demand(each.limit_id, each.key) for each in t.frees)
        free = {each.id for each in t.frees}
        left = [each for each in self._freeing.pop(t.run_id, ()) if each not in free]
        if left:
            self._freeing[t.run_id] = left

    def _let_go(self, row: UUID) -> None:
        """Forget the limit slots of a row; those not written to it are released."""
        claim = self.held.pop(row, None)
        if claim is not None:
            self.limited.abandon(claim)


def is_wanted(run: Run, slot: int) -> bool:
    """Return whether a queued slot may still begin: it was not paused or ended meanwhile."""
    if not run.may_begin(slot):
        return False
    record = run.records[slot]
    return record is None or record.status in _GIVEABLE or slot in run.groups
