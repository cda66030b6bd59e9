"""Whether a run can be made of another with other inputs and versions of nodes.

The types of edges decide, and where they do not fit, the values that were recorded: those are what
the edges of a run carry that keeps results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from qflow.types import ValueTextError, check_value, from_json, parse_strict

from services.kit.errors import FailedPrecondition, FieldViolation, InvalidArgument
from services.orchestrator.domain import compatibility
from services.orchestrator.domain.plan import Definition, NodeVersion
from services.orchestrator.domain.reuse import FromNode

_SPLIT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def new_inputs(
    from_nodes: Sequence[FromNode], versions: Mapping[str, NodeVersion]
) -> dict[str, dict[str, str]]:
    """Read the new inputs, held against the types of the nodes that take them."""
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
        types = {str(one["name"]): one["type"] for one in versions[each.node_id].input_types}
        for name, value in values.items():
            if name not in types:
                said = f"is no input of {each.node_id}; it takes {', '.join(types)}"
                faults.append(FieldViolation(f"{field}.{name}", said, "INPUT_UNKNOWN"))
                continue
            wrong = check_value(from_json(types[name]), value, name)
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
    """Refuse versions that do not fit, but for edges whose recorded value does."""
    found = compatibility.find_faults(definition, versions, variables)
    faults = [each for each in found if not _fits(each, definition, versions, recorded)]
    if faults:
        first = faults[0]
        raise FailedPrecondition(
            "NODE_INCOMPATIBLE", f"{first.field}: {first.description}", fields=faults
        )


def _fits(
    fault: FieldViolation,
    definition: Definition,
    versions: Mapping[str, NodeVersion],
    recorded: Mapping[str, Mapping[str, bytes]],
) -> bool:
    """Say whether an edge that its types refute carries a recorded value which fits."""
    if fault.reason != "TYPE_REFUTED":
        return False
    at = int(fault.field.removeprefix("connections[").removesuffix("]"))
    edge = definition.connections[at]
    texts = recorded.get(str(edge["source"]))
    if texts is None or edge.get("conversion"):
        return False
    wanted = next(
        each["type"]
        for each in versions[str(edge["target"])].input_types
        if each["name"] == edge["target_input"]
    )
    value = parse_strict(texts[str(edge["source_output"])])
    return check_value(from_json(wanted), value, str(edge["target_input"])) is None
