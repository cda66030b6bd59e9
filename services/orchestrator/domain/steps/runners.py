"""Runners that attach, report their attempts, grant credits, and detach."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from services.orchestrator.domain import planner
from services.orchestrator.domain.commands import AssignCommand, KillCommand, SupersededCommand
from services.orchestrator.domain.credits import Runner
from services.orchestrator.domain.effects import Ready
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.out import Out
from services.orchestrator.domain.records import NO_USAGE
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.steps.follow import Follow
from services.orchestrator.domain.transition import Transition


class Runners(Follow):
    """Handles attached runners."""

    def granted(self, runner_id: UUID, credits_: int, grant_epoch: int) -> list[Transition]:
        """Set a runner's new number of credits."""
        runner = self.runners[runner_id]
        if grant_epoch <= runner.grant_epoch or runner_id in self.fenced:
            return []
        runner.credits, runner.grant_epoch = credits_, grant_epoch
        return self._dispatch(Out())

    def attached(
        self, runner_id: UUID, offer: Offer, inventory: Mapping[UUID, int]
    ) -> list[Transition]:
        """Register a runner that attached, and reconcile its attempts.

        `inventory` holds its tokens by node row. A grant follows.
        """
        runner = self.runners.get(runner_id)
        if runner is None:
            runner = self.runners[runner_id] = Runner(incarnation=runner_id, offer=offer)
        runner.connected, runner.grant_epoch, runner.offer = True, -1, offer
        out = Out()
        for ref in list(runner.in_flight):
            if ref in self._refs:  # an exception drops the whole run
                with self._step(self._refs[ref][0].id):
                    self._agree(runner_id, ref, inventory.get(ref), out)
        for ref, token in inventory.items():
            if ref not in runner.in_flight and not self._is_faulty(ref):
                known = self._refs.get(ref)
                t = out.of(known[0].id if known else ref)
                t.commands.append(SupersededCommand(runner_id, ref, token))
        self._follow(out)
        return self._finished(out)

    def _agree(self, runner_id: UUID, ref: UUID, token: int | None, out: Out) -> None:
        run, slot = self._refs[ref]
        record = run.records[slot]
        assert record is not None
        t = out.of(run.id)
        stopping = run.is_stopping(slot) or record.killing is not None
        if stopping and token is None:
            self._free(runner_id, ref)
            planner.confirm_stopped(run, slot, t, self.fx, usage=NO_USAGE)
            self._give_back(ref, t)
        elif stopping and token is not None:
            record.killing = token
            t.commands.append(KillCommand(runner_id, ref, token))
        elif token != record.token:
            t.commands.append(AssignCommand(runner_id, run.id, slot, record.token))

    def detached(self, runner_id: UUID) -> None:
        """Handle the end of a runner's stream; its attempts go on."""
        runner = self.runners[runner_id]
        runner.connected, runner.credits = False, 0
        if not runner.in_flight:
            del self.runners[runner_id]

    def lost(self, runner_id: UUID, *, in_order: bool = False) -> list[Transition]:
        """Take back all attempts of a fenced runner; they begin again, alone.

        If it left in order, none of them had begun there: they count as declined.
        """
        self.fenced.add(runner_id)
        runner = self.runners.get(runner_id)
        if runner is None:
            return []
        runner.credits = 0
        out = Out()
        for ref in list(runner.in_flight):
            if ref in self._refs:  # an exception drops the whole run
                run, slot = self._refs[ref]
                with self._step(run.id):
                    self._lose(run, slot, out.of(run.id), in_order=in_order)
        runner.in_flight.clear()
        runner.exclusive = False
        if not runner.connected:
            self.runners.pop(runner_id, None)
        return self._dispatch(out)

    def _lose(self, run: Run, slot: int, t: Transition, *, in_order: bool) -> None:
        record = run.records[slot]
        assert record is not None
        self._give_back(record.id, t)
        take_back = planner.hand_back if in_order else planner.lose
        if take_back(run, slot, t, self.fx):
            self._push(Ready(run, slot, alone=record.alone or not in_order))
