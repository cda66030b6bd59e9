"""Results that a new run takes over from another: which ones, and how the run then stands."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias
from uuid import UUID

from services.orchestrator.domain.ends import End, branch_of, count_end, release_inputs
from services.orchestrator.domain.plan import FROM_RUN, Definition, Phase, Plan
from services.orchestrator.domain.rows import NodeCopy
from services.orchestrator.domain.state import NodeOutput, NodeRecord, Run, file_of
from services.orchestrator.domain.status import NodeStatus

# The new inputs of places: exact JSON texts by input, by place.
Edits: TypeAlias = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FromNode:
    """A node from which a run begins again."""

    node_id: str
    input_json: str = ""
    version: int | None = None  # None for the one that ran, 0 for the current one


@dataclass(frozen=True, slots=True)
class Kept:
    """A result that is taken over: whose it was, and what it is."""

    place: int
    source_id: UUID  # the node execution that gave it
    output: NodeOutput


def take_over(run: Run, kept: Sequence[Kept], *, new_id: Callable[[], UUID]) -> list[NodeCopy]:
    """Make a new run stand as if these places had completed in it; returns the rows of that.

    They get the first orders, in the sequence in which they are given.
    """
    copies = []
    for each in kept:
        run.order += 1
        record = NodeRecord(
            id=new_id(), order=run.order, status=NodeStatus.COMPLETED, token=0, revision=1
        )
        run.records[each.place] = record
        record.branch = branch_of(run.plan.places[each.place], each.output)
        run.done += 1
        run.outputs[each.place] = each.output
        count_end(run, each.place, End.DONE, record.branch)
        copies.append(
            NodeCopy(
                id=record.id,
                run_id=run.id,
                source_id=each.source_id,
                node_id=run.plan.places[each.place].id,
                definition_node_id=run.plan.places[each.place].id,
                node_version_id=run.plan.places[each.place].node_version_id,
                execution_order=record.order,
                first=True,
                file_id=file_of(each.output),
            )
        )
    for each in kept:
        release_inputs(run, each.place)
    for place in [place for place in run.outputs if run.keep[place] == 0]:
        del run.outputs[place]
    return copies


def below(plan: Plan, places: Iterable[int]) -> set[int]:
    """Give places and everything that hangs on them."""
    found = set(places)
    waiting = list(found)
    while waiting:
        for child in plan.children[waiting.pop()]:
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def readers_of(plan: Plan, names: Collection[str]) -> set[int]:
    """Give the places that read any of these inputs of the run."""
    return {
        at
        for at, place in enumerate(plan.places)
        if any(each.source == FROM_RUN and each.key in names for each in place.inputs)
    }


def changed_inputs(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> set[str]:
    """Give the names of inputs whose texts differ, or that only one of them has."""
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def closed(plan: Plan, kept: Collection[int]) -> list[int]:
    """Give what of these may be kept: a result stands only while all it was made of stands.

    What closes a run is done anew for each run.
    """
    main = {at for at in kept if plan.places[at].phase is Phase.MAIN}
    lost = below(plan, (at for at in range(len(plan.places)) if at not in main))
    return [at for at in kept if at in main and at not in lost]


def edited(definition: Definition, edits: Edits) -> Definition:
    """Give a definition in which these inputs are values written into their nodes.

    Whatever fed them feeds them no more, so the result is proven and compiled as any other. What
    runs only where another place failed still does.
    """
    if not edits:
        return definition
    nodes = []
    for node in definition.nodes:
        inputs = edits.get(str(node["id"]))
        if not inputs:
            nodes.append(node)
            continue
        changed = dict(node)
        changed["parameters"] = {**(node.get("parameters") or {}), **inputs}
        for kind in ("variables", "template_parameters"):
            bound = node.get(kind)
            if bound:
                changed[kind] = {name: each for name, each in bound.items() if name not in inputs}
        nodes.append(changed)
    connections = []
    for each in definition.connections:
        if each["target_input"] not in edits.get(str(each["target"]), ()):
            connections.append(each)
        elif each.get("kind") == "failure":
            connections.append({**each, "source_output": "", "target_input": ""})
    return replace(definition, nodes=nodes, connections=connections)
