"""What of a run waits for limits, from the queues in memory and the rows of slots."""

from __future__ import annotations

from services.kit.pg import Pool, transaction
from services.orchestrator.domain.dispatch import is_wanted
from services.orchestrator.domain.explain import NAMES_MAX
from services.orchestrator.domain.explain_limits import Limited
from services.orchestrator.domain.limit_lanes import WHOLE_RUN, Position
from services.orchestrator.domain.limits import Demand
from services.orchestrator.domain.state import Run
from services.orchestrator.engine.engine import Engine
from services.orchestrator.storage import limit_slots
from services.orchestrator.storage.limit_slots import Taken

_UNKNOWN = Taken(max_running=None, taken=0, holders=0, free_at=None)


async def limited_parts(pool: Pool, engine: Engine, run: Run) -> list[Limited]:
    """Return what of a run waits for limit slots, by demand.

    Other runs of the tenant are named: whoever can read this run can read those.
    """
    limits = engine.core.limits.by_id
    positions: dict[Demand, list[Position]] = {}
    for each in engine.core.limited.positions_of(run.id):
        slots = [slot for slot in each.slots if slot == WHOLE_RUN or is_wanted(run, slot)]
        if each.demand.limit_id in limits and slots:
            positions.setdefault(each.demand, []).append(each._replace(slots=slots))
    if not positions:
        return []
    names = {
        demand: [run.node_id(slot) for each in of for slot in each.slots if slot != WHOLE_RUN]
        for demand, of in positions.items()
    }
    async with transaction(pool) as db:
        taken = await limit_slots.get_taken(db, positions)
        holders = await limit_slots.get_holders(db, positions, limit=NAMES_MAX)
    return [
        Limited(
            limit=limits[demand.limit_id].name,
            nodes=names[demand],
            own_id=run.id,
            max_running=count.max_running,
            taken=count.taken,
            holders=holders.get(demand, []),
            holder_count=count.holders,
            ahead=min(each.ahead for each in of),
            free_at=count.free_at,
        )
        for demand, of in positions.items()
        for count in [taken.get(demand, _UNKNOWN)]
    ]
