"""What a new run takes over from another: which places, and how the run then stands."""

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
    """A place that is taken over: whose it was, and how it ended."""

    place: int
    source_id: UUID  # the node execution that it is taken from
    output: NodeOutput | None  # of one that completed and whose row, or file, holds it
    # Of a map whose elements' rows hold what it gave, or that put some of them aside.
    parts: tuple[KeptPart, ...] = ()
    # Its compensations that are not this run's to make: what it did belongs to a run that stands.
    settled: tuple[int, ...] = ()

    @property
    def skipped(self) -> bool:
        """Whether nothing ran there: there is no result, but others were told so."""
        return self.output is None and not self.parts

    @property
    def size(self) -> int:
        """Count the results that are copied for it."""
        return (not self.skipped) + sum(part.size for part in self.parts)


def take_over(run: Run, kept: Sequence[Kept], *, new_id: Callable[[], UUID]) -> list[NodeCopy]:
    """Make a new run stand as if these places had ended in it; returns the rows of that.

    They get the first orders, in the sequence in which they are given: that in which they ended,
    which is what undoes them in the right order.
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
    """Make one place stand as it stood, and tell its children."""
    place, output = kept.place, kept.output
    status = NodeStatus.SKIPPED if kept.skipped else NodeStatus.COMPLETED
    copies.append(copy_row(run, place, kept.source_id, status, new_id=new_id, output=output))
    if kept.parts:  # from which its rows are read, too, whatever its own row holds
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
    """Make a compensation stand as skipped before its run begins; `begin` writes its row."""
    run.order += 1
    run.records[place] = NodeRecord(
        id=new_id(), order=run.order, status=NodeStatus.SKIPPED, token=0, revision=1
    )
    count_end(run, place, End.SKIPPED, "")


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
    """Give what of these may be kept: an end stands only while all that it hangs on stands.

    So does that of a place that was skipped: its sources ended as they did, and would have it
    skipped again. What closes a run is done anew for each run.
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
