"""Compare versions of nodes and workflows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.pg import as_caller
from services.registry.domain.exchange import Source, bundled
from services.registry.domain.node_diff import (
    Change,
    changed,
    inputs_diff,
    outputs_diff,
    requirements_diff,
)
from services.registry.domain.text_diff import TextDiff
from services.registry.domain.workflow_diff import CHANGES_MAX, workflow_diff
from services.registry.storage import sources
from services.registry.storage.nodes import Node
from services.registry.storage.workflows import Workflow
from services.registry.usecases import nodes, workflows
from services.registry.usecases.exchange import Exchange
from services.registry.usecases.signatures import python_places

_FIELDS: Final = ("from_version", "to_version")


@dataclass(frozen=True, slots=True)
class Diff:
    """The differences between two versions, by part and by line."""

    changes: tuple[Change, ...]
    text: TextDiff
    versions: tuple[int, int]


async def diff_nodes(
    deps: Exchange, caller: Caller, node_id: UUID, versions: tuple[int, int]
) -> Diff:
    """Compare two versions of a node."""
    pool = deps.nodes.pool
    before, after = [
        await nodes.get_node(pool, caller, node_id, version=version, field=field)
        for version, field in zip(versions, _FIELDS, strict=True)
    ]
    # Comparing large types takes long: in a thread, so that other calls do not wait.
    changes = await asyncio.to_thread(lambda: tuple(_node_changes(before, after)))
    names = (f"version {before.version}", f"version {after.version}")
    text = await deps.documents.compare(before.code, after.code, names)
    return Diff(changes, text, (before.version, after.version))


def _node_changes(before: Node, after: Node) -> Iterator[Change]:
    yield from changed("name", before.name, after.name)
    yield from changed("description", before.description, after.description)
    yield from changed("main_function", before.main_function, after.main_function)
    yield from changed("is_async", str(before.is_async).lower(), str(after.is_async).lower())
    yield from changed("python_version", before.python_version, after.python_version)
    yield from inputs_diff(before.inputs, after.inputs)
    yield from outputs_diff(before.outputs, after.outputs)
    yield from requirements_diff(before.requirements, after.requirements)


async def diff_workflows(
    deps: Exchange, caller: Caller, workflow_id: UUID, versions: tuple[int, int]
) -> Diff:
    """Compare two versions of a workflow."""
    pool = deps.workflows.pool
    before, after = [
        await workflows.get_workflow(pool, caller, workflow_id, version=version, field=field)
        for version, field in zip(versions, _FIELDS, strict=True)
    ]
    found = _workflow_changes(before, after)
    changes = await asyncio.to_thread(lambda: tuple(islice(found, CHANGES_MAX)))
    texts = [await _text(deps, caller, each) for each in (before, after)]
    names = (f"version {before.version}", f"version {after.version}")
    text = await deps.documents.compare(texts[0], texts[1], names)
    return Diff(changes, text, (before.version, after.version))


def _workflow_changes(before: Workflow, after: Workflow) -> Iterator[Change]:
    yield from changed("name", before.name, after.name)
    yield from workflow_diff(before.definition, after.definition)


async def _text(deps: Exchange, caller: Caller, workflow: Workflow) -> str:
    """Export a version; nodes that no longer exist are represented by their ids."""
    definition = workflow.definition
    asked = python_places(definition)
    async with as_caller(deps.workflows.pool, caller) as db:
        found = await sources.get_sources(db, asked, tenant_id=caller.tenant_id)
    told = {key: found[key].source if key in found else _gone(key[0]) for key in asked}
    return await deps.documents.write(
        bundled(workflow.name, workflow.description, definition, told), "yaml"
    )


def _gone(node_id: UUID) -> Source:
    return Source(
        name=f"node {node_id}", python_version="", main_function="", digest="not there any more"
    )
