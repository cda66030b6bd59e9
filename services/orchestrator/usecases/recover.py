"""Loading what is open, when an orchestrator begins or has to begin again."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from services.kit.pg import Pool, transaction
from services.orchestrator.engine.engine import Loaded
from services.orchestrator.storage import recovery
from services.orchestrator.storage.flush import ENGINE_FORMAT
from services.orchestrator.usecases.plans import Plans, unlocked


async def load(pool: Pool, plans: Plans, ids: Sequence[UUID] | None) -> Loaded:
    """Give the open executions, all or the named ones."""
    loaded = Loaded()
    named = None if ids is None else list(ids)
    async with transaction(pool) as db:
        pins = await recovery.open_pins(db, ENGINE_FORMAT, named)
        by_pins = await plans.by_pins(db, pins)
        for each in await recovery.open_runs(db, ENGINE_FORMAT, named, by_pins):
            loaded.runs.append((each.run, dict(each.due_s), each.deadline_s))
        loaded.unlocked = await unlocked(db, by_pins.values(), set())
    return loaded
