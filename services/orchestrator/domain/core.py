"""The engine's core: all runs of one orchestrator as one step function over events.

An event goes in with the time; transitions come out, each of one run, in the order in which they
must be written. The core never waits, writes or sends: the journal commits a transition, and only
then do its commands go out. So memory may run ahead of the database, but nothing leaves it early.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import UUID

from services.orchestrator.domain import (
    cache_queue,
    controls,
    failed_edges,
    groups,
    planner,
    routes,
    unusable,
    waits,
)
from services.orchestrator.domain.cache_queue import Answer, CacheQueue
from services.orchestrator.domain.credits import ReadyQueue, Runner
from services.orchestrator.domain.effects import Due, Effects, Ready
from services.orchestrator.domain.limit_queue import WHOLE_RUN, LimitQueue, Waiting
from services.orchestrator.domain.limits import Claim, Lane, Limit, Limits
from services.orchestrator.domain.needs import Offer, takes
from services.orchestrator.domain.partly import Partly, resume
from services.orchestrator.domain.plan import Kind, Plan
from services.orchestrator.domain.rows import (
    AssignCommand,
    Finished,
    Follows,
    KillCommand,
    NodeCopy,
    RunInsert,
    SlotFree,
    SlotUse,
    SupersededCommand,
    Transition,
)
from services.orchestrator.domain.state import (
    NO_USAGE,
    Failure,
    FileValue,
    Run,
    Signal,
    Usage,
)
from services.orchestrator.domain.status import NODE_FINAL, RUN_FINAL, NodeStatus, RunStatus

TOKENS_PER_EPOCH: Final = 1 << 40
SHARDS: Final = 64
# Timers of a run itself, where those of its nodes have a place.
_DEADLINE: Final = -1
_NOTHING: Final = Offer(pythons=frozenset())  # of a runner that is known by its attempts alone
BEGIN: Final = -2
_TIMERS_MIN: Final = 1024
_UNDER_WAY: Final = frozenset({NodeStatus.RUNNING, NodeStatus.RETRYING, NodeStatus.WAITING})
_GIVEABLE: Final = frozenset({NodeStatus.RETRYING, NodeStatus.PENDING})


class Outcome(NamedTuple):
    """What a runner says of an attempt."""

    attempt_ref: UUID
    token: int
    result: tuple[bytes, ...] | FileValue | Failure
    usage: Usage


class EndedChild(NamedTuple):
    """How a sub-workflow's execution ended, as its row says."""

    id: UUID
    status: RunStatus
    output_data: str | None
    error_type: str | None
    error_message: str | None
    failed_node_id: str | None


class Out:
    """The transitions that an event makes, in the order in which they must be written."""

    __slots__ = ("_latest", "transitions")

    def __init__(self, *transitions: Transition) -> None:
        self.transitions = list(transitions)
        self._latest = {t.run_id: t for t in transitions}

    def add(self, t: Transition) -> None:
        """Add a transition behind the others."""
        self.transitions.append(t)
        self._latest[t.run_id] = t

    def of(self, run_id: UUID) -> Transition:
        """Give the transition of a run that more can be added to."""
        t = self._latest.get(run_id)
        if t is None:
            self.add(t := Transition(run_id))
        return t

    def after(self, run_id: UUID) -> Transition:
        """Give a transition of a run behind all others."""
        self.add(t := Transition(run_id))
        return t


