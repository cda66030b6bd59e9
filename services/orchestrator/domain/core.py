"""The engine's core: all runs of one orchestrator as one step function over events.

An event goes in with the time; transitions come out, each of one run, in the order in which they
must be written. The core never waits, writes or sends: the journal commits a transition, and only
then do its commands go out. So memory may run ahead of the database, but nothing leaves it early.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from services.orchestrator.domain import (
    cache_queue,
    children,
    controls,
    failed_edges,
    planner,
    routes,
    unusable,
    waits,
)
from services.orchestrator.domain.amounts import Amounts
from services.orchestrator.domain.cache_queue import Answer
from services.orchestrator.domain.children import EndedChild
from services.orchestrator.domain.credits import Runner
from services.orchestrator.domain.dispatch import Dispatch
from services.orchestrator.domain.effects import Due, Ready, Start
from services.orchestrator.domain.ledger import Budget, Quota
from services.orchestrator.domain.limit_lanes import WHOLE_RUN
from services.orchestrator.domain.limits import Claim, Limit, Limits
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.out import Out
from services.orchestrator.domain.partly import Partly, resume
from services.orchestrator.domain.plan import Kind, Phase
from services.orchestrator.domain.rows import (
    AssignCommand,
    Finished,
    Follows,
    KillCommand,
    NodeCopy,
    RunInsert,
    Spend,
    SupersededCommand,
    Transition,
)
from services.orchestrator.domain.state import (
    NO_USAGE,
    Failure,
    FileValue,
    NodeRecord,
    Run,
    Signal,
    Usage,
)
from services.orchestrator.domain.status import NODE_FINAL, RUN_FINAL, NodeStatus, RunStatus
from services.orchestrator.domain.timers import BEGIN, DEADLINE, Timer

SHARDS: Final = 64
_MICROSECOND: Final = timedelta(microseconds=1)
_NOTHING: Final = Offer(pythons=frozenset())  # of a runner that is known by its attempts alone
_UNDER_WAY: Final = frozenset({NodeStatus.RUNNING, NodeStatus.RETRYING, NodeStatus.WAITING})


class Outcome(NamedTuple):
    """What a runner says of an attempt."""

    attempt_ref: UUID
    token: int
    result: tuple[bytes, ...] | FileValue | Failure
    usage: Usage


class Core(Dispatch):
    """What happens to the runs of one orchestrator."""

    def __init__(
        self,
        *,
        epoch: int,
        new_id: Callable[[], UUID],
        draw: Callable[[], float],
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(epoch=epoch, new_id=new_id, draw=draw, wall=wall, clock=clock)
        self._adopted: dict[UUID, None] = {}  # runs that were read from rows and not yet revived
        self._ended_children: dict[UUID, EndedChild] = {}

    # --- events of runs: each returns the transitions that it makes -----------------------------

    def start(
        self,
        run: Run,
        row: RunInsert,
        *,
        now: float,
        follows: tuple[Follows, ...] = (),
        copies: Sequence[NodeCopy] = (),
        partly: Sequence[Partly] = (),
        budget: Budget | None = None,
    ) -> list[Transition]:
        """Begin a run: its row, what it takes over, its first nodes where a runner has a credit."""
        self._now = now
        if budget is not None:
            self.ledger.budgets[run.id] = budget
        out = Out()
        with self._step(run.id):
            self._begin(run, row, out, follows, copies, partly)
        return self._dispatch(out)

    def _begin(
        self,
        run: Run,
        row: RunInsert,
        out: Out,
        follows: tuple[Follows, ...] = (),
        copies: Sequence[NodeCopy] = (),
        partly: Sequence[Partly] = (),
    ) -> None:
        self.runs[run.id] = run
        run.revision = 1
        t = Transition(run.id, revision=1, follows=follows)
        out.add(t)
        t.run_inserts = [row]
        for each in copies:
            t.copy(each)
        if row.start_at is not None:  # its time is told by the database's clock: `begin_in`
            run.asleep = True
            return
        if row.timeout_ms is not None:
            self.timers.set(self._time() + row.timeout_ms / 1000, run.id, DEADLINE)
        resume(run, partly, t, self.fx)
        if self._waits_for_limit(run):
            return
        if t.copies or run.groups:
            routes.revive(run, t, self.fx)
        else:
            self.fx.todo.extend(run.plan.roots)
            routes.settle(run, t, self.fx)
        if t.run_changes:  # over already: no statement changes a row that it inserts
            end = out.after(run.id)
            end.revision = run.revision
            t.run_changes, end.run_changes = (), t.run_changes
            end.commands = [each for each in t.commands if isinstance(each, Finished)]
            t.commands = [each for each in t.commands if not isinstance(each, Finished)]

    def begin_in(
        self, run: Run, delay_s: float, *, now: float, timeout_ms: int | None
    ) -> list[Transition]:
        """Begin a run that was to start at a time, once that is so many seconds away."""
        begins = now + max(delay_s, 0.0)
        self.timers.set(begins, run.id, BEGIN)
        if timeout_ms is not None:
            self.timers.set(begins + timeout_ms / 1000, run.id, DEADLINE)
        return self.due(now=now)

    def due(self, *, now: float) -> list[Transition]:
        """Let the timers run off whose time has come."""
        self._now = now
        out = Out()
        for timer in self.timers.due(now):
            run = self.runs.get(timer.run_id)
            if run is None or run.status in RUN_FINAL:
                continue
            with self._step(run.id):
                self._run_due(run, timer, out)
        return self._dispatch(out)

    def _run_due(self, run: Run, timer: Timer, out: Out) -> None:
        if timer.slot == BEGIN:
            self._begin_late(run, out)
        elif timer.slot == DEADLINE:
            if not (run.closing or run.cancelling or run.expired or run.failure):
                t = out.of(run.id)
                planner.stop(run, t, self.fx, cancel=False)
                self._unqueue(run.id)
        elif timer.slot < len(run.records):
            self._slot_due(run, timer, out)

    def _begin_late(self, run: Run, out: Out) -> None:
        """Begin a run whose time has come, or that no limit holds up any more."""
        if run.asleep and not self._waits_for_limit(run):
            run.asleep = False
            routes.revive(run, out.of(run.id), self.fx)

    def _slot_due(self, run: Run, timer: Timer, out: Out) -> None:
        slot = timer.slot
        record = run.records[slot]
        if timer.what is Due.QUEUE:
            if self.timers.still_queued(timer) and run.may_begin(slot):
                self.timers.taken(run.id, slot)
                planner.wait_too_long(run, slot, out.of(run.id), self.fx)
        elif record is None or not run.is_open(slot):
            return
        elif timer.what is Due.TOTAL:
            planner.take_too_long(run, slot, out.of(run.id), self.fx)
        elif record.status is NodeStatus.RETRYING:
            self._repeat(run, slot, out, alone=record.alone and record.delivery_count > 0)
        elif record.status is NodeStatus.WAITING and record.due_ms is not None:
            t = out.of(run.id)
            controls.wait_over(run, slot, t, self.fx)

    def _repeat(self, run: Run, slot: int, out: Out, *, alone: bool) -> None:
        if not run.may_begin(slot):
            return  # it is paused: what resumes it looks at this slot again
        if run.place(slot).kind is Kind.PYTHON:
            self._push(Ready(run, slot, alone))
        else:
            planner.again(run, slot, out.of(run.id), self.fx)

    @property
    def next_timer(self) -> float | None:
        """When `due` is to be called next."""
        return self.timers.next_at

    # --- what runners say -------------------------------------------------------------------------

    def outcomes(
        self, runner_id: UUID, outcomes: Iterable[Outcome], *, now: float
    ) -> list[Transition]:
        """Take a runner's word on attempts; where one is late the runner is told to forget it.

        It is told behind what was decided before: only once that is durable is this one late. What
        is said of one run is one change of it, and what all let begin is given out once.
        """
        self._now = now
        out = Out()
        for outcome in outcomes:
            known = self._refs.get(outcome.attempt_ref)
            if known is None:
                if not (self.faults and self._is_faulty(outcome.attempt_ref)):
                    out.add(_late(runner_id, outcome))
                continue
            run, slot = known
            try:
                self._take_outcome(runner_id, outcome, run, slot, out)
            except Exception as error:  # noqa: BLE001  # as in `_step`, which would cost here
                self.fault(run.id, error)
        return self._dispatch(out)

    def _take_outcome(
        self, runner_id: UUID, outcome: Outcome, run: Run, slot: int, out: Out
    ) -> None:
        record = run.records[slot]
        assert record is not None
        current = record.token if record.killing is None else record.killing
        if (
            record.status is not NodeStatus.RUNNING
            or outcome.token != current
            or record.runner != runner_id
        ):
            # A repetition of what is on its way to disk gets its Ack from that; all else is late.
            if record.runner != runner_id or outcome.token != record.token:
                out.add(_late(runner_id, outcome))
            return
        t = out.of(run.id)
        result = unusable.checked(run, slot, outcome.result)
        self._free(runner_id, record.id)
        spent = self._charge(run, record, outcome.usage, t) if self.ledger else None
        if record.killing is not None:
            planner.confirm_stopped(run, slot, t, self.fx, usage=outcome.usage)
        elif isinstance(result, Failure):
            failure = failed_edges.named(run, slot, result)
            planner.fail(run, slot, t, self.fx, failure=failure, usage=outcome.usage)
        else:
            planner.complete(run, slot, t, self.fx, output=result, usage=outcome.usage)
            if self.cache.digests:
                t.commands.extend(self.cache.keep(run, slot, result))
        if self.held:
            self._give_back(record.id, t)
        if spent is not None:
            self._exhaust(self._root(run), spent, out)

    def _charge(self, run: Run, record: NodeRecord, usage: Usage, t: Transition) -> Failure | None:
        """Count what an attempt consumed; says why its run ends where that was the last of it."""
        wall_us = 0
        if record.started_at is not None:
            wall_us = max(0, (self.fx.wall() - record.started_at) // _MICROSECOND)
        return self.ledger.charge(run, self._root(run), usage, wall_us=wall_us, t=t)

    def _exhaust(self, root: Run, failure: Failure, out: Out) -> None:
        """Let nothing more begin of what used up what it may; what runs ends."""
        for run in self._family(root.id):
            if not (run.closing or run.cancelling or run.expired or run.failure):
                planner.exhaust(run, _to_change(run.id, out), self.fx, failure)
                self._unqueue(run.id)

    def declined(self, runner_id: UUID, ref: UUID, token: int) -> list[Transition]:
        """Take back an attempt that its runner does not take."""
        known = self._refs.get(ref)
        record = known and known[0].records[known[1]]
        if (
            known is None
            or not record
            or record.runner != runner_id
            or record.status is not NodeStatus.RUNNING
            or token not in (record.token, record.killing)
        ):
            return []
        run, slot = known
        t = Transition(run.id)
        with self._step(run.id):
            self._free(runner_id, record.id)
            self._give_back(record.id, t)
            if planner.hand_back(run, slot, t, self.fx):
                self._push(Ready(run, slot, alone=record.alone))
        return self._dispatch(Out(t))

    def granted(self, runner_id: UUID, credits_: int, grant_epoch: int) -> list[Transition]:
        """Take a runner's new window."""
        runner = self.runners[runner_id]
        if grant_epoch <= runner.grant_epoch or runner_id in self.fenced:
            return []
        runner.credits, runner.grant_epoch = credits_, grant_epoch
        return self._dispatch(Out())

    def attached(
        self, runner_id: UUID, offer: Offer, inventory: Mapping[UUID, int]
    ) -> list[Transition]:
        """Know a runner whose stream has begun, and agree with it on the attempts it has.

        `inventory` says by node row which token it knows. A grant follows.
        """
        runner = self.runners.get(runner_id)
        if runner is None:
            runner = self.runners[runner_id] = Runner(incarnation=runner_id, offer=offer)
        runner.connected, runner.grant_epoch, runner.offer = True, -1, offer
        out = Out()
        for ref in list(runner.in_flight):
            if ref in self._refs:  # what goes wrong with one has its whole run forgotten
                with self._step(self._refs[ref][0].id):
                    self._agree(runner_id, ref, inventory.get(ref), out)
        for ref, token in inventory.items():
            if ref not in runner.in_flight and not self._is_faulty(ref):
                known = self._refs.get(ref)
                t = out.of(known[0].id if known else ref)
                t.commands.append(SupersededCommand(runner_id, ref, token))
        self._follow(out)
        return self._finished(out)

    def _agree(self, runner_id: UUID, ref: UUID, token: int | None, out: Out) -> None:
        run, slot = self._refs[ref]
        record = run.records[slot]
        assert record is not None
        t = out.of(run.id)
        stopping = run.is_stopping(slot) or record.killing is not None
        if stopping and token is None:
            self._free(runner_id, ref)
            planner.confirm_stopped(run, slot, t, self.fx, usage=NO_USAGE)
            self._give_back(ref, t)
        elif stopping and token is not None:
            record.killing = token
            t.commands.append(KillCommand(runner_id, ref, token))
        elif token != record.token:
            t.commands.append(AssignCommand(runner_id, run.id, slot, record.token))

    def detached(self, runner_id: UUID) -> None:
        """Know that a runner's stream has ended; its attempts go on."""
        runner = self.runners[runner_id]
        runner.connected, runner.credits = False, 0
        if not runner.in_flight:
            del self.runners[runner_id]

    def lost(self, runner_id: UUID, *, in_order: bool = False) -> list[Transition]:
        """Take back all attempts of a runner that was fenced; they begin again, alone.

        Of one that left in order none had begun: they crossed with its leaving, and are as if it
        had declined them.
        """
        self.fenced.add(runner_id)
        runner = self.runners.get(runner_id)
        if runner is None:
            return []
        runner.credits = 0
        out = Out()
        for ref in list(runner.in_flight):
            if ref in self._refs:  # what goes wrong with one has its whole run forgotten
                run, slot = self._refs[ref]
                with self._step(run.id):
                    self._lose(run, slot, out.of(run.id), in_order=in_order)
        runner.in_flight.clear()
        runner.exclusive = False
        if not runner.connected:
            self.runners.pop(runner_id, None)
        return self._dispatch(out)

    def _lose(self, run: Run, slot: int, t: Transition, *, in_order: bool) -> None:
        record = run.records[slot]
        assert record is not None
        self._give_back(record.id, t)
        take_back = planner.hand_back if in_order else planner.lose
        if take_back(run, slot, t, self.fx):
            self._push(Ready(run, slot, alone=record.alone or not in_order))

    # --- what callers want ------------------------------------------------------------------------

    def cancel(self, run_id: UUID) -> list[Transition]:
        """Stop a run on a caller's word; nothing where it is stopping already."""
        run = self.runs[run_id]
        if run.cancelling or run.status in RUN_FINAL:
            return []
        t = Transition(run_id)
        with self._step(run_id):
            planner.stop(run, t, self.fx, cancel=True)
            self._unqueue(run_id)
        return self._dispatch(Out(t))

    def break_off(self, run_id: UUID, failure: Failure) -> list[Transition]:
        """End a run that cannot go on for a fault of the engine's."""
        t = Transition(run_id)
        with self._step(run_id):
            planner.break_off(self.runs[run_id], t, self.fx, failure)
            self._unqueue(run_id)
        return self._dispatch(Out(t))

    def pause(self, run_id: UUID) -> list[Transition]:
        """Let nothing new begin in a run and its sub-workflows; what runs ends, clocks go on."""
        out = Out()
        with self._step(run_id, asked=True):
            for run in self._family(run_id):
                controls.pause(run, out.of(run.id))
                self._unqueue(run.id)
        return self._dispatch(out)

    def resume(self, run_id: UUID, *, now: float) -> list[Transition]:
        """Let a paused run and its sub-workflows go on."""
        self._now = now
        out = Out()
        with self._step(run_id, asked=True):
            for run in self._family(run_id):
                controls.resume(run, out.of(run.id), self.fx)
        return self._dispatch(out)

    def _family(self, run_id: UUID) -> list[Run]:
        """Give a run with all runs of its sub-workflows that are not over."""
        found = [self.runs[run_id]]
        for run in found:  # it grows while it is walked
            children = (each.child for each in run.records if each is not None and each.child)
            found += [self.runs[each] for each in children if each in self.runs]
        return [run for run in found if run.status not in RUN_FINAL]

    def pause_node(self, run_id: UUID, place: int) -> list[Transition]:
        """Hold up a node that is not running, until it is let go."""
        t = Transition(run_id)
        with self._step(run_id, asked=True):
            controls.pause_node(self.runs[run_id], place, t, self.fx)
        return self._dispatch(Out(t))

    def resume_node(self, run_id: UUID, place: int) -> list[Transition]:
        """Let a node go that was held up."""
        t = Transition(run_id)
        with self._step(run_id, asked=True):
            controls.resume_node(self.runs[run_id], place, t, self.fx)
        return self._dispatch(Out(t))

    def skip_node(
        self, run_id: UUID, place: int, output: tuple[bytes, ...] | None
    ) -> list[Transition]:
        """End a node that is not running by hand: with an output, or as skipped."""
        t = Transition(run_id)
        with self._step(run_id, asked=True):
            controls.skip_node(self.runs[run_id], place, t, self.fx, output)
        return self._dispatch(Out(t))

    def signal(self, run_id: UUID, name: str, signal: Signal) -> list[Transition]:
        """Take a word from outside: for whoever waits for it, or who will."""
        t = Transition(run_id)
        with self._step(run_id, asked=True):
            controls.take_signal(self.runs[run_id], name, t, self.fx, signal)
        return self._dispatch(Out(t))

    # --- what is known by now ---------------------------------------------------------------------

    def lock_known(self, node_version_id: UUID, failure: Failure | None) -> list[Transition]:
        """Let the slots go that waited for a node version's lock, or fail them with its fault."""
        waiting = self.locks_pending.pop(node_version_id, {})
        if failure is None:
            self.unlocked.add(node_version_id)
        out = Out()
        for run_id, slots in waiting.items():
            run = self.runs.get(run_id)
            if run is None:
                continue
            for slot in sorted(slots):
                if failure is None:
                    self._push(Ready(run, slot))
                elif run.may_begin(slot) and run_id in self.runs:
                    with self._step(run_id):
                        planner.refuse(run, slot, out.of(run_id), self.fx, failure)
                        if run.place(slot).phase is Phase.MAIN:
                            self._unqueue(run_id)
        return self._dispatch(out)

    def cache_answered(self, answers: Sequence[Answer], *, now: float) -> list[Transition]:
        """Take over the results that the cache has, and let the other nodes run."""
        self._now = now
        out = Out()
        for answer in answers:
            run, slot = self.runs.get(answer.ask.run_id), answer.ask.slot
            if not self.cache.answered(answer) or run is None or not run.may_begin(slot):
                continue  # what resumes a run asks again
            if answer.hit is None or run.records[slot] is not None:
                self._push(Ready(run, slot))
                continue
            t = out.of(run.id)
            with self._step(run.id):
                cache_queue.complete(run, slot, t, answer.hit, new_id=self.fx.new_id)
                routes.slot_done(run, slot, t, self.fx, answer.hit.output)
                routes.settle(run, t, self.fx)
        return self._dispatch(out)

    def limits_known(self, limits: Sequence[Limit], *, now: float) -> list[Transition]:
        """Know the limits of all tenants; what waits is held against what they are now."""
        changed = {each.id: each for each in limits}
        if changed == self.limits.by_id:
            return []
        self._now = now
        self.limits = Limits(limits)
        out = Out()
        for run_id, slot, alone in self.limited.drain():
            run = self.runs.get(run_id)
            if run is None or run.status in RUN_FINAL:
                continue
            if slot != WHOLE_RUN:
                self._push(Ready(run, slot, alone))
            else:
                with self._step(run_id):
                    self._begin_late(run, out)
        return self._dispatch(out)

    def quotas_known(self, quotas: Mapping[UUID, Quota]) -> None:
        """Know the quotas of all tenants."""
        self.ledger.quotas = quotas

    def quotas_used(self, used: Mapping[UUID, Amounts]) -> list[Transition]:
        """End the runs of tenants that used up their day."""
        out = Out()
        for run in list(self.runs.values()):
            spent = used.get(run.tenant_id)
            if spent is None or run.parent is not None or run.status in RUN_FINAL:
                continue
            failure = self.ledger.overdrawn(run, spent)
            if failure is not None:
                with self._step(run.id):
                    self._exhaust(run, failure, out)
        return self._dispatch(out)

    def slots_taken(self, claims: Sequence[Claim], *, now: float) -> list[Transition]:
        """Let those go on for whom places were taken."""
        self._now = now
        out = Out()
        for claim in claims:
            self._go_on(claim, out)
        return self._dispatch(out)

    def _go_on(self, claim: Claim, out: Out) -> None:
        """Give places to the next one that still has a use for them."""
        while (waiting := self.limited.granted(claim)) is not None:
            run_id, slot, alone = waiting
            run = self.runs.get(run_id)
            if run is None or run.status in RUN_FINAL:
                pass
            elif slot == WHOLE_RUN:
                if run.asleep:
                    t = out.of(run_id)
                    with self._step(run_id):
                        self._use(claim, run_id, None, t)
                        run.asleep = False
                        routes.revive(run, t, self.fx)
                    return
            elif run.may_begin(slot):
                self.limited.keep(waiting, claim)
                self._await_runner(run, slot, alone=alone)
                return

    # --- memory -----------------------------------------------------------------------------------

    def adopt(
        self, run: Run, *, now: float, due_s: dict[int, float], deadline_s: float | None
    ) -> None:
        """Take over a run as its rows say it stands; `redispatch` begins what may begin.

        `due_s` says for its slots that retry or wait in how many seconds they are due, and under
        `BEGIN` when a run begins that was to start at a time.
        """
        self._now = now
        self.runs[run.id] = run
        self._adopted[run.id] = None
        run.asleep = due_s.get(BEGIN, 0.0) > 0
        if run.asleep:
            self.timers.set(now + due_s[BEGIN], run.id, BEGIN)
        for slot, record in enumerate(run.records):
            if record is None:
                continue
            self._refs[record.id] = (run, slot)
            # The member that had it before may count from a higher epoch.
            self._token = max(self._token, record.token)
            limit_ms = run.place(slot).total_timeout_ms
            if limit_ms is not None and record.status not in NODE_FINAL:
                left_s = max(0.0, limit_ms / 1000 - record.age_s)
                self.timers.set(now + left_s, run.id, slot, Due.TOTAL)
            if record.status is NodeStatus.RUNNING and record.runner is not None:
                runner = self.runners.setdefault(
                    record.runner,
                    Runner(incarnation=record.runner, offer=_NOTHING, connected=False),
                )
                runner.in_flight[record.id] = record.token
                runner.exclusive = runner.exclusive or record.alone
            elif record.status is NodeStatus.RETRYING:
                if record.delivery_count and due_s.get(slot, 0) <= 0:
                    self._push(Ready(run, slot, alone=True))
                else:
                    self.timers.set(now + max(due_s.get(slot, 0), 0), run.id, slot)
            elif slot in due_s:
                record.due_ms = max(0, round(due_s[slot] * 1000))
                self.timers.set(now + max(due_s[slot], 0), run.id, slot)
        if deadline_s is not None:
            self.timers.set(now + max(deadline_s, 0), run.id, DEADLINE)

    def child_ended(self, child: EndedChild) -> None:
        """Know how a sub-workflow ended whose parent was read from its rows."""
        self._ended_children[child.id] = child

    def redispatch(self) -> list[Transition]:
        """Begin what may begin and give out what waits, after runs were adopted or forgotten."""
        out = Out()
        adopted, self._adopted = self._adopted, {}
        for run_id in adopted:
            run = self.runs.get(run_id)
            if run is None or run.status in RUN_FINAL:
                continue
            with self._step(run_id):
                self._revive(run, out)
        self._ended_children.clear()
        for run_id in [each for each in adopted if each in self.ledger.budgets]:
            spent = self.ledger.budgets[run_id].spent
            if spent is not None and run_id in self.runs:
                with self._step(run_id):
                    self._exhaust(self.runs[run_id], spent, out)
        return self._dispatch(out)

    def _revive(self, run: Run, out: Out) -> None:
        if _unbegun(run) and run.id not in self.held:
            self._waits_for_limit(run)
        t = Transition(run.id)
        for slot, record in enumerate(list(run.records)):  # an end may begin others
            if record is not None and record.child and record.status is NodeStatus.WAITING:
                self._meet_child(run, slot, record.child, t)
        routes.revive(run, t, self.fx)
        if t.cost() != (0, 0) or t.commands:
            out.add(t)

    def _meet_child(self, run: Run, slot: int, child_id: UUID, t: Transition) -> None:
        """Find the run of a sub-workflow: in memory, among those that ended, or nowhere."""
        child = self.runs.get(child_id)
        ended = self._ended_children.get(child_id)
        if child is not None:
            child.parent = (run.id, slot)
            if run.is_stopping(slot) and not child.cancelling:
                self.fx.stops.append(child_id)
        elif ended is not None:
            planner.child_over(run, slot, t, self.fx, children.ended_run(run, slot, ended))
        elif run.is_open(slot):
            waits.start_again(run, slot, self.fx)
        else:
            planner.child_over(run, slot, t, self.fx, children.never_begun(run, slot, child_id))

    # --- after each event -------------------------------------------------------------------------

    def _dispatch(self, out: Out) -> list[Transition]:
        """Give ready slots to runners while both last; returns all transitions, oldest first."""
        self._follow(out)
        if self.ready.size:
            self._give_out(out)
            self._follow(out)
        return self._finished(out)

    def _follow(self, out: Out) -> None:
        """Carry out what events left to do, in other runs too."""
        fx = self.fx
        while True:
            if fx.ready:
                ready, fx.ready = fx.ready, []
                for each in ready:
                    self._push(each)
            if not fx.pending:
                return
            self._follow_rarer(out)

    def _follow_rarer(self, out: Out) -> None:
        fx = self.fx
        timers, fx.timers = fx.timers, []
        for run, slot, delay_ms, what in timers:
            if self.faults and self._is_gone(run.id):
                continue
            self.timers.set(self._time() + delay_ms / 1000, run.id, slot, what)
        starts, fx.starts = fx.starts, []
        for start in starts:
            assert start.run.parent is not None
            if start.run.parent[0] in self.runs:  # not if a step went wrong meanwhile
                with self._step(start.run.id):
                    self._begin_child(start, out)
        stops, fx.stops = fx.stops, []
        for child_id in stops:
            child = self.runs.get(child_id)
            if child is not None and not child.cancelling and child.status not in RUN_FINAL:
                with self._step(child_id):
                    planner.stop(child, _to_change(child_id, out), fx, cancel=True)
                    self._unqueue(child_id)
        ended, fx.ended = fx.ended, []
        for child in ended:
            self._child_over(child, out)

    def _begin_child(self, start: Start, out: Out) -> None:
        self._begin(start.run, start.row, out)
        budget = self.ledger.budgets and self.ledger.budgets.get(self._root(start.run).id)
        if budget and budget.spent is not None:  # by the attempt that let it begin
            self._exhaust(start.run, budget.spent, out)

    def _child_over(self, child: Run, out: Out) -> None:
        """Tell the parent, behind the child's end: it must not be durable before that is."""
        assert child.parent is not None
        parent = self.runs.get(child.parent[0])
        if parent is not None:
            t = out.after(parent.id)
            with self._step(parent.id):
                planner.child_over(parent, child.parent[1], t, self.fx, child)

    def _finished(self, out: Out) -> list[Transition]:
        """Say in first rows how their runs stand, and give back the places of runs that end."""
        for fault in self.faults:
            out.drop(fault.run_ids)
        held, budgets = self.held, self.ledger.budgets
        for t in out.transitions:
            if t.run_inserts:
                _tell_status(self.runs[t.run_id], t)
            if not (held or budgets):
                continue
            ends = any(isinstance(each, Finished) for each in t.commands)
            if ends and t.run_id in held:
                self._give_back(t.run_id, t)
            if ends and t.run_id in budgets:
                kept = tuple(each for each in t.spends if not each.over)
                t.spends = (*kept, Spend(t.run_id, 0, 0, 0, 0, over=True))
        return out.transitions


def _to_change(run_id: UUID, out: Out) -> Transition:
    """Give the transition in which a run's row may change: no statement changes one it inserts."""
    t = out.of(run_id)
    return out.after(run_id) if t.run_inserts else t


def _unbegun(run: Run) -> bool:
    """Say whether nothing of a run is under way, and it may begin or go on."""
    if run.asleep or run.closing or run.cancelling or run.expired or run.failure is not None:
        return False
    return all(each is None or each.status not in _UNDER_WAY for each in run.records)


def _tell_status(run: Run, t: Transition) -> None:
    """Write in a run's first row how it stands once all that goes with the row is written."""
    begun = bool(t.node_inserts) or any(each.starts for each in t.placed.values())
    status = RunStatus.RUNNING if begun else RunStatus.PENDING
    t.run_inserts = [t.run_inserts[0]._replace(status=status, revision=run.revision)]


def _late(runner_id: UUID, outcome: Outcome) -> Transition:
    t = Transition(outcome.attempt_ref)
    t.commands.append(SupersededCommand(runner_id, outcome.attempt_ref, outcome.token))
    return t
