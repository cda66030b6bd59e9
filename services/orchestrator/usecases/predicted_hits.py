"""Predicts which nodes of a planned run have cached results.

Sub-workflows are searched as the engine would start them. A plan lists each of them once, however
often it is used, so a node of one counts as a hit if it is one in every use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.kit.caller import Caller
from services.kit.ids import uuid7
from services.kit.pg import Pool, transaction
from services.orchestrator.domain import waits
from services.orchestrator.domain.cache_queue import ask_for
from services.orchestrator.domain.forecast import PlanKey, key_of
from services.orchestrator.domain.output_texts import run_output
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.domain.values import UnreadableError
from services.orchestrator.storage import cached_results
from services.orchestrator.storage.recovery import split_object

# How many cached nodes may depend on each other, in total.
_DEPTH_MAX: Final = 100
_ASKS_MAX: Final = 1000  # look-ups per level


async def predicted_hits(
    pool: Pool, caller: Caller, plan: Plan, input_json: str
) -> Mapping[PlanKey, set[int]]:
    """Return the places with cached results by workflow, as far as inputs are known.

    Those are known that come from the run's inputs, literals, and results of the cache.
    """
    if not _caches(plan):
        return {}
    search = _Search(pool, caller)
    await search.look(plan, split_object(input_json or "{}"))
    return search.found


def _caches(plan: Plan) -> bool:
    return any(
        place.cache_ttl_ms is not None or (place.sub is not None and _caches(place.sub))
        for place in plan.places
    )


class _Search:
    """A search through a plan and its sub-workflows, bounded as a whole."""

    def __init__(self, pool: Pool, caller: Caller) -> None:
        self.found: dict[PlanKey, set[int]] = {}
        self._pool = pool
        self._caller = caller
        self._left = _DEPTH_MAX

    async def look(self, plan: Plan, values: dict[str, bytes]) -> Run:
        """Search a workflow with these inputs; returns a run with the cached results."""
        run = Run(
            id=uuid7(),
            plan=plan,
            tenant_id=self._caller.tenant_id,
            created_by=self._caller.user_id,
            status=RunStatus.PENDING,
            input_values=values,
        )
        hits: set[int] = set()
        waiting = {
            at
            for at, place in enumerate(plan.places)
            if place.cache_ttl_ms is not None or (place.sub is not None and not place.grouped)
        }
        while known := sorted(at for at in waiting if self._left and _is_known(run, at)):
            waiting.difference_update(known)
            hits |= await self._ask(run, known)
            for at in known:
                if plan.places[at].sub is not None:
                    await self._look_into(run, at)
        self._note(plan, hits)
        for at, place in enumerate(plan.places):
            if place.sub is not None and (at in waiting or place.grouped):
                self._nothing_known(place.sub)
        return run

    async def _ask(self, run: Run, known: list[int]) -> set[int]:
        asks = [ask for at in known if (ask := ask_for(run, at)) is not None][:_ASKS_MAX]
        if not asks:
            return set()
        self._left -= 1
        async with transaction(self._pool) as db:
            answers = await cached_results.find(db, asks)
        hits = set()
        for answer in answers:
            if answer.hit is not None:
                hits.add(answer.ask.slot)
                run.outputs[answer.ask.slot] = answer.hit.output
        return hits

    async def _look_into(self, run: Run, at: int) -> None:
        """Search a sub-workflow; its outputs are known if all of their nodes are hits."""
        plan = run.plan.places[at].sub
        assert plan is not None
        try:
            values = run.values(at)
        except UnreadableError:  # the engine could not start it
            self._nothing_known(plan)
            return
        names = {each.name for each in plan.inputs}
        given = {name: value for name, value in values.items() if name in names}
        inside = await self.look(plan, given)
        if all(each.source in inside.outputs for each in plan.outputs):
            run.outputs[at] = waits.outputs_of(run, at, run_output(inside))

    def _note(self, plan: Plan, hits: set[int]) -> None:
        key = key_of(plan)
        self.found[key] = self.found[key] & hits if key in self.found else hits

    def _nothing_known(self, plan: Plan) -> None:
        key = key_of(plan)
        if self.found.get(key) == set():
            return  # nor of its sub-workflows
        self._note(plan, set())
        for place in plan.places:
            if place.sub is not None:
                self._nothing_known(place.sub)


def _is_known(run: Run, place: int) -> bool:
    return all(
        each.source < 0 or (each.source in run.outputs and each.output >= 0)
        for each in run.plan.places[place].inputs
    )
