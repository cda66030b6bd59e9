"""Which nodes of a run would be taken from the cache, before anything of it runs."""

from __future__ import annotations

from typing import Final

from services.kit.caller import Caller
from services.kit.ids import uuid7
from services.kit.pg import Pool, transaction
from services.orchestrator.domain.cache_queue import ask_for
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.storage import cached_results
from services.orchestrator.storage.recovery import split_object

_DEPTH_MAX: Final = 100  # nodes one after the other, each of which is known by the one before
_ASKS_MAX: Final = 1000  # of one depth


async def predicted_hits(pool: Pool, caller: Caller, plan: Plan, input_json: str) -> set[int]:
    """Give the places whose results are in the cache, as far as their inputs are known.

    Those are known that come from the run's inputs, literals, and results of the cache.
    """
    waiting = {at for at, place in enumerate(plan.places) if place.cache_ttl_ms is not None}
    hits: set[int] = set()
    if not waiting:
        return hits
    run = Run(
        id=uuid7(),
        plan=plan,
        tenant_id=caller.tenant_id,
        created_by=caller.user_id,
        status=RunStatus.PENDING,
        input_values=split_object(input_json or "{}"),
    )
    for _ in range(_DEPTH_MAX):
        known = sorted(at for at in waiting if _is_known(run, at))
        waiting.difference_update(known)
        asks = [ask for at in known if (ask := ask_for(run, at)) is not None][:_ASKS_MAX]
        if not asks:
            break
        async with transaction(pool) as db:
            answers = await cached_results.find(db, asks)
        for answer in answers:
            if answer.hit is not None:
                hits.add(answer.ask.slot)
                run.outputs[answer.ask.slot] = answer.hit.output
    return hits


def _is_known(run: Run, place: int) -> bool:
    return all(
        each.source < 0 or (each.source in run.outputs and each.output >= 0)
        for each in run.plan.places[place].inputs
    )
