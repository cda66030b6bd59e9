"""Requests of callers to a run that is under way."""

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
    """Runs that are steered."""

    def cancel(self, run_id: UUID) -> list[Transition]:
        """Stop a run on a caller's word; nothing where it is stopping already."""
        run = self.runs[run_id]
        if run.cancelling or run.status in RUN_FINAL:
            return []
        t = Transition(run_id)
        with self._step(run_id):
            stopping.stop(run, t, self.fx, cancel=True, resumes=True)
            self._unqueue(run_id)
        return self._dispatch(Out(t))

    def break_off(self, run_id: UUID, failure: Failure) -> list[Transition]:
        """End a run that cannot go on for a fault of the engine's; nothing where it is over."""
        run = self.runs[run_id]
        if run.status in RUN_FINAL:
            return []  # as it was read again it came to its end, which is on its way
        t = Transition(run_id)
        with self._step(run_id):
            stopping.break_off(run, t, self.fx, failure)
            self._unqueue(run_id)
        return self._dispatch(Out(t))

    def pause(self, run_id: UUID) -> list[Transition]:
        """Let nothing new begin in a run and its sub-workflows; what runs ends, clocks go on."""
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
        """Neither keep a place of a limit nor wait for one: nothing of a paused run has begun."""
        if self.limited.waits(run.id):
            self.limited.forget(run.id, whole=True)
            run.asleep = False
        self._give_back(run.id, t)

    def resume(self, run_id: UUID, *, now: float) -> list[Transition]:
        """Let a paused run and its sub-workflows go on."""
        self._now = now
        out = Out()
        with self._step(run_id, asked=True):
            for run in self._family(run_id):
                self._resume(run, out)
        return self._dispatch(out)

    def pause_node(self, run_id: UUID, place: int) -> list[Transition]:
        """Hold up a node that is not running, until it is let go."""
        t, run = Transition(run_id), self.runs[run_id]
        with self._step(run_id, asked=True):
            controls.pause_node(run, place, t, self.fx)
            run.queue_left_s |= self.timers.stop_queued(run_id, self._time(), slot=place)
        return self._dispatch(Out(t))

    def resume_node(self, run_id: UUID, place: int) -> list[Transition]:
        """Let a node go that was held up."""
        t, run = Transition(run_id), self.runs[run_id]
        with self._step(run_id, asked=True):
            controls.resume_node(run, place, t, self.fx)
            if place in run.queued:  # it kept its place in line, and waits on
                self._bound_queueing(run, place)
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
