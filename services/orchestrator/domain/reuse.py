"""What a new run keeps of another: which places, and the resulting state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias
from uuid import UUID

from services.orchestrator.domain.copies import KeptPart, copy_part, copy_row
from services.orchestrator.domain.ends import End, branch_of, count_end, release_inputs
from services.orchestrator.domain.plan import FROM_RUN, Definition, Phase, Plan
from services.orchestrator.domain.records import NodeRecord
from services.orchestrator.domain.rows import NodeCopy
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.domain.values import ListOutput, NodeOutput

# Edited inputs: exact JSON texts by place and input.
Edits: TypeAlias = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FromNode:
    """A node from which to rerun."""

    node_id: str
    input_json: str = ""
    version: int | None = None  # None: the one that ran; 0: the current one


@dataclass(frozen=True, slots=True)
class Kept:
    """A place whose result is kept."""

    place: int
    source_id: UUID  # the node execution to copy
    output: NodeOutput | None  # if it completed and its row or file holds the output
    # Of a map whose output is in the rows of its elements, or that quarantined some.
    parts: tuple[KeptPart, ...] = ()
    # Its compensations that must not run here, because its effects belong to another run.
    settled: tuple[int, ...] = ()

    @property
    def skipped(self) -> bool:
        """Whether it was skipped."""
        return self.output is None and not self.parts

    @property
    def size(self) -> int:
        """Count the results that are copied for it."""
        return (not self.skipped) + sum(part.size for part in self.parts)


def take_over(run: Run, kept: Sequence[Kept], *, new_id: Callable[[], UUID]) -> list[NodeCopy]:
    """Give a new run the state as if these places had ended in it; returns their rows.

    They get the first execution orders in the given sequence, in which they ended, so that
    compensations run in the right order.
    """
    copies: list[NodeCopy] = []
    for each in kept:
        _stand(run, each, copies, new_id=new_id)
    for each in kept:
        for compensation in each.settled:
            _settle(run, compensation, new_id=new_id)
        for place in (each.place, *each.settled):
            release_inputs(run, place)
    for place in [place for place in run.outputs if run.keep[place] == 0]:
        del run.outputs[place]
    return copies


def _stand(run: Run, kept: Kept, copies: list[NodeCopy], *, new_id: Callable[[], UUID]) -> None:
    """Copy the end of one place, and update its children."""
    place, output = kept.place, kept.output
    status = NodeStatus.SKIPPED if kept.skipped else NodeStatus.COMPLETED
    copies.append(copy_row(run, place, kept.source_id, status, new_id=new_id, output=output))
    if kept.parts:  # the source of its output when it is restored, too
        output = ListOutput(
            tuple(copy_part(run, place, part, copies, new_id=new_id) for part in kept.parts)
        )
    branch = branch_of(run.plan.places[place], output)
    record = run.records[place]
    assert record is not None
    record.branch = branch
    run.done += 1
    if output is not None:
        run.outputs[place] = output
    count_end(run, place, End.SKIPPED if kept.skipped else End.DONE, branch)


def _settle(run: Run, place: int, *, new_id: Callable[[], UUID]) -> None:
    """Mark a compensation as skipped before its run begins; `begin` writes its row."""
    run.order += 1
    run.records[place] = NodeRecord(
        id=new_id(), order=run.order, status=NodeStatus.SKIPPED, token=0, revision=1
    )
    count_end(run, place, End.SKIPPED, "")


def below(plan: Plan, places: Iterable[int]) -> set[int]:
    """Return places and everything that depends on them."""
    found = set(places)
    waiting = list(found)
    while waiting:
        for child in plan.children[waiting.pop()]:
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def readers_of(plan: Plan, names: Collection[str]) -> set[int]:
    """Return the places that read any of these inputs of the run."""
    return {
        at
        for at, place in enumerate(plan.places)
        if any(each.source == FROM_RUN and each.key in names for each in place.inputs)
    }


def changed_inputs(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> set[str]:
    """Return the names of inputs whose texts differ, or that only one side has."""
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def closed(plan: Plan, kept: Collection[int]) -> list[int]:
    """Return which of these may be kept: those whose ancestors are all kept.

    That includes skipped places, whose sources would have them skipped again. Compensations and
    finally nodes are never kept.
    """
    main = {at for at in kept if plan.places[at].phase is Phase.MAIN}
    lost = below(plan, (at for at in range(len(plan.places)) if at not in main))
    return [at for at in kept if at in main and at not in lost]


def edited(definition: Definition, edits: Edits) -> Definition:
    """Return a definition with these inputs as literals of their nodes.

    Their edges carry no value any more, so that the result is checked and compiled as any other.
    Failure edges still decide whether a node runs.
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
