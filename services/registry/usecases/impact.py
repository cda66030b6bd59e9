"""Analyze what a change of a node would break, before it is made."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

import orjson
from qflow.types import Type

from services.kit.caller import Caller
from services.kit.errors import ResourceExhausted
from services.kit.pg import as_caller
from services.registry.domain.definition import WARNING, Definition, Finding
from services.registry.domain.impact import UNTOUCHED, Difference, Impact, Starters, compare
from services.registry.domain.stored import inputs_to_json, outputs_to_json
from services.registry.gateways.graph_checker import GraphChecker
from services.registry.storage import impact as storage
from services.registry.storage import variables
from services.registry.storage import workflows as workflow_storage
from services.registry.storage.nodes import Node
from services.registry.storage.workflows import Workflow
from services.registry.usecases import nodes
from services.registry.usecases.node_source import Draft
from services.registry.usecases.nodes import NodeAnswer, Nodes
from services.registry.usecases.signatures import standing_in

# Ends a page early, well before the call's deadline.
_PAGE_S: Final = 5.0
_TOO_COMPLEX: Final = "DEFINITION_TOO_COMPLEX"


@dataclass(frozen=True, slots=True)
class Touched:
    """A workflow that uses the node, and what the change does to it."""

    workflow: Workflow
    places: tuple[str, ...]
    starters: Starters
    difference: Difference


@dataclass(frozen=True, slots=True)
class Analysis:
    """One page; `last` is the row after which the next page starts, None at the end."""

    answer: NodeAnswer
    same_signature: bool
    touched: tuple[Touched, ...]
    last: tuple[datetime, UUID] | None


async def analyze_node_change(
    deps: Nodes,
    checker: GraphChecker,
    caller: Caller,
    node_id: UUID,
    draft: Draft,
    *,
    include_pinned: bool,
    after: tuple[datetime, UUID] | None,
    limit: int,
) -> Analysis:
    """Check the caller's workflows that use a node, before and after a change; stores nothing."""
    before = await nodes.get_node(deps.pool, caller, node_id)
    answer = await _changed(deps, caller, before, draft)
    pinned = before.version if include_pinned else 0
    async with as_caller(deps.pool, caller) as db:
        users = await storage.list_users(
            db,
            node_id,
            tenant_id=caller.tenant_id,
            pinned=pinned,
            after=after,
            limit=limit + 1,
        )
    old, new = _signature(before), _signature(answer.node)
    end = time.monotonic() + _PAGE_S
    touched: list[Touched] = []
    last = None
    for row in users[:limit]:
        found = await _touched(deps, checker, caller, row[1], {node_id: (old, new, pinned)})
        touched += [found] if found is not None else []
        last = row
        if time.monotonic() > end:
            break
    more = last is not None and last != users[-1]
    return Analysis(answer, old == new, tuple(touched), last if more else None)


async def _changed(deps: Nodes, caller: Caller, before: Node, draft: Draft) -> NodeAnswer:
    mask = ["code", "main_function"] if draft.code else []
    mask += ["main_function"] if draft.main_function and not mask else []
    mask += ["python_version"] if draft.python_version else []
    if not mask:
        return NodeAnswer(before)
    return await nodes.proposed(deps, caller, before, draft, mask=mask)


_Row = Mapping[str, str]


def _signature(node: Node) -> _Row:
    """Return the signature in the form in which storage returns it."""
    return {
        "python_version": node.python_version,
        "input_types": orjson.dumps(inputs_to_json(node.inputs)).decode(),
        "output_types": orjson.dumps(outputs_to_json(node.outputs)).decode(),
        "is_async": "yes" if node.is_async else "",
    }


async def _touched(
    deps: Nodes,
    checker: GraphChecker,
    caller: Caller,
    workflow_id: UUID,
    change: Mapping[UUID, tuple[_Row, _Row, int]],
) -> Touched | None:
    """Check one workflow before and after; None if it was deleted meanwhile."""
    async with as_caller(deps.pool, caller) as db:
        workflow = await workflow_storage.get_workflow(db, workflow_id)
        if workflow is None:
            return None
        standing = await standing_in(db, workflow.definition, workflow_id)
        stored: dict[tuple[UUID, int], _Row | None] = dict(standing.signatures)
        known = await variables.get_types(db, workflow.definition.variables, workflow_id)
        starters = await storage.list_starters(db, workflow_id, version=workflow.version)
    [(node_id, (old, new, pinned))] = change.items()
    keys = {(node_id, 0), (node_id, pinned)}
    places = tuple(e.id for e in workflow.definition.nodes if (e.node_id, e.version) in keys)
    if old == new:
        return Touched(workflow, places, starters, UNTOUCHED)
    then = {key: old if key in keys else row for key, row in stored.items()}
    now = {key: new if key in keys else row for key, row in stored.items()}
    difference = await _difference(checker, _unjudged(workflow.definition), then, now, known)
    return Touched(workflow, places, starters, difference)


def _unjudged(definition: Definition) -> Definition:
    """Drop stored verdicts, so that none is reported for an edge whose endpoint is gone."""
    edges = tuple(replace(each, verdict="") for each in definition.connections)
    return replace(definition, connections=edges)


async def _difference(
    checker: GraphChecker,
    definition: Definition,
    then: Mapping[tuple[UUID, int], _Row | None],
    now: Mapping[tuple[UUID, int], _Row | None],
    known: Mapping[str, Type],
) -> Difference:
    try:
        before = await checker.check(definition, then, known)
        after = await checker.check(definition, now, known)
    except ResourceExhausted as error:
        # One workflow may be too large to check; the others are still reported.
        finding = Finding(WARNING, "definition", _TOO_COMPLEX, str(error))
        return Difference(Impact.BREAKS, findings=(finding,))
    return compare(before, after)
