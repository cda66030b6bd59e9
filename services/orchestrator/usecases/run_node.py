"""Runs a single node."""

from __future__ import annotations

import asyncio
from dataclasses import replace as replaced
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import NotFound, invalid, no_version
from services.kit.graph_types import BUILTIN_IDS
from services.kit.pg import as_caller, transaction
from services.orchestrator.domain import inputs
from services.orchestrator.domain.options import Wishes
from services.orchestrator.domain.plan import Plan
from services.orchestrator.engine.callers import NotStarted
from services.orchestrator.engine.engine import Engine
from services.orchestrator.storage import pins
from services.orchestrator.usecases.launch import (
    Launch,
    Started,
    changes_all_the_time,
    check_runners,
    digest_of,
    launch,
    same_request,
)
from services.orchestrator.usecases.plans import unlocked
from services.orchestrator.usecases.read import Reader

_TRIES_MAX: Final = 3


async def run_node(
    reader: Reader,
    engine: Engine,
    caller: Caller,
    node_id: UUID,
    version: int,
    input_json: str,
    request_id: UUID | None,
    *,
    wishes: Wishes,
) -> Started:
    """Start a run of a single node; returns once it is committed. Version 0: the current one."""
    digest = digest_of("RunNode", node_id, version, input_json, wishes.digest())
    earlier = await same_request(reader.api_pool, caller, request_id, digest)
    for _ in range(_TRIES_MAX):
        if earlier is not None:
            return Started(earlier, await reader.plan(earlier), existing=True)
        plan, version_id = await _plan(reader, engine, caller, node_id, version)
        check_runners(engine, plan)
        await asyncio.to_thread(inputs.check, plan, input_json)
        kept = replaced(wishes.options, node_version_id=version_id)
        asked = Launch(
            plan=plan,
            input_json=input_json,
            request_id=request_id,
            digest=digest,
            wishes=replaced(wishes, options=kept),
        )
        try:
            return Started(await launch(engine, caller, asked), plan)
        except NotStarted:
            earlier = await same_request(reader.api_pool, caller, request_id, digest)
    raise changes_all_the_time(wishes)


async def _plan(
    reader: Reader, engine: Engine, caller: Caller, node_id: UUID, version: int
) -> tuple[Plan, UUID]:
    async with as_caller(reader.api_pool, caller) as db:
        current = await pins.get_node_head(db, node_id)
    if current is None and node_id in BUILTIN_IDS.values():
        fault = "a built-in node has its meaning in a workflow, and is not run alone"
        raise invalid("node_id", "NODE_BUILT_IN", fault)
    if current is None:
        raise NotFound(
            "NODE_NOT_FOUND",
            "no such node; ListNodes shows those you may run",
            resource=("node", str(node_id)),
        )
    async with transaction(reader.engine_pool) as db:
        found = await pins.get_node_version(db, node_id, version or current)
        if found is None:
            raise no_version("node", node_id, version, newest=current, field="node_version")
        plan = await reader.plans.of_node(db, caller.tenant_id, found)
        engine.core.unlocked |= await unlocked(db, [plan], engine.core.unlocked)
    return plan, found.id
