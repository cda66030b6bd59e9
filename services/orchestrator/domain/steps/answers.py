"""Results of background loops: locks, cached results, limits, quotas, limit slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from services.orchestrator.domain import cache_queue, planner, routes
from services.orchestrator.domain.amounts import Amounts
from services.orchestrator.domain.cache_queue import Answer
from services.orchestrator.domain.dispatch import is_wanted
from services.orchestrator.domain.effects import Ready
from services.orchestrator.domain.ledger import Quota
from services.orchestrator.domain.limit_lanes import WHOLE_RUN
from services.orchestrator.domain.limits import Claim, Limit, Limits
from services.orchestrator.domain.out import Out
from services.orchestrator.domain.plan import Phase
from services.orchestrator.domain.records import Failure
from services.orchestrator.domain.status import RUN_FINAL
from services.orchestrator.domain.steps.follow import Follow
from services.orchestrator.domain.transition import Transition


class Answers(Follow):
    """Handles results that slots wait for."""

    def lock_known(self, node_version_id: UUID, failure: Failure | None) -> list[Transition]:
        """Dispatch the slots that waited for a node version's lock, or fail them."""
        waiting = self.locks_pending.pop(node_version_id, {})
        if failure is None:
            self.unlocked.add(node_version_id)
        out = Out()
        for run_id, slots in waiting.items():
            run = self.runs.get(run_id)
            if run is None:
                continue
            for slot in sorted(slots):
                if failure is None:
                    self._go_through(Ready(run, slot))
                    continue
                run.queued.discard(slot)  # a paused one is queued again when resumed
                if run.may_begin(slot) and run_id in self.runs:
                    with self._step(run_id):
                        planner.refuse(run, slot, out.of(run_id), self.fx, failure)
                        if run.place(slot).phase is Phase.MAIN:
                            self._unqueue(run_id)
        return self._dispatch(out)

    def cache_answered(self, answers: Sequence[Answer], *, now: float) -> list[Transition]:
        """Complete slots with cached results, and dispatch the others."""
        self._now = now
        out = Out()
        for answer in answers:
            run, slot = self.runs.get(answer.ask.run_id), answer.ask.slot
            if not self.cache.answered(answer) or run is None or not run.may_begin(slot):
                continue  # resuming the run queues the slot again
            if answer.hit is None or run.records[slot] is not None:
                self._go_through(Ready(run, slot))
                continue
            t = out.of(run.id)
            run.queued.discard(slot)
            with self._step(run.id):
                cache_queue.complete(run, slot, t, answer.hit, new_id=self.fx.new_id)
                routes.slot_done(run, slot, t, self.fx, answer.hit.output)
                routes.settle(run, t, self.fx)
        return self._dispatch(out)

    def limits_known(self, limits: Sequence[Limit], *, now: float) -> list[Transition]:
        """Replace the limits of all tenants, and queue what waits accordingly."""
        changed = {each.id: each for each in limits}
        if changed == self.limits.by_id:
            return []
        self._now = now
        self.limits = Limits(limits)
        out = Out()
        for run_id, slot, alone, _ in self.limited.drain():
            run = self.runs.get(run_id)
            if run is None or run.status in RUN_FINAL:
                continue
            if slot != WHOLE_RUN:
                self._go_through(Ready(run, slot, alone))
            else:
                with self._step(run_id):
                    self._begin_late(run, out)
        return self._dispatch(out)

    def quotas_known(self, quotas: Mapping[UUID, Quota]) -> None:
        """Replace the quotas of all tenants."""
        self.ledger.quotas = quotas

    def quotas_used(self, used: Mapping[UUID, Amounts]) -> list[Transition]:
        """End the runs of tenants whose daily quota is used up."""
        out = Out()
        for run in list(self.runs.values()):
            spent = used.get(run.tenant_id)
            if spent is None or run.parent is not None or run.status in RUN_FINAL:
                continue
            failure = self.ledger.overdrawn(run, spent)
            if failure is not None:
                with self._step(run.id):
                    self._exhaust(run, failure, out)
        return self._dispatch(out)

    def slots_taken(self, claims: Sequence[Claim], *, now: float) -> list[Transition]:
        """Continue with what was granted limit slots."""
        self._now = now
        out = Out()
        for claim in claims:
            self._go_on(claim, out)
        return self._dispatch(out)

    def _go_on(self, claim: Claim, out: Out) -> None:
        """Give acquired limit slots to the next that still needs them."""
        while (waiting := self.limited.granted(claim)) is not None:
            run_id, slot, alone, _ = waiting
            run = self.runs.get(run_id)
            if run is None or run.status in RUN_FINAL:
                pass
            elif slot == WHOLE_RUN:
                if run.asleep:
                    t = out.of(run_id)
                    with self._step(run_id):
                        self._use(claim, run_id, None, t)
                        run.asleep = False
                        routes.revive(run, t, self.fx)
                    return
            elif is_wanted(run, slot):
                self.limited.keep(waiting, claim)
                self._await_runner(run, slot, alone=alone)
                return
            else:
                run.queued.discard(slot)
