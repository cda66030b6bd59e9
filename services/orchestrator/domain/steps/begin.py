"""Begins runs: at their start, as sub-workflows, at their start time, or with a limit slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.orchestrator.domain import planner, routes
from services.orchestrator.domain.commands import Finished
from services.orchestrator.domain.dispatch import Dispatch
from services.orchestrator.domain.effects import Ready
from services.orchestrator.domain.out import Out
from services.orchestrator.domain.partly import Partly, resume, spread, takes_many
from services.orchestrator.domain.plan import Kind
from services.orchestrator.domain.records import NodeRecord
from services.orchestrator.domain.rows import Follows, NodeCopy, RunInsert
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.timers import DEADLINE
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.writes import write_placed

_UNDER_WAY: Final = frozenset({NodeStatus.RUNNING, NodeStatus.RETRYING, NodeStatus.WAITING})


class Begin(Dispatch):
    """Begins runs, and slots again."""

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
        many = takes_many(copies, partly)
        if many:
            t.begins = True
            t = out.after(run.id)
        for each in copies:
            t.copy(each)
        if copies:
            _write_settled(run, t)
        if row.start_at is not None:  # `begin_in` follows, by the database's clock
            run.asleep = True
            return
        if row.timeout_ms is not None:
            self.timers.set(self._time() + row.timeout_ms / 1000, run.id, DEADLINE)
        resume(run, partly, t, self.fx)
        if many:
            spread(t, out)
        if self._waits_for_limit(run):
            return
        if t.copies or run.groups:
            routes.revive(run, t, self.fx)
        else:
            self.fx.todo.extend(run.plan.roots)
            routes.settle(run, t, self.fx)
        if t.run_changes and not many:
            _end_behind(run, t, out)

    def _begin_late(self, run: Run, out: Out) -> None:
        """Begin a run at its start time, or once it has its limit slot.

        A paused run only stops waiting for its start time; it does not wait for a limit meanwhile.
        """
        if run.asleep and (run.status is RunStatus.PAUSED or not self._waits_for_limit(run)):
            run.asleep = False
            routes.revive(run, out.of(run.id), self.fx)

    def _repeat(self, run: Run, slot: int, out: Out) -> None:
        record = run.records[slot]
        if record is None or not run.may_begin(slot):
            return  # paused: resuming looks at this slot again
        if run.place(slot).kind is Kind.PYTHON:
            self._push(Ready(run, slot, alone=record.alone and record.delivery_count > 0))
        else:
            planner.again(run, slot, out.of(run.id), self.fx)

    def _set_due(self, run: Run, slot: int, record: NodeRecord, at: float) -> None:
        """Set the timer of a slot's due time."""
        record.due_s = at
        self.timers.set(at, run.id, slot)


def _write_settled(run: Run, t: Transition) -> None:
    """Write compensations that are skipped because of the results taken over."""
    for place in run.plan.compensations:
        if run.records[place] is not None:
            write_placed(run, place, t)


def _end_behind(run: Run, t: Transition, out: Out) -> None:
    """Move the end of a new run to a second transition: a flush cannot change a row it inserts."""
    end = out.after(run.id)
    end.revision = run.revision
    t.run_changes, end.run_changes = (), t.run_changes
    end.commands = [each for each in t.commands if isinstance(each, Finished)]
    t.commands = [each for each in t.commands if not isinstance(each, Finished)]


def is_unbegun(run: Run) -> bool:
    """Return whether nothing of a run is in progress, and it may begin or continue."""
    if run.asleep or is_ending(run):
        return False
    return all(each is None or each.status not in _UNDER_WAY for each in run.records)


def is_ending(run: Run) -> bool:
    """Return whether only compensations and finally nodes may begin in a run."""
    return run.closing or run.cancelling or run.expired or run.failure is not None
