"""The signatures of everything a definition refers to: nodes, and workflows run as nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from services.kit.caller import Caller
from services.kit.pg import Db, Pool, as_caller
from services.registry.domain import builtins
from services.registry.domain.constructs import SubWorkflow
from services.registry.domain.definition import (
    INFO,
    NODES_MAX,
    Definition,
    Finding,
    WorkflowNode,
)
from services.registry.domain.graph import FINDINGS_MAX
from services.registry.domain.sub_workflows import DEPTH_MAX, Key, Known, sub_workflow_findings
from services.registry.storage import nodes, sources, sub_workflows, uses
from services.registry.storage.nodes import Signatures


@dataclass(frozen=True, slots=True)
class Standing:
    """Signatures of what a definition refers to, and findings about its sub-workflows."""

    signatures: Signatures
    findings: tuple[Finding, ...] = ()


def is_workflow(node: WorkflowNode) -> bool:
    """Return whether a place runs a workflow."""
    return isinstance(node.construct, SubWorkflow)


def python_places(definition: Definition) -> list[Key]:
    """Return the distinct Python nodes of a definition, with versions."""
    return list(
        dict.fromkeys((e.node_id, e.version) for e in definition.nodes if e.construct is None)
    )


def workflow_places(definition: Definition) -> list[Key]:
    """Return the distinct sub-workflows of a definition, with versions."""
    return list(dict.fromkeys((e.node_id, e.version) for e in definition.nodes if is_workflow(e)))


async def standing_in(
    db: Db, definition: Definition, workflow_id: UUID | None = None, *, besides: Iterable[UUID] = ()
) -> Standing:
    """Read the signatures that a definition refers to; `besides` are ids of unstored nodes."""
    apart = frozenset(besides)
    asked = [each for each in python_places(definition) if each[0] not in apart]
    signatures: Signatures = await nodes.get_signatures(db, asked)
    wanted = workflow_places(definition)
    if not wanted:
        return Standing(signatures)
    found = await _closure(db, wanted)
    for key in wanted:
        row = found.get(key)
        signatures[key] = None if row is None else _signature(row)
    known = {key: Known(each.name, each.is_active, each.runs) for key, each in found.items()}
    return Standing(signatures, tuple(sub_workflow_findings(definition, workflow_id, known)))


def _signature(row: sub_workflows.SubWorkflow) -> dict[str, str]:
    return {
        "python_version": "",
        "input_types": row.input_types,
        "output_types": row.output_types,
        "is_workflow": "yes",
    }


async def _closure(db: Db, wanted: list[Key]) -> Mapping[Key, sub_workflows.SubWorkflow]:
    """Read workflows and those that they run, one level deeper than is allowed."""
    found: dict[Key, sub_workflows.SubWorkflow] = {}
    asked = wanted
    for _ in range(DEPTH_MAX + 1):
        found |= await sub_workflows.get_sub_workflows(db, asked)
        runs = dict.fromkeys(each for key in asked if key in found for each in found[key].runs)
        asked = [each for each in runs if each not in found]
        if not asked or len(found) > NODES_MAX:
            break
    return found


async def pinned_to_others(
    pool: Pool, caller: Caller, definition: Definition
) -> tuple[Definition, list[Finding]]:
    """Pin floating references to other tenants' nodes.

    Their next version must not run before the definition's owner asks for it.
    """
    floating = [each for each in definition.nodes if not each.version]
    if not floating or len(definition.nodes) > NODES_MAX:
        return definition, []
    python = {each.node_id for each in floating if each.construct is None}
    workflows = {each.node_id for each in floating if is_workflow(each)}
    foreign: dict[UUID, int] = {}
    async with as_caller(pool, caller) as db:
        if python:
            foreign |= await uses.foreign_versions(db, list(python), tenant_id=caller.tenant_id)
        if workflows:
            foreign |= await sub_workflows.foreign_workflows(
                db, list(workflows), tenant_id=caller.tenant_id
            )
    if not foreign:
        return definition, []
    places = list(definition.nodes)
    findings = []
    for index, each in enumerate(places):
        if not each.version and each.node_id in foreign:
            version = foreign[each.node_id]
            places[index] = replace(each, version=version)
            what = "workflow" if is_workflow(each) else "node"
            message = f"another tenant's {what} is pinned to its current version, {version}"
            findings.append(Finding(INFO, f"nodes[{index}].version", "NODE_PINNED", message))
    return replace(definition, nodes=tuple(places)), findings[:FINDINGS_MAX]


async def names_in(db: Db, definition: Definition) -> dict[Key, str]:
    """Return the names of everything a definition refers to; unless the caller cannot see it."""
    names = await sources.get_names(db, python_places(definition))
    wanted = workflow_places(definition)
    if wanted:
        found = await sub_workflows.get_sub_workflows(db, wanted)
        names |= {key: each.name for key, each in found.items()}
    for node in definition.nodes:
        described = builtins.BY_KIND.get(node.kind)
        if described is not None:
            names[node.node_id, node.version] = described.name
    return names
