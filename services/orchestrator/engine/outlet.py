"""The outlet: releases what depends on a commit: answers, assignments, changes for watchers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import structlog

from services.kit import traces
from services.kit.alarm import Alarm
from services.kit.ids import uuid7
from services.orchestrator.domain.commands import (
    AckCommand,
    AssignCommand,
    CacheCommand,
    Command,
    Finished,
    SupersededCommand,
)
from services.orchestrator.domain.core import Core
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NODE_FINAL, NodeStatus, RunStatus
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.values import Spliced
from services.orchestrator.engine.callers import Callers
from services.orchestrator.engine.database_clock import DatabaseClock
from services.orchestrator.engine.ended import Ended
from services.orchestrator.engine.hub import Change, Hub
from services.orchestrator.engine.journal import Committed, Journal
from services.orchestrator.engine.member import Member
from services.orchestrator.engine.placements import Placements
from services.orchestrator.engine.shards import Shards
from services.orchestrator.engine.streams import Assignment, Owned, Peers, Stream
from services.orchestrator.engine.streams import Command as Told

log = structlog.get_logger()

INLINE_BYTES_MAX: Final = 64 * 1024


class Outlet:
    """Queues the core's transitions, and executes their commands once they are committed.

    `Memory` adds how runs are loaded and forgotten.
    """

    journal: Journal

    def __init__(
        self,
        *,
        member: Member,
        shards: Shards | None = None,
        trace: Callable[[Run], None] | None = None,
    ) -> None:
        self.member = member
        self.shards = shards or Shards()
        self.placements = Placements()
        self.hub = Hub()
        self.database_clock = DatabaseClock()
        self.core = self._new_core()
        self.streams: dict[UUID, Stream] = {}
        # Streams with newly released commands, and whether any is more than an ack.
        self._told: dict[Stream, bool] = {}
        self.ended = Ended()
        self.silent_since: dict[UUID, float] = {}  # runners with attempts but no stream
        self.work = asyncio.Event()  # set while the lease is needed
        self.sweep_now = asyncio.Event()
        self.locks_wanted = asyncio.Event()
        self.attempts_begun = asyncio.Event()
        self.cache_wanted = asyncio.Event()  # set while there are lookups or results to keep
        self.cache_kept: list[CacheCommand] = []
        self.limits_wanted = asyncio.Event()  # set while the limits' loop has work
        self.limits_changed = True  # since they were last read
        self.limits_reading = asyncio.Lock()  # so that reads are applied in order
        self.limits_freed: set[UUID] = set()  # freed here, to be told to other members
        self.quota_charged = asyncio.Event()  # set while usage of quotas is to be written
        self._trace = trace  # called with ended runs, if traces are exported
        self._callers = Callers()
        self._refusals: dict[UUID, int] = {}  # refused flushes by run, since its last committed one
        self._faults: dict[UUID, int] = {}  # failed steps by run
        self.recovering = False
        self.runs_ended: Counter[RunStatus] = Counter()
        self._timer = Alarm()
        self._loop: asyncio.AbstractEventLoop | None = None

    def busy(self) -> bool:
        """Return whether the lease is needed."""
        return bool(self.core.runs) or not self.journal.idle

    def now(self) -> float:
        """Return the event loop's time in seconds, the clock of all timers of the engine."""
        return self._running_loop().time()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:  # kept: `get_running_loop` costs a system call (getpid)
            self._loop = asyncio.get_running_loop()
        return self._loop

    def tell_all(self, command: Told) -> None:
        """Send a command to every runner."""
        for runner in self.streams:
            self._tell(runner, command)

    def known_peers(self) -> Peers:
        """Return the addresses of the other members, for runners."""
        return Peers(tuple(sorted(set(self.shards.peers.values()))))

    def superseded(self, runner_id: UUID, ref: UUID, token: int) -> None:
        """Tell a runner to drop an attempt that is no longer valid."""
        self._tell(runner_id, SupersededCommand(runner_id, ref, token))

    def elsewhere(self, runner_id: UUID, ref: UUID, token: int, owner: UUID) -> None:
        """Tell a runner to report an attempt to the member that owns its run."""
        self._tell(runner_id, Owned(ref, token, owner))

    def take_back(self, run: Run, slot: int) -> None:
        """Withdraw an attempt whose inputs are gone, because its map or loop has ended."""
        record = run.records[slot]
        if record is None or record.runner is None:
            return
        token = record.token if record.killing is None else record.killing
        self.superseded(record.runner, record.id, token)
        self._apply(self.core.declined(record.runner, record.id, token))

    def _new_core(self) -> Core:
        return Core(
            epoch=self.member.epoch,
            new_id=uuid7,
            draw=random.random,
            clock=self.now,
            wall=self.database_clock.now,
        )

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
        if at is None:
            self._timer.cancel()
        else:
            self._timer.by(at, self._due)

    def _due(self) -> None:
        try:
            self._apply(self.core.due(now=self.now()))
        except Exception:
            # The core handles failures within a run's step; anything else means: reload.
            log.exception("timers_not_run")
            self.journal.doubt()

    def _released(self, committed: Committed) -> None:
        """Release what depends on a committed batch, in order."""
        refused = []
        if committed.clock is not None:
            self.database_clock.told(committed.clock)
        for t in committed.batch:
            run = self.core.runs.get(t.run_id)
            if t.run_inserts and not self._answer_start(t, run, committed):
                refused.append(t.run_id)
                continue
            self._stamp(t, run, committed.at)
            if t.begun_whole:
                _stamp_taken(run, committed.at)
                self._callers.started(t.run_id)
            if self._refusals and t.writes:  # only a write proves that the run can be written
                self._refusals.pop(t.run_id, None)
            if t.frees:
                self.core.freed(t)
                self.limits_freed.update(each.limit_id for each in t.frees)
                self.limits_wanted.set()
            for command in t.commands:
                self._carry_out(command)
            self._callers.written(t)
        self._let_streams_go()
        if refused:  # maybe a thousand of a batch: walk the memory once for all of them
            gone = dict.fromkeys(refused)
            self.journal.drop(gone)  # their later transitions would be refused too
            for each in self.core.parts_of(gone):
                self.core.forget(each)
            self._apply(self.core.redispatch())

    def _let_streams_go(self) -> None:
        told, self._told = self._told, {}
        for stream, has_work in told.items():
            if has_work:
                stream.let_go()
            else:  # only acks, which are not urgent: after the waiters of this commit
                self._running_loop().call_soon(stream.let_go)

    def _answer_start(self, t: Transition, run: Run | None, committed: Committed) -> bool:
        if t.run_id not in committed.started:
            self._callers.refused(t.run_id)
            return False
        if run is not None:
            assert committed.clock is not None
            run.created_at = committed.clock
            copied = {each.id for each in t.copies}
            for record in run.records if copied else ():
                if record is not None and record.id in copied:
                    skipped = record.status is NodeStatus.SKIPPED
                    record.started_at = None if skipped else committed.at
                    record.completed_at = committed.at
            row = t.run_inserts[0]
            begins = max(committed.clock, row.start_at or committed.clock)
            if row.timeout_ms is not None:
                run.deadline_at = begins + timedelta(milliseconds=row.timeout_ms)
            if row.start_at is not None:
                delay_s = (begins - committed.clock).total_seconds()
                timeout_ms = row.timeout_ms
                begun = self.core.begin_in(run, delay_s, now=self.now(), timeout_ms=timeout_ms)
                self._apply(begun)
        if not t.begins:
            self._callers.started(t.run_id)
        return True

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, AssignCommand):
            try:
                self._send_assignment(command)
            except Exception as error:  # noqa: BLE001  # `_apply` logs it and reloads the run
                self.core.fault(command.run_id, error)
                self._apply(())
        elif isinstance(command, Finished):
            run = self.core.forget(command.run_id)
            self._faults.pop(command.run_id, None)
            if run is not None and run.completed_at is not None:
                self.runs_ended[run.status] += 1
                self.ended.keep(run, self.now())
                if self._trace is not None:
                    self._trace(run)
        elif isinstance(command, CacheCommand):
            self.cache_kept.append(command)
            self.cache_wanted.set()
        elif (stream := self.streams.get(command.runner)) is not None:
            stream.queue(command)
            self._told[stream] = self._told.get(stream, False) or type(command) is not AckCommand

    def _stamp(self, t: Transition, run: Run | None, at: datetime) -> None:
        for record in t.begun:
            record.started_at = at
        final = bool(t.run_changes) and any(change.final for change in t.run_changes)
        if run is not None:
            if run.started_at is None and _starts(t):
                run.started_at = run.created_at if t.run_inserts else at
            if final:
                run.completed_at = max(at, run.started_at or at)
            if t.run_changes and any(change.cancels for change in t.run_changes):
                run.cancel_requested_at = run.cancel_requested_at or at
        if not t.revision or not self.hub.heeded(t.run_id, final=final):
            return
        begun = {record.id for record in t.begun}
        for _, _, view in t.views:
            if view.started_at is None or view.id in begun:
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
            return  # it is sent when the runner reconnects
        if record.status is not NodeStatus.RUNNING:
            return  # sent on the previous stream already, and answered since
        if command.token not in (record.token, record.killing):
            return  # a newer one follows. One to be killed is sent: its Kill needs an answer
        if not run.has_inputs(command.slot):
            self.take_back(run, command.slot)
            return
        self.attempts_begun.set()
        given, values, inline, spliced = [], [], 0, False
        for at, value in enumerate(run.inputs(command.slot)):
            if value is None:
                continue
            given.append(at)
            values.append(value)
            if isinstance(value, bytes):
                inline += len(value)
            elif isinstance(value, Spliced):
                spliced = True
        place = run.place_of(command.slot)
        first = run.bindings(command.slot) is run.plan.places[place].inputs
        definition = stream.define(run.plan, place, run.tenant_id, tuple(given), first=first)
        pull = spliced or inline > INLINE_BYTES_MAX
        place_in_trace = run.options.traceparent
        self._told[stream] = True
        stream.queue(
            Assignment(
                attempt_ref=record.id,
                token=command.token,
                definition=definition.number,
                run_id=run.id,
                attempt=record.retry_count + record.delivery_count + 1,
                values=() if pull else values,
                pull=pull,
                progress=record.progress or "",
                traceparent=traces.below(place_in_trace, traces.execution_span(run.id))
                if place_in_trace
                else "",
            )
        )


def _stamp_taken(run: Run | None, at: datetime) -> None:
    """Set the times of results that a rerun copied, which end in it with the last of them."""
    for record in run.records if run is not None else ():
        if record is not None and record.completed_at is None and record.status in NODE_FINAL:
            record.started_at = None if record.status is NodeStatus.SKIPPED else at
            record.completed_at = at


def _starts(t: Transition) -> bool:
    """Return whether a transition writes that its run has started."""
    if any(change.starts for change in t.run_changes):
        return True
    return any(row.status == RunStatus.RUNNING for row in t.run_inserts)
