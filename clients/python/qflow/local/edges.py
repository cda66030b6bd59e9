"""Type checks of the edges of a workflow written in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

from qflow.authoring.called import Called
from qflow.authoring.constructs import ApprovalSpec, SignalSpec, SleepSpec
from qflow.authoring.graph import Place
from qflow.authoring.node import Node
from qflow.authoring.refs import Source
from qflow.authoring.workflow import Workflow
from qflow.exceptions import AuthoringError
from qflow.types import ANY, NONE, SCALARS, Collection, Dict, Type, VerdictKind, union_of, verdict

Conversions = Mapping[tuple[str, str], str]

_ERROR: Final = Dict(SCALARS["str"], SCALARS["str"])
_checked: Final[WeakKeyDictionary[Workflow[..., Any], Conversions]] = WeakKeyDictionary()


class EdgeRefusedError(AuthoringError):
    """The types of an edge do not fit: the registry would refuse it as well."""


def check(workflow: Workflow[..., Any]) -> Conversions:
    """Check the types of all edges, once; returns the conversions by place and input.

    Raises EdgeRefusedError with the first edge that does not fit.
    """
    known = _checked.get(workflow)
    if known is not None:
        return known
    found: dict[tuple[str, str], str] = {}
    for place in workflow.graph.places:
        for name, source in place.fed.items():
            of, _ = type_of_source(workflow, source)
            said = verdict(of, type_wanted(place, name), place.options.conversions.get(name, ""))
            if said.kind is VerdictKind.REFUTED:
                raise EdgeRefusedError(
                    f"{workflow.name}: {source} > {place.id}.{name} does not fit: {said.reason}"
                )
            if said.method:
                found[place.id, name] = said.method
        if isinstance(place.runs, Workflow):
            check(place.runs)
    _checked[workflow] = found
    return found


def type_of_source(  # noqa: PLR0911  # one table
    workflow: Workflow[..., Any], source: Source
) -> tuple[Type, Any]:
    """Return the type of a source, and the annotation with its classes."""
    place = source.place
    if place is None:
        found = next(each for each in workflow.graph.inputs if each.name == source.output)
        return found.type, workflow.hints.get(source.output)
    if source.output == "error" and "error" not in place.outputs:
        return _ERROR, None
    match place.runs:
        case Node() as node:
            return _listed(place, node.outputs[source.output]), node.hints.get("return")
        case Workflow() as sub:
            of, hint = type_of_source(sub, sub.graph.outputs[source.output])
            return _listed(place, of), hint
        case SignalSpec(type=kind):
            return kind, None
        case SleepSpec():
            return SCALARS["datetime"], None
        case ApprovalSpec():
            return {"approved": SCALARS["bool"], "reply": ANY}.get(
                source.output, SCALARS["str"]
            ), None
        case _:
            return ANY, None


def _listed(place: Place, of: Type) -> Type:
    """Return the type of an output of a place; for a map, a list of it."""
    if place.each is None:
        return of
    return Collection("list", union_of((of, NONE)) if place.each.max_failed else of)


def type_wanted(place: Place, name: str) -> Type:
    """Return the type of an input of a place."""
    match place.runs:
        case Called() as called:
            of = called.inputs[name].type
            mapped = place.each is not None and place.each.input == name
            return Collection("list", of) if mapped else of
        case SleepSpec():
            return SCALARS["float"] if name == "seconds" else SCALARS["datetime"]
        case _:
            return ANY
