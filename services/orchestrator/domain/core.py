"""The engine's core: a pure step function over the runs of one orchestrator.

An event and the time go in; transitions come out, each of one run, in the order in which they must
be written. The core never waits, writes or sends: the journal commits a transition, and only then
are its commands executed. So memory may be ahead of the database, but nothing is sent early.

Starts and timers are here; `steps` handles all other events, one kind per module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.orchestrator.domain import controls, planner, stopping
from services.orchestrator.domain.effects import Due
from services.orchestrator.domain.ledger import Budget
from services.orchestrator.domain.out import Out
from services.orchestrator.domain.partly import Partly
from services.orchestrator.domain.rows import Follows, NodeCopy, RunInsert
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RUN_FINAL, NodeStatus
from services.orchestrator.domain.steps.adoption import Adoption
from services.orchestrator.domain.steps.answers import Answers
from services.orchestrator.domain.steps.attempts import Attempts
from services.orchestrator.domain.steps.begin import is_ending
from services.orchestrator.domain.steps.requests import Requests
from services.orchestrator.domain.steps.runners import Runners
from services.orchestrator.domain.timers import BEGIN, DEADLINE, Timer
from services.orchestrator.domain.transition import Transition

SHARDS: Final = 64


class Core(Attempts, Runners, Requests, Answers, Adoption):
    """All events of the runs of one orchestrator."""

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
        """Start a run: its row, copied rows, and its first nodes if a runner has a free slot."""
        self._now = now
        if budget is not None:
            self.ledger.budgets[run.id] = budget
        out = Out()
        with self._step(run.id):
            self._begin(run, row, out, follows, copies, partly)
        return self._dispatch(out)

    def begin_in(
        self, run: Run, delay_s: float, *, now: float, timeout_ms: int | None
    ) -> list[Transition]:
        """Schedule the begin of a run in `delay_s` seconds."""
        begins = now + max(delay_s, 0.0)
        self.timers.set(begins, run.id, BEGIN)
        if timeout_ms is not None:
            self.timers.set(begins + timeout_ms / 1000, run.id, DEADLINE)
        return self.due(now=now)

    def due(self, *, now: float) -> list[Transition]:
        """Handle the timers that are due."""
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
            if not is_ending(run):
                t = out.of(run.id)
                stopping.stop(run, t, self.fx, cancel=False)
                self._unqueue(run.id)
        elif timer.slot < len(run.records):
            self._slot_due(run, timer, out)

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
        elif timer.at != record.due_s:
            return  # it was rescheduled since
        elif record.status is NodeStatus.RETRYING:
            self._repeat(run, slot, out)
        elif record.status is NodeStatus.WAITING and record.due_ms is not None:
            t = out.of(run.id)
            controls.wait_over(run, slot, t, self.fx)

    @property
    def next_timer(self) -> float | None:
        """The time at which to call `due` next, if any."""
        return self.timers.next_at
