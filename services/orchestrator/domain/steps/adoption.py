"""Runs that are loaded from their rows, and then continued."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from services.orchestrator.domain import children, planner, routes, waits
from services.orchestrator.domain.children import EndedChild
from services.orchestrator.domain.credits import Runner
from services.orchestrator.domain.effects import Due, Ready, Stop
from services.orchestrator.domain.limit_lanes import WHOLE_RUN
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.out import Out
from services.orchestrator.domain.records import NodeRecord
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NODE_FINAL, RUN_FINAL, NodeStatus, RunStatus
from services.orchestrator.domain.steps.begin import is_unbegun
from services.orchestrator.domain.steps.follow import Follow
from services.orchestrator.domain.timers import BEGIN, DEADLINE
from services.orchestrator.domain.transition import Transition

_WAITING: Final = NodeStatus.WAITING
_NOTHING: Final = Offer(pythons=frozenset())  # of a runner known only from its attempts


class Adoption(Follow):
    """Adopts runs into memory."""

    def adopt(
        self, run: Run, *, now: float, due_s: dict[int, float], deadline_s: float | None
    ) -> None:
        """Take over a restored run; `redispatch` then begins what may begin.

        `due_s` holds the seconds until its retrying or waiting slots are due, and under `BEGIN`
        until a scheduled run begins.
        """
        self._now = now
        self.runs[run.id] = run
        self._adopted[run.id] = None
        run.queued.clear()  # queues of an earlier memory
        run.asleep = due_s.get(BEGIN, 0.0) > 0
        if run.asleep:
            self.timers.set(now + due_s[BEGIN], run.id, BEGIN)
        for slot, record in enumerate(run.records):
            if record is None:
                continue
            self._refs[record.id] = (run, slot)
            # The previous owner may have had a higher epoch.
            self._token = max(self._token, record.token)
            if record.status not in NODE_FINAL and record.begun:
                self._limit_total(run, slot, record)
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
                    self._set_due(run, slot, record, now + max(due_s.get(slot, 0), 0))
            elif slot in due_s:
                record.due_ms = max(0, round(due_s[slot] * 1000))
                self._set_due(run, slot, record, now + max(due_s[slot], 0))
        if deadline_s is not None:
            self.timers.set(now + max(deadline_s, 0), run.id, DEADLINE)

    def _limit_total(self, run: Run, slot: int, record: NodeRecord) -> None:
        """Set the timer for all attempts of a slot, which may have expired already."""
        limit_ms = run.place(slot).total_timeout_ms
        if limit_ms is None:
            return
        left_s = max(0.0, limit_ms / 1000 - record.age_s)
        self.timers.set(self._now + left_s, run.id, slot, Due.TOTAL)
        if not left_s and record.status is _WAITING and record.child is not None:
            record.overdue = run.is_open(slot)  # its sub-workflow was being stopped

    def child_ended(self, child: EndedChild) -> None:
        """Record the end of a sub-workflow of a loaded run."""
        self._ended_children[child.id] = child

    def redispatch(self) -> list[Transition]:
        """Begin and dispatch what may begin, after runs were adopted or forgotten."""
        out = Out()
        adopted, self._adopted = self._adopted, {}
        self._join_families(adopted)
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

    def _join_families(self, adopted: Iterable[UUID]) -> None:
        """Link runs to their parents before any of them continues."""
        for run_id in adopted:
            run = self.runs.get(run_id)
            for slot, record in enumerate(run.records if run is not None else ()):
                if record is None or record.child is None or record.status is not _WAITING:
                    continue
                child = self.runs.get(record.child)
                if child is not None:
                    child.parent = (run_id, slot)

    def _is_on_a_word(self, run: Run) -> bool:
        """Return whether a run is being cancelled by a caller, directly or through its ancestors.

        After a timeout, by contrast, paused runs stay paused.
        """
        while run.cancelling and run.status is not RunStatus.PAUSED:
            above = None if run.parent is None else self.runs.get(run.parent[0])
            if run.parent is None or above is None:
                return True
            record = above.records[run.parent[1]]
            if not above.is_stopping(run.parent[1]):
                return record is None or not record.overdue
            run = above
        return False

    def _revive(self, run: Run, out: Out) -> None:
        if run.status is RunStatus.PAUSED:  # its turn in limit queues, once it is resumed
            ready = (at for at, left in enumerate(run.remaining) if not left)
            run.limit_turns = dict.fromkeys((WHOLE_RUN, *ready), self.limited.new_turn())
        elif is_unbegun(run):
            self._waits_for_limit(run)
        t = Transition(run.id)
        for slot, record in enumerate(list(run.records)):  # a copy: an end may add others
            if record is not None and record.child and record.status is _WAITING:
                self._meet_child(run, slot, record.child, t)
        routes.revive(run, t, self.fx)
        if t.cost() != (0, 0) or t.commands:
            out.add(t)

    def _meet_child(self, run: Run, slot: int, child_id: UUID, t: Transition) -> None:
        """Connect a slot with its sub-workflow: open, ended, or never inserted."""
        child = self.runs.get(child_id)
        ended = self._ended_children.get(child_id)
        if child is not None:
            if run.is_stopping(slot):
                self.fx.stops.append(Stop(child_id, self._is_on_a_word(run)))
            elif not run.is_open(slot):
                waits.fail_child(run, slot, self.fx)
        elif ended is not None:
            planner.child_over(run, slot, t, self.fx, children.ended_run(run, slot, ended))
        elif run.is_open(slot):
            waits.start_again(run, slot, self.fx)
        else:
            planner.child_over(run, slot, t, self.fx, children.never_begun(run, slot, child_id))
