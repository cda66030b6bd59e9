"""A run begins: with its start, with a sub-workflow, when its time comes or a place is free."""

from __future__ import annotations

from collections.abc import Sequence

from services.orchestrator.domain import routes
from services.orchestrator.domain.dispatch import Dispatch
from services.orchestrator.domain.out import Out
from services.orchestrator.domain.partly import Partly, resume
from services.orchestrator.domain.rows import Finished, Follows, NodeCopy, RunInsert, Transition
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.timers import DEADLINE


class Begin(Dispatch):
    """Runs that begin."""

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

    def _begin_late(self, run: Run, out: Out) -> None:
        """Begin a run whose time has come, or that no limit holds up any more."""
        if run.asleep and not self._waits_for_limit(run):
            run.asleep = False
            routes.revive(run, out.of(run.id), self.fx)
