"""Requests of callers about open runs."""

from __future__ import annotations

from uuid import UUID

from services.orchestrator.domain import controls, stopping
from services.orchestrator.domain.out import Out
from services.orchestrator.domain.records import Failure
from services.orchestrator.domain.state import Run, Signal
from services.orchestrator.domain.status import RUN_FINAL
from services.orchestrator.domain.steps.follow import Follow
from services.orchestrator.domain.transition import Transition


class Requests(Follow):
    """Handles requests of callers."""

    def cancel(self, run_id: UUID) -> list[Transition]:
        """Cancel a run; does nothing if it is being cancelled already."""
        run = self.runs[run_id]
        if run.cancelling or run.status in RUN_FINAL:
            return []
        t = Transition(run_id)
        with self._step(run_id):
            stopping.stop(run, t, self.fx, cancel=True, resumes=True)
            self._unqueue(run_id)
        return self._dispatch(Out(t))

    def break_off(self, run_id: UUID, failure: Failure) -> list[Transition]:
        """End a run because of a fault of the engine; does nothing if it has ended."""
        run = self.runs[run_id]
        if run.status in RUN_FINAL:
            return []  # it ended after the reload, which is being committed
        t = Transition(run_id)
        with self._step(run_id):
            stopping.break_off(run, t, self.fx, failure)
            self._unqueue(run_id)
        return self._dispatch(Out(t))

    def pause(self, run_id: UUID) -> list[Transition]:
        """Pause a run and its sub-workflows: nothing new begins, attempts end, timers go on."""
        out = Out()
        with self._step(run_id, asked=True):
            for run in self._family(run_id):
                controls.pause(run, out.of(run.id))
                run.limit_turns |= self._unqueue(run.id)
                run.queue_left_s |= self.timers.stop_queued(run.id, self._time())
                if not run.begun:
                    self._leave_limit(run, out.of(run.id))
        return self._dispatch(out)

    def _leave_limit(self, run: Run, t: Transition) -> None:
        """Release or stop waiting for the limit slot of a paused run that has not begun."""
        if self.limited.waits(run.id):
            self.limited.forget(run.id, whole=True)
            run.asleep = False
        self._give_back(run.id, t)

    def resume(self, run_id: UUID, *, now: float) -> list[Transition]:
        """Resume a paused run and its sub-workflows."""
        self._now = now
        out = Out()
        with self._step(run_id, asked=True):
            for run in self._family(run_id):
                self._resume(run, out)
        return self._dispatch(out)

    def pause_node(self, run_id: UUID, place: int) -> list[Transition]:
        """Pause a node that is not running."""
        t, run = Transition(run_id), self.runs[run_id]
        with self._step(run_id, asked=True):
            controls.pause_node(run, place, t, self.fx)
            run.queue_left_s |= self.timers.stop_queued(run_id, self._time(), slot=place)
        return self._dispatch(Out(t))

    def resume_node(self, run_id: UUID, place: int) -> list[Transition]:
        """Resume a paused node."""
        t, run = Transition(run_id), self.runs[run_id]
        with self._step(run_id, asked=True):
            controls.resume_node(run, place, t, self.fx)
            if place in run.queued:  # it is still in a queue
                self._bound_queueing(run, place)
        return self._dispatch(Out(t))

    def skip_node(
        self, run_id: UUID, place: int, output: tuple[bytes, ...] | None
    ) -> list[Transition]:
        """End a node that is not running: as completed with an output, or as skipped."""
        t = Transition(run_id)
        with self._step(run_id, asked=True):
            controls.skip_node(self.runs[run_id], place, t, self.fx, output)
        return self._dispatch(Out(t))

    def signal(self, run_id: UUID, name: str, signal: Signal) -> list[Transition]:
        """Deliver a signal to a waiting slot, or keep it for a later one."""
        t = Transition(run_id)
        with self._step(run_id, asked=True):
            controls.take_signal(self.runs[run_id], name, t, self.fx, signal)
        return self._dispatch(Out(t))
