"""Read definitions through a cache; access is always checked in PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from services.kit.caller import Caller
from services.kit.pg import Pool, as_caller
from services.registry.domain.stored import graph_from_json
from services.registry.gateways.definition_cache import DefinitionCache
from services.registry.storage import definition_parts
from services.registry.storage.nodes import Node
from services.registry.storage.workflows import Workflow
from services.registry.usecases import nodes, workflows
from services.registry.usecases.changes import NODE, WORKFLOW, not_found


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading depends on; without a cache one query reads everything."""

    pool: Pool
    cache: DefinitionCache | None = None


async def get_workflow(
    deps: Reading, caller: Caller, workflow_id: UUID, *, version: int, with_graph: bool
) -> Workflow:
    """Return a workflow at a version; the graph of that version may come from the cache."""
    cache = deps.cache
    whole = with_graph and cache is None
    head = await workflows.get_workflow(
        deps.pool, caller, workflow_id, version=version, with_graph=whole
    )
    if cache is None or not with_graph:
        return head

    async def load() -> list[Any]:
        async with as_caller(deps.pool, caller) as db:
            graph = await definition_parts.get_graph(db, head.id, head.version)
        if graph is None:  # became unreadable since the first query
            raise not_found(WORKFLOW.name, workflow_id)
        return graph

    graph = await cache.through("graph", head.id, head.version, tenant_id=head.tenant_id, load=load)
    places, connections = graph_from_json(*graph)
    return replace(head, definition=replace(head.definition, nodes=places, connections=connections))


async def get_node(
    deps: Reading, caller: Caller, node_id: UUID, *, version: int, with_code: bool
) -> Node:
    """Return a node at a version; the code of that version may come from the cache."""
    cache = deps.cache
    whole = with_code and cache is None
    head = await nodes.get_node(deps.pool, caller, node_id, version=version, with_code=whole)
    if cache is None or not with_code:
        return head

    async def load() -> str:
        async with as_caller(deps.pool, caller) as db:
            code = await definition_parts.get_code(db, head.id, head.version)
        if code is None:
            raise not_found(NODE.name, node_id)
        return code

    code = await cache.through("code", head.id, head.version, tenant_id=head.tenant_id, load=load)
    return replace(head, code=code)