class Core:
    """The runs of one orchestrator, the runners, and what waits for them."""

    def __init__(
        self,
        *,
        epoch: int,
        new_id: Callable[[], UUID],
        draw: Callable[[], float],
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.runs: dict[UUID, Run] = {}
        self.runners: dict[UUID, Runner] = {}
        self.ready = ReadyQueue()
        self.limits = Limits()
        self.limited = LimitQueue()  # what waits for places under limits
        self.held: dict[UUID, Claim] = {}  # those places, by the run or node row that has them
        self.cache = CacheQueue()  # what the cache is asked before it is given to a runner
        # Slots that wait for a lock, by node version and run.
        self.locks_pending: dict[UUID, dict[UUID, set[int]]] = {}
        self.unlocked: set[UUID] = set()  # node versions whose environment is known
        # Runners that were fenced: one that does not know it yet must be given nothing more.
        self.fenced: set[UUID] = set()
        self._emptying: UUID | None = None  # the runner that is given nothing until it is empty
        self._refs: dict[UUID, tuple[Run, int]] = {}
        self._timers: list[tuple[float, int, UUID, int, Due]] = []
        # Timers of slots that wait for a runner no longer than they may: by run and slot.
        self._queued: dict[UUID, dict[int, int]] = {}
        self._timer_seq = 0
        self._timers_max = _TIMERS_MIN  # above it, timers of runs that are over are thrown out
        self._token = epoch * TOKENS_PER_EPOCH
        self._adopted: dict[UUID, None] = {}  # runs that were read from rows and not yet revived
        self._ended_children: dict[UUID, EndedChild] = {}
        self._now = 0.0
        self.fx = Effects(new_id=new_id, draw=draw, next_token=self._next_token, wall=wall)

    # --- events: each returns the transitions that it makes -------------------------------------

    def start(
        self,
        run: Run,
        row: RunInsert,
        *,
        now: float,
        follows: tuple[Follows, ...] = (),
        copies: Sequence[NodeCopy] = (),
        partly: Sequence[Partly] = (),
    ) -> list[Transition]:
        """Begin a run: its row, what it takes over, its first nodes where a runner has a credit."""
        self._now = now
        out = Out()
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
        t.run_inserts.append(row)
        for each in copies:
            t.copy(each)
        if row.start_at is not None:  # its time is told by the database's clock: `begin_in`
            run.asleep = True
            return
        if row.timeout_ms is not None:
            self._set_timer(self._now + row.timeout_ms / 1000, run.id, _DEADLINE)
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
            t.run_changes, end.run_changes = [], t.run_changes
            end.commands = [each for each in t.commands if isinstance(each, Finished)]
            t.commands = [each for each in t.commands if not isinstance(each, Finished)]

    def begin_in(
        self, run: Run, delay_s: float, *, now: float, timeout_ms: int | None
    ) -> list[Transition]:
        """Begin a run that was to start at a time, once that is so many seconds away."""
        begins = now + max(delay_s, 0.0)
        self._set_timer(begins, run.id, BEGIN)
        if timeout_ms is not None:
            self._set_timer(begins + timeout_ms / 1000, run.id, _DEADLINE)
        return self.due(now=now)

    def outcome(self, runner_id: UUID, outcome: Outcome, *, now: float) -> list[Transition]:
        """Take a runner's word on one attempt."""
        return self.outcomes(runner_id, (outcome,), now=now)

    def outcomes(
        self, runner_id: UUID, outcomes: Iterable[Outcome], *, now: float
    ) -> list[Transition]:
        """Take a runner's word on attempts; where one is late the runner is told to forget it.

        It is told behind what was decided before: only once that is durable is this one late. What
        they let begin is given out once for all of them.
        """
        self._now = now
        out = Out()
        for outcome in outcomes:
            self._take_outcome(runner_id, outcome, out)
        return self._dispatch(out)

    def _take_outcome(self, runner_id: UUID, outcome: Outcome, out: Out) -> None:
        known = self._refs.get(outcome.attempt_ref)
        if known is None:
            out.add(_late(runner_id, outcome))
            return
        run, slot = known
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
        t = Transition(run.id)
        result = unusable.checked(run, slot, outcome.result)
        self._free(runner_id, record.id)
        if record.killing is not None:
            planner.confirm_stopped(run, slot, t, self.fx, usage=outcome.usage)
        elif isinstance(result, Failure):
            failure = failed_edges.named(run, slot, result)
            planner.fail(run, slot, t, self.fx, failure=failure, usage=outcome.usage)
        else:
            planner.complete(run, slot, t, self.fx, output=result, usage=outcome.usage)
            if self.cache.digests:
                t.commands.extend(self.cache.keep(run, slot))
        self._give_back(record.id, t)
        out.add(t)

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
            self._agree(runner_id, ref, inventory.get(ref), out)
        for ref, token in inventory.items():
            if ref not in runner.in_flight:
                known = self._refs.get(ref)
                t = out.of(known[0].id if known else ref)
                t.commands.append(SupersededCommand(runner_id, ref, token))
        return self._follow(out)

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

    def lost(self, runner_id: UUID) -> list[Transition]:
        """Take back all attempts of a runner that was fenced; they begin again, alone."""
        self.fenced.add(runner_id)
        runner = self.runners.get(runner_id)
        if runner is None:
            return []
        runner.credits = 0
        out = Out()
        for ref in list(runner.in_flight):
            run, slot = self._refs[ref]
            t = out.of(run.id)
            self._give_back(ref, t)
            if planner.lose(run, slot, t, self.fx):
                self._push(Ready(run, slot, alone=True))
        runner.in_flight.clear()
        runner.exclusive = False
        if not runner.connected:
            del self.runners[runner_id]
        return self._dispatch(out)

    def cancel(self, run_id: UUID) -> list[Transition]:
        """Stop a run on a caller's word; nothing where it is stopping already."""
        run = self.runs[run_id]
        if run.cancelling or run.status in RUN_FINAL:
            return []
        t = Transition(run_id)
        planner.stop(run, t, self.fx, cancel=True)
        self._unqueue(run_id)
        return self._dispatch(Out(t))

    def break_off(self, run_id: UUID, failure: Failure) -> list[Transition]:
        """End a run that cannot go on for a fault of the engine's."""
        t = Transition(run_id)
        planner.break_off(self.runs[run_id], t, self.fx, failure)
        self._unqueue(run_id)
        return self._dispatch(Out(t))

    def pause(self, run_id: UUID) -> list[Transition]:
        """Let nothing new begin in a run and its sub-workflows; what runs ends, clocks go on."""
        out = Out()
        for run in self._family(run_id):
            t = out.of(run.id)
            controls.pause(run, t)
            self._unqueue(run.id)
        return self._dispatch(out)

    def resume(self, run_id: UUID, *, now: float) -> list[Transition]:
        """Let a paused run and its sub-workflows go on."""
        self._now = now
        out = Out()
        for run in self._family(run_id):
            t = out.of(run.id)
            controls.resume(run, t, self.fx)
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
        controls.pause_node(self.runs[run_id], place, t, self.fx)
        return self._dispatch(Out(t))

    def resume_node(self, run_id: UUID, place: int) -> list[Transition]:
        """Let a node go that was held up."""
        t = Transition(run_id)
        controls.resume_node(self.runs[run_id], place, t, self.fx)
        return self._dispatch(Out(t))

    def skip_node(
        self, run_id: UUID, place: int, output: tuple[bytes, ...] | None
    ) -> list[Transition]:
        """End a node that is not running by hand: with an output, or as skipped."""
        t = Transition(run_id)
        controls.skip_node(self.runs[run_id], place, t, self.fx, output)
        return self._dispatch(Out(t))

    def signal(self, run_id: UUID, name: str, signal: Signal) -> list[Transition]:
        """Take a word from outside: for whoever waits for it, or who will."""
        t = Transition(run_id)
        controls.take_signal(self.runs[run_id], name, t, self.fx, signal)
        return self._dispatch(Out(t))

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
            if failure is None:
                for slot in sorted(slots):
                    self._push(Ready(run, slot))
            elif run.may_begin(min(slots)):
                t = out.of(run_id)
                planner.refuse(run, min(slots), t, self.fx, failure)
                self._unqueue(run_id)
        return self._dispatch(out)

    def due(self, *, now: float) -> list[Transition]:
        """Let the timers run off whose time has come."""
        self._now = now
        out = Out()
        while self._timers and self._timers[0][0] <= now:
            _, seq, run_id, slot, what = heapq.heappop(self._timers)
            run = self.runs.get(run_id)
            if run is None or run.status in RUN_FINAL:
                continue
            if slot == BEGIN:
                if run.asleep and not self._waits_for_limit(run):
                    run.asleep = False
                    routes.revive(run, out.of(run_id), self.fx)
            elif slot == _DEADLINE:
                if not (run.closing or run.cancelling or run.expired or run.failure):
                    t = out.of(run_id)
                    planner.stop(run, t, self.fx, cancel=False)
                    self._unqueue(run_id)
            elif slot < len(run.records):
                self._slot_due(run, slot, what, seq, out)
        return self._dispatch(out)

    def _slot_due(self, run: Run, slot: int, what: Due, seq: int, out: Out) -> None:
        record = run.records[slot]
        if what is Due.QUEUE:
            queued = self._queued.get(run.id, {})
            if queued.get(slot) == seq and run.may_begin(slot):
                del queued[slot]
                planner.wait_too_long(run, slot, out.of(run.id), self.fx)
            return
        if record is None or not run.is_open(slot):
            return
        if what is Due.TOTAL:
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

    def pythons(self) -> frozenset[str]:
        """Give the Pythons that runners which are here have; none while none is here."""
        return frozenset().union(*(each.pythons for each in self.runners.values()))

    @property
    def next_timer(self) -> float | None:
        """When `due` is to be called next."""
        return self._timers[0][0] if self._timers else None

    # --- memory ---------------------------------------------------------------------------------

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
            self._set_timer(now + due_s[BEGIN], run.id, BEGIN)
        for slot, record in enumerate(run.records):
            if record is None:
                continue
            self._refs[record.id] = (run, slot)
            # The member that had it before may count from a higher epoch.
            self._token = max(self._token, record.token)
            limit_ms = run.place(slot).total_timeout_ms
            if limit_ms is not None and record.status not in NODE_FINAL:
                left_s = max(0.0, limit_ms / 1000 - record.age_s)
                self._set_timer(now + left_s, run.id, slot, Due.TOTAL)
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
                    self._set_timer(now + max(due_s.get(slot, 0), 0), run.id, slot)
            elif slot in due_s:
                record.due_ms = max(0, round(due_s[slot] * 1000))
                self._set_timer(now + max(due_s[slot], 0), run.id, slot)
        if deadline_s is not None:
            self._set_timer(now + max(deadline_s, 0), run.id, _DEADLINE)

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
            if _unbegun(run) and run_id not in self.held:
                self._waits_for_limit(run)
            t = Transition(run_id)
            for slot, record in enumerate(list(run.records)):  # an end may begin others
                if record is not None and record.child and record.status is NodeStatus.WAITING:
                    self._meet_child(run, slot, record.child, t)
            routes.revive(run, t, self.fx)
            if t.cost() != (0, 0) or t.commands:
                out.add(t)
        self._ended_children.clear()
        return self._dispatch(out)

    def _meet_child(self, run: Run, slot: int, child_id: UUID, t: Transition) -> None:
        """Find the run of a sub-workflow: in memory, among those that ended, or nowhere."""
        child = self.runs.get(child_id)
        ended = self._ended_children.get(child_id)
        if child is not None:
            child.parent = (run.id, slot)
            if run.is_stopping(slot) and not child.cancelling:
                self.fx.stops.append(child_id)
        elif ended is not None:
            planner.child_over(run, slot, t, self.fx, _ended_run(run, slot, ended))
        elif run.is_open(slot):
            waits.start_again(run, slot, self.fx)
        else:
            planner.child_over(run, slot, t, self.fx, _never_begun(run, slot, child_id))

    def forget(self, run_id: UUID) -> Run | None:
        """Drop a run from memory: it is over, or is to be loaded again."""
        run = self.runs.pop(run_id, None)
        if run is None:
            return None
        for record in run.records:
            if record is not None:
                self._refs.pop(record.id, None)
                self._let_go(record.id)
                if record.runner is not None:
                    self._free(record.runner, record.id)
        self._let_go(run_id)
        self.limits.forget(run_id)
        self.limited.forget(run_id, whole=True)
        self.cache.forget(run_id)
        self.ready.forget(run_id)
        self._queued.pop(run_id, None)
        for version in [each for each, runs in self.locks_pending.items() if run_id in runs]:
            del self.locks_pending[version][run_id]
            if not self.locks_pending[version]:
                del self.locks_pending[version]
        return run

    def find(self, ref: UUID) -> tuple[Run, int] | None:
        """Return the run and place of a node row."""
        return self._refs.get(ref)

    def _unqueue(self, run_id: UUID) -> None:
        """Drop what waits of a run, for a runner or for a limit; not the run itself."""
        self.ready.forget(run_id)
        self.limited.forget(run_id)

    # --- giving out work ------------------------------------------------------------------------

    def _push(self, ready: Ready) -> None:
        run, slot, alone = ready
        if not run.may_begin(slot):
            return
        definition = run.place(slot)
        version = definition.node_version_id
        if definition.queue_timeout_ms is not None:
            self._set_timer(self._now + definition.queue_timeout_ms / 1000, run.id, slot, Due.QUEUE)
            self._queued.setdefault(run.id, {})[slot] = self._timer_seq
        if version in self.unlocked:
            if definition.cache_ttl_ms is not None and self.cache.asks(run, slot):
                return
            lane = self.limits.of_slot(run, slot)
            if lane:
                self._wait(lane, run, Waiting(run.id, slot, alone))
            else:
                self._await_runner(run, slot, alone=alone)
        else:
            self.locks_pending.setdefault(version, {}).setdefault(run.id, set()).add(slot)

    def _await_runner(self, run: Run, slot: int, *, alone: bool) -> None:
        self.ready.push(
            run.id,
            slot,
            run.place(slot).wanted,
            tenant_id=run.tenant_id,
            priority=run.options.priority,
            alone=alone,
        )

    def _follow(self, out: Out) -> list[Transition]:
        """Carry out what events left to do, in other runs too; returns all transitions."""
        fx = self.fx
        while fx.pending:
            ready, fx.ready = fx.ready, []
            for each in ready:
                self._push(each)
            timers, fx.timers = fx.timers, []
            for run, slot, delay_ms, what in timers:
                self._set_timer(self._now + delay_ms / 1000, run.id, slot, what)
            starts, fx.starts = fx.starts, []
            for start in starts:
                self._begin(start.run, start.row, out)
            stops, fx.stops = fx.stops, []
            for child_id in stops:
                child = self.runs.get(child_id)
                if child is not None and not child.cancelling and child.status not in RUN_FINAL:
                    t = out.of(child_id)
                    planner.stop(child, t, fx, cancel=True)
                    self._unqueue(child_id)
            ended, fx.ended = fx.ended, []
            for child in ended:
                self._child_over(child, out)
        self._finish(out)
        return out.transitions

    def _child_over(self, child: Run, out: Out) -> None:
        """Tell the parent, behind the child's end: it must not be durable before that is."""
        assert child.parent is not None
        parent = self.runs.get(child.parent[0])
        if parent is not None:
            t = out.after(parent.id)
            planner.child_over(parent, child.parent[1], t, self.fx, child)

    def _dispatch(self, out: Out) -> list[Transition]:
        """Give ready slots to runners while both last; returns all transitions, oldest first."""
        self._follow(out)
        if not self.ready.size:
            return out.transitions
        self._dispatch_alone(out)
        while self.ready.size and self._dispatch_one(out):
            pass
        return self._follow(out)

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
        """Empty a runner for the oldest suspect, one runner at a time, and give it that place."""
        emptying, self._emptying = self._emptying, None
        for run_id, place, wanted in self.ready.alone():
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
                # The one that is being emptied already, if it will do: to change would take longer.
                first = min(
                    able, key=lambda each: (each.incarnation != emptying, len(each.in_flight))
                )
                self._emptying = first.incarnation
                return

    def _give(self, run_id: UUID, slot: int, runner: Runner, out: Out, *, alone: bool) -> bool:
        claim = self.limited.claim(run_id, slot)
        given = self._give_claimed(run_id, slot, runner, out, alone=alone, claim=claim)
        if claim is not None and not given:
            self.limited.abandon(claim)
        return given

    def _give_claimed(
        self, run_id: UUID, slot: int, runner: Runner, out: Out, *, alone: bool, claim: Claim | None
    ) -> bool:
        run = self.runs.get(run_id)
        if run is None or not run.may_begin(slot):
            return False
        lane = self.limits.of_slot(run, slot) if claim is None else ()
        if lane:  # a limit that was made while it waited for a runner
            self._wait(lane, run, Waiting(run_id, slot, alone))
            return False
        if self._queued:
            self._queued.get(run_id, {}).pop(slot, None)
        group = run.groups.get(slot)
        if group is not None:
            group.queued = False
            if not group.room:
                return False
            slot = groups.next_part(run, group)
        else:
            before = run.records[slot]
            if before is not None and before.status not in _GIVEABLE:
                return False  # it was queued twice: its run was loaded again meanwhile
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
            cache_queue.complete(run, slot, t, answer.hit, new_id=self.fx.new_id)
            routes.slot_done(run, slot, t, self.fx, answer.hit.output)
            routes.settle(run, t, self.fx)
        return self._dispatch(out)

    # --- limits ---------------------------------------------------------------------------------

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
            elif run.asleep and not self._waits_for_limit(run):
                run.asleep = False
                routes.revive(run, out.of(run_id), self.fx)
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
                    self._use(claim, run_id, None, t)
                    run.asleep = False
                    routes.revive(run, t, self.fx)
                    return
            elif run.may_begin(slot):
                self.limited.keep(waiting, claim)
                self._await_runner(run, slot, alone=alone)
                return

    def _waits_for_limit(self, run: Run) -> bool:
        """Hold a run up that needs a place of its own before anything of it begins."""
        lane = self.limits.of_run(run)
        if lane:
            run.asleep = True
            self._wait(lane, run, Waiting(run.id, WHOLE_RUN))
        return bool(lane)

    def _wait(self, lane: Lane, run: Run, waiting: Waiting) -> None:
        priority = run.options.priority
        self.limited.push(lane, waiting, owner=run.created_by, priority=priority)

    def _use(self, claim: Claim, run_id: UUID, row: UUID | None, t: Transition) -> None:
        self.held[row or run_id] = claim
        t.uses.extend(SlotUse(each, run_id, row) for each in claim.slots)

    def _give_back(self, row: UUID, t: Transition) -> None:
        """Give back the places that a run or node row has, with the change that ends it."""
        claim = self.held.pop(row, None)
        if claim is not None:
            t.frees.extend(
                SlotFree(slot, *demand)
                for slot, demand in zip(claim.slots, claim.lane, strict=True)
            )

    def _finish(self, out: Out) -> None:
        """Say in first rows how their runs stand, and give back the places of runs that end."""
        for t in out.transitions:
            if t.run_inserts:
                _tell_status(self.runs[t.run_id], t)
            if t.run_id in self.held and any(isinstance(each, Finished) for each in t.commands):
                self._give_back(t.run_id, t)

    def _let_go(self, row: UUID) -> None:
        """Forget the places that a row has: where that was not written, they are given back."""
        claim = self.held.pop(row, None)
        if claim is not None:
            self.limited.abandon(claim)

    # --- runners and timers ---------------------------------------------------------------------

    def _free(self, runner_id: UUID, ref: UUID) -> None:
        runner = self.runners.get(runner_id)
        if runner is None:
            return
        runner.in_flight.pop(ref, None)
        if not runner.in_flight:
            runner.exclusive = False
            if not runner.connected:
                del self.runners[runner_id]

    def _next_token(self) -> int:
        self._token += 1
        return self._token

    def _set_timer(self, at: float, run_id: UUID, slot: int, what: Due = Due.NEXT) -> None:
        self._timer_seq += 1
        heapq.heappush(self._timers, (at, self._timer_seq, run_id, slot, what))
        if len(self._timers) > self._timers_max:
            self._timers = [each for each in self._timers if each[2] in self.runs]
            heapq.heapify(self._timers)
            self._timers_max = max(_TIMERS_MIN, 2 * len(self._timers))


def _unbegun(run: Run) -> bool:
    """Say whether nothing of a run is under way, and it may begin or go on."""
    if run.asleep or run.closing or run.cancelling or run.expired or run.failure is not None:
        return False
    return all(each is None or each.status not in _UNDER_WAY for each in run.records)


def _tell_status(run: Run, t: Transition) -> None:
    """Write in a run's first row how it stands once all that goes with the row is written."""
    begun = bool(t.node_inserts) or any(each.starts for each in t.placed.values())
    status = RunStatus.RUNNING if begun else RunStatus.PENDING
    t.run_inserts[0] = t.run_inserts[0]._replace(status=status, revision=run.revision)


def _ended_run(run: Run, slot: int, ended: EndedChild) -> Run:
    """Give what a parent has to know of a sub-workflow that is over."""
    plan = run.place(slot).sub
    assert plan is not None
    child = _bare_child(run, plan, ended.id, ended.status)
    child.output_data = ended.output_data
    if ended.error_type is not None:
        failure = Failure(error_type=ended.error_type, message=ended.error_message or "")
        child.failure = (ended.failed_node_id or "", failure)
    return child


def _never_begun(run: Run, slot: int, child_id: UUID) -> Run:
    plan = run.place(slot).sub
    assert plan is not None
    return _bare_child(run, plan, child_id, RunStatus.CANCELLED)


def _bare_child(run: Run, plan: Plan, child_id: UUID, status: RunStatus) -> Run:
    return Run(
        id=child_id,
        plan=plan,
        tenant_id=run.tenant_id,
        created_by=run.created_by,
        status=status,
        input_values={},
    )


def _late(runner_id: UUID, outcome: Outcome) -> Transition:
    t = Transition(outcome.attempt_ref)
    t.commands.append(SupersededCommand(runner_id, outcome.attempt_ref, outcome.token))
    return t
