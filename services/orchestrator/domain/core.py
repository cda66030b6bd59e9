"""The engine's core: all runs of one orchestrator as one step function over events.

An event goes in with the time; transitions come out, each of one run, in the order in which they
must be written. The core never waits, writes or sends: the journal commits a transition, and only
then do its commands go out. So memory may run ahead of the database, but nothing leaves it early.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from services.orchestrator.domain import planner, unusable
from services.orchestrator.domain.credits import ReadyQueue, Runner
from services.orchestrator.domain.rows import (
    AssignCommand,
    Follows,
    KillCommand,
    NodeCopy,
    RunInsert,
    SupersededCommand,
    Transition,
)
from services.orchestrator.domain.state import NO_USAGE, Failure, FileValue, Run, Usage
from services.orchestrator.domain.status import RUN_FINAL, NodeStatus

TOKENS_PER_EPOCH: Final = 1 << 40
SHARDS: Final = 64
# Timers of a run itself, where those of its nodes have a place.
_DEADLINE: Final = -1
BEGIN: Final = -2
_TIMERS_MIN: Final = 1024


class Outcome(NamedTuple):
    """What a runner says of an attempt."""

    attempt_ref: UUID
    token: int
    result: tuple[bytes, ...] | FileValue | Failure
    usage: Usage


class Core:
    """The runs of one orchestrator, the runners, and what waits for them."""

    def __init__(
        self, *, epoch: int, new_id: Callable[[], UUID], draw: Callable[[], float]
    ) -> None:
        self.runs: dict[UUID, Run] = {}
        self.runners: dict[UUID, Runner] = {}
        self.ready = ReadyQueue()
        # Places that wait for a lock, by node version and run.
        self.locks_pending: dict[UUID, dict[UUID, set[int]]] = {}
        self.unlocked: set[UUID] = set()  # node versions whose environment is known
        # Runners that were fenced: one that does not know it yet must be given nothing more.
        self.fenced: set[UUID] = set()
        self._emptying: UUID | None = None  # the runner that is given nothing until it is empty
        self._refs: dict[UUID, tuple[Run, int]] = {}
        self._timers: list[tuple[float, int, UUID, int]] = []
        self._timer_seq = 0
        self._timers_max = _TIMERS_MIN  # above it, timers of runs that are over are thrown out
        self._token = epoch * TOKENS_PER_EPOCH
        self._new_id = new_id
        self._draw = draw

    # --- events: each returns the transitions that it makes -------------------------------------

    def start(
        self,
        run: Run,
        row: RunInsert,
        *,
        now: float,
        follows: tuple[Follows, ...] = (),
        copies: Sequence[NodeCopy] = (),
    ) -> list[Transition]:
        """Begin a run: its row, what it takes over, its first nodes where a runner has a credit."""
        self.runs[run.id] = run
        run.revision = 1
        t = Transition(run.id, revision=1, follows=follows)
        t.run_inserts.append(row)
        t.copies.extend(copies)
        if row.start_at is None:  # else its time is told by the database's clock: `begin_in`
            if row.timeout_ms is not None:
                self._set_timer(now + row.timeout_ms / 1000, run.id, _DEADLINE)
            self._push(run, run.unbegun())
        out = self._dispatch({run.id: t})
        t.run_inserts[0] = row._replace(status=run.status, revision=run.revision)
        return out

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
        """Take a runner's word on an attempt; where it is late the runner is told to forget it.

        It is told behind what was decided before: only once that is durable is this one late.
        """
        known = self._refs.get(outcome.attempt_ref)
        if known is None:
            return [_late(runner_id, outcome)]
        run, place = known
        record = run.records[place]
        assert record is not None
        current = record.token if record.killing is None else record.killing
        if (
            record.status is not NodeStatus.RUNNING
            or outcome.token != current
            or record.runner != runner_id
        ):
            # A repetition of what is on its way to disk gets its Ack from that; all else is late.
            repeated = record.runner == runner_id and outcome.token == record.token
            return [] if repeated else [_late(runner_id, outcome)]
        t = Transition(run.id)
        result = unusable.checked(run, place, outcome.result)
        self._free(runner_id, record.id)
        if record.killing is not None:
            planner.confirm_stopped(run, place, t, usage=outcome.usage)
        elif isinstance(result, Failure):
            due_ms = planner.fail(
                run,
                place,
                t,
                failure=result,
                usage=outcome.usage,
                draw=self._draw(),
                new_id=self._new_id,
            )
            if due_ms is not None:
                self._set_timer(now + due_ms / 1000, run.id, place)
        else:
            ready = planner.complete(
                run, place, t, output=result, usage=outcome.usage, new_id=self._new_id
            )
            self._push(run, ready)
        return self._dispatch({run.id: t})

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
        run, place = known
        t = Transition(run.id)
        self._free(runner_id, record.id)
        if planner.hand_back(run, place, t):
            self._push(run, [place], alone=record.alone)
        return self._dispatch({run.id: t})

    def granted(self, runner_id: UUID, credits_: int, grant_epoch: int) -> list[Transition]:
        """Take a runner's new window."""
        runner = self.runners[runner_id]
        if grant_epoch <= runner.grant_epoch or runner_id in self.fenced:
            return []
        runner.credits, runner.grant_epoch = credits_, grant_epoch
        return self._dispatch({})

    def attached(
        self, runner_id: UUID, pythons: frozenset[str], inventory: Mapping[UUID, int]
    ) -> list[Transition]:
        """Know a runner whose stream has begun, and agree with it on the attempts it has.

        `inventory` says by node row which token it knows. A grant follows.
        """
        runner = self.runners.get(runner_id)
        if runner is None:
            runner = self.runners[runner_id] = Runner(incarnation=runner_id, pythons=pythons)
        runner.connected, runner.grant_epoch, runner.pythons = True, -1, pythons
        out: dict[UUID, Transition] = {}
        for ref in list(runner.in_flight):
            self._agree(runner_id, ref, inventory.get(ref), out)
        for ref, token in inventory.items():
            if ref not in runner.in_flight:
                known = self._refs.get(ref)
                t = out.setdefault(known[0].id if known else ref, Transition(ref))
                t.commands.append(SupersededCommand(runner_id, ref, token))
        return list(out.values())

    def _agree(
        self, runner_id: UUID, ref: UUID, token: int | None, out: dict[UUID, Transition]
    ) -> None:
        run, place = self._refs[ref]
        record = run.records[place]
        assert record is not None
        t = out.setdefault(run.id, Transition(run.id))
        stopping = run.cancelling or run.expired or record.killing is not None
        if stopping and token is None:
            self._free(runner_id, ref)
            planner.confirm_stopped(run, place, t, usage=NO_USAGE)
        elif stopping and token is not None:
            record.killing = token
            t.commands.append(KillCommand(runner_id, ref, token))
        elif token != record.token:
            t.commands.append(AssignCommand(runner_id, run.id, place, record.token))

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
        out: dict[UUID, Transition] = {}
        for ref in list(runner.in_flight):
            run, place = self._refs[ref]
            t = out.setdefault(run.id, Transition(run.id))
            if planner.lose(run, place, t, new_id=self._new_id):
                self._push(run, [place], alone=True)
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
        planner.stop(run, t, cancel=True, next_token=self._next_token)
        self.ready.forget(run_id)
        return self._dispatch({run_id: t})

    def break_off(self, run_id: UUID, failure: Failure) -> list[Transition]:
        """End a run that cannot go on for a fault of the engine's."""
        t = Transition(run_id)
        planner.break_off(self.runs[run_id], t, failure, next_token=self._next_token)
        self.ready.forget(run_id)
        return self._dispatch({run_id: t})

    def lock_known(self, node_version_id: UUID, failure: Failure | None) -> list[Transition]:
        """Let the places go that waited for a node version's lock, or fail them with its fault."""
        waiting = self.locks_pending.pop(node_version_id, {})
        if failure is None:
            self.unlocked.add(node_version_id)
        out: dict[UUID, Transition] = {}
        for run_id, places in waiting.items():
            run = self.runs.get(run_id)
            if run is None or not run.accepting:
                continue
            if failure is None:
                self._push(run, sorted(places))
            else:
                t = out.setdefault(run_id, Transition(run_id))
                planner.refuse(run, min(places), t, failure, new_id=self._new_id)
                self.ready.forget(run_id)
        return self._dispatch(out)

    def due(self, *, now: float) -> list[Transition]:
        """Let the timers run off whose time has come."""
        out: dict[UUID, Transition] = {}
        while self._timers and self._timers[0][0] <= now:
            _, _, run_id, place = heapq.heappop(self._timers)
            run = self.runs.get(run_id)
            if run is None or not run.accepting:
                continue
            if place == BEGIN:
                self._push(run, run.unbegun())
            elif place == _DEADLINE:
                t = out.setdefault(run_id, Transition(run_id))
                planner.stop(run, t, cancel=False, next_token=self._next_token)
                self.ready.forget(run_id)
            else:
                record = run.records[place]
                if record is not None and record.status is NodeStatus.RETRYING:
                    self._push(run, [place])
        return self._dispatch(out)

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
        """Take over a run as its rows say it stands; `_dispatch` comes with the next event.

        `due_s` says for its retrying places in how many seconds they are due, and under `BEGIN`
        when a run begins that was to start at a time.
        """
        self.runs[run.id] = run
        waits = due_s.get(BEGIN, 0.0) > 0
        if waits:
            self._set_timer(now + due_s[BEGIN], run.id, BEGIN)
        for place, record in enumerate(run.records):
            if record is None:
                if run.remaining[place] == 0 and run.accepting and not waits:
                    self._push(run, [place])
                continue
            self._refs[record.id] = (run, place)
            if record.status is NodeStatus.RUNNING and record.runner is not None:
                runner = self.runners.setdefault(
                    record.runner,
                    Runner(incarnation=record.runner, pythons=frozenset(), connected=False),
                )
                runner.in_flight[record.id] = record.token
                runner.exclusive = runner.exclusive or record.alone
            elif record.status is NodeStatus.RETRYING:
                if record.delivery_count and due_s.get(place, 0) <= 0:
                    self._push(run, [place], alone=True)
                else:
                    self._set_timer(now + max(due_s.get(place, 0), 0), run.id, place)
        if deadline_s is not None:
            self._set_timer(now + max(deadline_s, 0), run.id, _DEADLINE)

    def forget(self, run_id: UUID) -> Run | None:
        """Drop a run from memory: it is over, or is to be loaded again."""
        run = self.runs.pop(run_id, None)
        if run is None:
            return None
        for record in run.records:
            if record is not None:
                self._refs.pop(record.id, None)
                if record.runner is not None:
                    self._free(record.runner, record.id)
        self.ready.forget(run_id)
        for version in [each for each, runs in self.locks_pending.items() if run_id in runs]:
            del self.locks_pending[version][run_id]
            if not self.locks_pending[version]:
                del self.locks_pending[version]
        return run

    def find(self, ref: UUID) -> tuple[Run, int] | None:
        """Return the run and place of a node row."""
        return self._refs.get(ref)

    def redispatch(self) -> list[Transition]:
        """Give out what waits, after runs were adopted or forgotten."""
        return self._dispatch({})

    # --- giving out work ------------------------------------------------------------------------

    def _push(self, run: Run, places: Iterable[int], *, alone: bool = False) -> None:
        for place in places:
            definition = run.plan.places[place]
            version = definition.node_version_id
            if version in self.unlocked:
                priority = run.options.priority
                python = definition.python_version
                self.ready.push(run.id, place, python, priority=priority, alone=alone)
            else:
                self.locks_pending.setdefault(version, {}).setdefault(run.id, set()).add(place)

    def _dispatch(self, out: dict[UUID, Transition]) -> list[Transition]:
        """Give ready places to runners while both last; returns all transitions, oldest first."""
        if self.ready.size:
            self._dispatch_alone(out)
            while self.ready.size and self._dispatch_one(out):
                pass
        return list(out.values())

    def _dispatch_one(self, out: dict[UUID, Transition]) -> bool:
        able = [
            each
            for each in self.runners.values()
            if each.free > 0 and not each.exclusive and each.incarnation != self._emptying
        ]
        if len(able) > 1:
            able.sort(key=lambda each: -each.free)
        for runner in able:
            found = self.ready.take(runner.pythons)
            if found is not None:
                self._give(*found, runner, out, alone=False)
                return True
        return False

    def _dispatch_alone(self, out: dict[UUID, Transition]) -> None:
        """Empty a runner for the oldest suspect, one runner at a time, and give it that place."""
        emptying, self._emptying = self._emptying, None
        for run_id, place, python in self.ready.alone():
            able = [
                each
                for each in self.runners.values()
                if each.connected
                and each.credits > 0
                and python in each.pythons
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

    def _give(
        self, run_id: UUID, place: int, runner: Runner, out: dict[UUID, Transition], *, alone: bool
    ) -> bool:
        run = self.runs.get(run_id)
        if run is None or not run.accepting:
            return False
        before = run.records[place]
        if before is not None and before.status is not NodeStatus.RETRYING:
            return False  # it was queued twice: its run was loaded again meanwhile
        t = out.setdefault(run_id, Transition(run_id))
        record = planner.assign(
            run,
            place,
            t,
            runner=runner.incarnation,
            token=self._next_token(),
            new_id=self._new_id,
            alone=alone,
        )
        self._refs[record.id] = (run, place)
        runner.in_flight[record.id] = record.token
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

    def _next_token(self) -> int:
        self._token += 1
        return self._token

    def _set_timer(self, at: float, run_id: UUID, place: int) -> None:
        self._timer_seq += 1
        heapq.heappush(self._timers, (at, self._timer_seq, run_id, place))
        if len(self._timers) > self._timers_max:
            self._timers = [each for each in self._timers if each[2] in self.runs]
            heapq.heapify(self._timers)
            self._timers_max = max(_TIMERS_MIN, 2 * len(self._timers))


def _late(runner_id: UUID, outcome: Outcome) -> Transition:
    t = Transition(outcome.attempt_ref)
    t.commands.append(SupersededCommand(runner_id, outcome.attempt_ref, outcome.token))
    return t
