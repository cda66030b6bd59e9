"""Loads open executions when an orchestrator starts or recovers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from uuid import UUID

import structlog

from services.kit.pg import Pool, transaction
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.unusable import UNREADABLE, give_up
from services.orchestrator.engine.loaded import Loaded
from services.orchestrator.storage import limit_slots, quota_usage, recovery
from services.orchestrator.storage.flush import ENGINE_FORMAT
from services.orchestrator.storage.recovery import LostRun
from services.orchestrator.usecases.plans import Plans, unlocked

log = structlog.get_logger()

# Loaded at once, some tens of milliseconds of work; the event loop is free in between.
_PIECE_NODES_MAX: Final = 5000


async def load(
    pool: Pool,
    plans: Plans,
    *,
    ids: Sequence[UUID] | None = None,
    shards: Sequence[int] | None = None,
) -> Loaded:
    """Load open executions, by id or of some shards, piece by piece."""
    loaded = Loaded()
    async with transaction(pool) as db:
        pins = await recovery.find_open(
            db,
            ENGINE_FORMAT,
            ids=None if ids is None else list(ids),
            shards=None if shards is None else list(shards),
        )
        by_pins = await plans.by_pins(db, set(pins.values()))
        loaded.unlocked = await unlocked(db, by_pins.values(), set())
        loaded.limits = await limit_slots.get_limits(db)
        loaded.quotas = await quota_usage.get_quotas(db)
    for piece in _pieces(pins, by_pins):
        async with transaction(pool) as db:
            found = await recovery.open_runs(db, piece, by_pins)
            loaded.held |= await limit_slots.get_held(db, piece)
            loaded.budgets |= await quota_usage.get_budgets(db, piece)
        for each in found:
            if isinstance(each, LostRun):
                log.error("execution_unreadable", execution_id=str(each.id), reason=each.reason)
                told = each.told or UNREADABLE
                loaded.given_up.append(give_up(each.id, each.revision, each.open_nodes, told))
            else:
                loaded.runs.append((each.run, dict(each.due_s), each.deadline_s))
                loaded.ended_children += each.ended_children
                loaded.clock = each.clock
        await asyncio.sleep(0)
    return loaded


def _pieces(pins: Mapping[UUID, UUID], plans: Mapping[UUID, Plan]) -> Iterator[list[UUID]]:
    piece: list[UUID] = []
    nodes = 0
    for run_id, pins_id in pins.items():
        size = len(plans[pins_id].places)
        if piece and nodes + size > _PIECE_NODES_MAX:
            yield piece
            piece, nodes = [], 0
        piece.append(run_id)
        nodes += size
    if piece:
        yield piece
