"""Checks whether a run can be made of another with changed inputs or node versions.

The types of edges decide; if they do not fit, the recorded values do, which are what the edges of a
run with kept results carry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from qflow.types import NONE, Type, ValueTextError, check_value, from_json, parse_strict, union_of

from services.kit.errors import FailedPrecondition, FieldViolation, InvalidArgument
from services.kit.graph_types import ANY_OR_NONE, ERROR_TYPE, SLEEP
from services.orchestrator.domain import compatibility
from services.orchestrator.domain.plan import Definition, NodeVersion
from services.orchestrator.domain.reuse import FromNode
from services.orchestrator.domain.signatures import Signature, Signatures

# The key of the run's inputs among the recorded outputs of places.
RUN: Final = ""
_SPLIT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def new_inputs(
    from_nodes: Sequence[FromNode],
    definition: Definition,
    versions: Mapping[str, NodeVersion],
) -> dict[str, dict[str, str]]:
    """Decode new inputs of places and check them against the types there.

    `versions` includes those of sub-workflows.
    """
    places = _Places(definition, versions)
    edits: dict[str, dict[str, str]] = {}
    faults: list[FieldViolation] = []
    for at, each in enumerate(from_nodes):
        if not each.input_json:
            continue
        field = f"from_nodes[{at}].input_json"
        try:
            values = parse_strict(each.input_json)
        except ValueTextError as error:
            faults.append(FieldViolation(field, str(error), "VALUE_INVALID"))
            continue
        if not isinstance(values, dict):
            faults.append(FieldViolation(field, "must be a JSON object", "NOT_AN_OBJECT"))
            continue
        types = places.inputs_of(each.node_id)
        for name, value in values.items():
            if name not in types:
                takes = f"it takes {', '.join(types)}" if types else "it takes none"
                said = f"is no input of {each.node_id}; {takes}"
                faults.append(FieldViolation(f"{field}.{name}", said, "INPUT_UNKNOWN"))
                continue
            wrong = check_value(types[name], value, name)
            if wrong is not None:
                place = f"{field}.{wrong.path}"
                faults.append(FieldViolation(place, wrong.message, "TYPE_MISMATCH"))
        texts = _SPLIT.decode(each.input_json)
        edits[each.node_id] = {name: bytes(raw).decode() for name, raw in texts.items()}
    if faults:
        first = faults[0]
        said = f"{first.field}: {first.description}"
        raise InvalidArgument("INPUT_INVALID", said, fields=faults)
    return edits


def prove(
    definition: Definition,
    versions: Mapping[str, NodeVersion],
    variables: Mapping[str, str],
    recorded: Mapping[str, Mapping[str, bytes]],
) -> None:
    """Refuse versions that do not fit, except for edges whose recorded value does."""
    found = compatibility.find_faults(definition, versions, variables)
    places = _Places(definition, versions)
    faults = [each for each in found if not _fits(each, places, recorded)]
    if faults:
        first = faults[0]
        raise FailedPrecondition(
            "NODE_INCOMPATIBLE", f"{first.field}: {first.description}", fields=faults
        )


def _fits(
    fault: FieldViolation, places: _Places, recorded: Mapping[str, Mapping[str, bytes]]
) -> bool:
    """Return whether an edge with refuted types carries a recorded value that fits."""
    if fault.reason != "TYPE_REFUTED" or not fault.field.startswith("connections["):
        return False
    at = int(fault.field.removeprefix("connections[").removesuffix("]"))
    edge = places.definition.connections[at]
    text = recorded.get(str(edge["source"]), {}).get(str(edge["source_output"]))
    if text is None or edge.get("conversion"):
        return False
    name = str(edge["target_input"])
    wanted = places.inputs_of(str(edge["target"]))[name]
    return check_value(wanted, parse_strict(text), name) is None


class _Places:
    """The places of a definition, of any kind."""

    def __init__(self, definition: Definition, versions: Mapping[str, NodeVersion]) -> None:
        self.definition = definition
        self._nodes = {str(node["id"]): node for node in definition.nodes}
        self._signatures = Signatures(self._nodes, versions)

    def inputs_of(self, name: str) -> Mapping[str, Type]:
        """Return the inputs of a place as edges see them: for a map, its list.

        A choice has the inputs that feed it, and a sleep only the one of its two that is fed.
        """
        signature = self._signature(name)
        node = self._nodes[name]
        if signature.is_open:
            return self._feeding(node)
        fed = self._feeding(node) if node.get("kind") == SLEEP else {}
        return {each: signature.inputs[each] for each in fed} or signature.inputs

    def _signature(self, name: str) -> Signature:
        found = self._signatures.of(name)
        assert found is not None, "a run has a version of each of its nodes"
        return found

    def _feeding(self, node: Mapping[str, Any]) -> dict[str, Type]:
        """Return the inputs that feed a place, with the types of edges; any type for literals."""
        kinds = ("parameters", "variables", "template_parameters")
        types = {str(name): ANY_OR_NONE for kind in kinds for name in node.get(kind) or ()}
        for edge in self.definition.connections:
            if edge["target"] == node["id"] and edge["target_input"]:
                of = self._source(edge)
                absent = edge.get("absent") == "null"
                types[str(edge["target_input"])] = union_of((of, NONE)) if absent else of
        return types

    def _source(self, edge: Mapping[str, Any]) -> Type:
        if edge.get("kind") == "failure":
            return ERROR_TYPE
        name, output = str(edge["source"]), str(edge["source_output"])
        if name:
            return self._signature(name).outputs[output]
        inputs = self.definition.input_types
        return from_json(next(each["type"] for each in inputs if each["name"] == output))
