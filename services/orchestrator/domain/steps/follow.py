"""Executes the effects of events in other runs, and dispatches to runners."""

from __future__ import annotations

from uuid import UUID

from services.orchestrator.domain import controls, planner, stopping
from services.orchestrator.domain.commands import Finished
from services.orchestrator.domain.effects import Due, Start, Stop
from services.orchestrator.domain.out import Out
from services.orchestrator.domain.records import Failure
from services.orchestrator.domain.rows import Spend
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RUN_FINAL, NodeStatus, RunStatus
from services.orchestrator.domain.steps.begin import Begin, is_ending, is_unbegun
from services.orchestrator.domain.transition import Transition


class Follow(Begin):
    """The common end of all events, and shared steps."""

    def _dispatch(self, out: Out) -> list[Transition]:
        """Execute effects and assign ready slots; returns all transitions, oldest first."""
        self._follow(out)
        if self.ready.size:
            self._give_out(out)
            self._follow(out)
        return self._finished(out)

    def _follow(self, out: Out) -> None:
        """Execute the effects of events, in other runs too."""
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
            at, record = self._time() + delay_ms / 1000, run.records[slot]
            if what is Due.NEXT and record is not None:
                self._set_due(run, slot, record, at)
            else:
                self.timers.set(at, run.id, slot, what)
        starts, fx.starts = fx.starts, []
        for start in starts:
            assert start.run.parent is not None
            if start.run.parent[0] in self.runs:  # not if a step failed meanwhile
                with self._step(start.run.id):
                    self._begin_child(start, out)
        stops, fx.stops = fx.stops, []
        for stop in stops:
            self._stop_child(stop, out)
        ended, fx.ended = fx.ended, []
        for child in ended:
            self._child_over(child, out)

    def _begin_child(self, start: Start, out: Out) -> None:
        self._begin(start.run, start.row, out)
        budget = self.ledger.budgets and self.ledger.budgets.get(self._root(start.run).id)
        if budget and budget.spent is not None:  # by the attempt that led to its start
            self._exhaust(start.run, budget.spent, out)

    def _stop_child(self, stop: Stop, out: Out) -> None:
        """Stop the run of a sub-workflow; a caller's cancel resumes a paused one.

        Otherwise nobody could: a run that is being cancelled cannot be resumed.
        """
        child_id, resumes, failed = stop
        child = self.runs.get(child_id)
        if child is None or child.status in RUN_FINAL:
            return
        with self._step(child_id):
            if failed is not None:
                if not is_ending(child):
                    stopping.exhaust(child, _to_change(child_id, out), self.fx, failed)
                    self._unqueue(child_id)
                return
            if not child.cancelling:
                t = _to_change(child_id, out)
                stopping.stop(child, t, self.fx, cancel=True, resumes=resumes)
                self._unqueue(child_id)
                return
            if not resumes:
                return
            for run in self._family(child_id):
                self._resume(run, out)

    def _resume(self, run: Run, out: Out) -> None:
        """Resume a run; what was due meanwhile begins at once."""
        if run.status is not RunStatus.PAUSED:
            return
        if not run.begun and is_unbegun(run):
            self._waits_for_limit(run)
        controls.resume(run, _to_change(run.id, out), self.fx)
        for slot, record in enumerate(run.records):
            if record is None or record.status is not NodeStatus.RETRYING:
                continue
            if record.due_s is None or record.due_s <= self._time():
                self._repeat(run, slot, out)

    def _child_over(self, child: Run, out: Out) -> None:
        """Pass the end of a sub-workflow to its parent, in a transition after the end itself."""
        assert child.parent is not None
        parent = self.runs.get(child.parent[0])
        if parent is not None:
            t = out.after(parent.id)
            with self._step(parent.id):
                planner.child_over(parent, child.parent[1], t, self.fx, child)

    def _finished(self, out: Out) -> list[Transition]:
        """Complete the transitions: statuses of new runs, and limit slots of ended ones."""
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

    def _exhaust(self, root: Run, failure: Failure, out: Out) -> None:
        """End a family that used up its budget or quota; running attempts end."""
        for run in self._family(root.id):
            if not is_ending(run):
                stopping.exhaust(run, _to_change(run.id, out), self.fx, failure)
                self._unqueue(run.id)


def _to_change(run_id: UUID, out: Out) -> Transition:
    """Return a transition that may change the run's row: not one that inserts it."""
    t = out.of(run_id)
    return out.after(run_id) if t.run_inserts else t


def _tell_status(run: Run, t: Transition) -> None:
    """Set the status in a new run's row to what it is after the whole transition."""
    begun = bool(t.node_inserts) or any(each.starts for each in t.placed.values())
    status = RunStatus.RUNNING if begun else RunStatus.PENDING
    t.run_inserts = [t.run_inserts[0]._replace(status=status, revision=run.revision)]
