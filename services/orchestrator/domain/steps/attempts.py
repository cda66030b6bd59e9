"""Messages of runners about attempts: their outcomes, and declined ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from services.orchestrator.domain import failed_edges, planner, unusable
from services.orchestrator.domain.commands import SupersededCommand
from services.orchestrator.domain.effects import Ready
from services.orchestrator.domain.out import Out
from services.orchestrator.domain.records import Failure, Usage
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.domain.steps.follow import Follow
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.values import FileValue


class Outcome(NamedTuple):
    """The outcome of an attempt, as reported by its runner."""

    attempt_ref: UUID
    token: int
    result: tuple[bytes, ...] | FileValue | Failure
    usage: Usage


class Attempts(Follow):
    """Handles the ends of attempts."""

    def outcomes(
        self, runner_id: UUID, outcomes: Iterable[Outcome], *, now: float
    ) -> list[Transition]:
        """Apply outcomes of attempts; the runner is told to drop stale ones.

        That command follows what was decided before, because an outcome is stale only once that is
        committed. All outcomes of one run make one change, and dispatch happens once at the end.
        """
        self._now = now
        out = Out()
        for outcome in outcomes:
            known = self._refs.get(outcome.attempt_ref)
            if known is None:
                if not (self.faults and self._is_faulty(outcome.attempt_ref)):
                    out.add(_late(runner_id, outcome))
                continue
            run, slot = known
            try:
                self._take_outcome(runner_id, outcome, run, slot, out)
            except Exception as error:  # noqa: BLE001  # as in `_step`, which would cost here
                self.fault(run.id, error)
        return self._dispatch(out)

    def _take_outcome(
        self, runner_id: UUID, outcome: Outcome, run: Run, slot: int, out: Out
    ) -> None:
        record = run.records[slot]
        assert record is not None
        current = record.token if record.killing is None else record.killing
        if (
            record.status is not NodeStatus.RUNNING
            or outcome.token != current
            or record.runner != runner_id
        ):
            # A repeated outcome that is being committed gets its Ack from that; any other is stale.
            if record.runner != runner_id or outcome.token != record.token:
                out.add(_late(runner_id, outcome))
            return
        t = out.of(run.id)
        result = unusable.checked(run, slot, outcome.result)
        self._free(runner_id, record.id)
        spent = None
        if self.ledger:
            spent = self.ledger.charge(run, self._root(run), outcome.usage, t)
        if record.killing is not None:
            planner.confirm_stopped(run, slot, t, self.fx, usage=outcome.usage)
        elif isinstance(result, Failure):
            failure = failed_edges.named(run, slot, result)
            planner.fail(run, slot, t, self.fx, failure=failure, usage=outcome.usage)
        else:
            planner.complete(run, slot, t, self.fx, output=result, usage=outcome.usage)
            if self.cache.digests:
                t.commands.extend(self.cache.keep(run, slot, result))
        if self.held:
            self._give_back(record.id, t)
        if spent is not None:
            self._exhaust(self._root(run), spent, out)

    def declined(self, runner_id: UUID, ref: UUID, token: int) -> list[Transition]:
        """Take back an attempt that its runner declined."""
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
        with self._step(run.id):
            self._free(runner_id, record.id)
            self._give_back(record.id, t)
            if planner.hand_back(run, slot, t, self.fx):
                self._push(Ready(run, slot, alone=record.alone))
        return self._dispatch(Out(t))


def _late(runner_id: UUID, outcome: Outcome) -> Transition:
    t = Transition(outcome.attempt_ref)
    t.commands.append(SupersededCommand(runner_id, outcome.attempt_ref, outcome.token))
    return t
