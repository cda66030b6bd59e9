"""Plans: definitions compiled once to index arrays that all their runs share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from qflow.types import Type, from_json

NODE_TIMEOUT_MS_DEFAULT: Final = 600_000
NODE_MEMORY_BYTES_DEFAULT: Final = 512 * 1024 * 1024
# Where an input comes from when it is no node of the graph.
FROM_RUN: Final = -1
FROM_LITERAL: Final = -2


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when a failed attempt is tried again."""

    max_retries: int = 3
    initial_delay_ms: int = 1000
    factor: float = 2.0
    max_delay_ms: int = 60_000
    jitter: float = 0.1


NO_RETRY: Final = RetryPolicy(max_retries=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One input of a place: where its value comes from and what happens to it on the way."""

    name: str
    source: int  # index of a place, FROM_RUN or FROM_LITERAL
    output: int  # index into the source's outputs; meaningless otherwise
    key: str  # name of the source's output, or of the run's input
    literal: bytes  # the value of a literal, or the default of a run's input; else empty
    conversion: str
    source_type_json: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One node of the graph with all that an attempt needs."""

    id: str
    node_version_id: UUID
    python_version: str
    inputs: tuple[Binding, ...]
    outputs: tuple[str, ...]
    retry: RetryPolicy
    timeout_ms: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInput:
    """An input of the workflow, for whoever starts it."""

    name: str
    type: Type
    required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutput:
    """An output of the workflow: which output of which place."""

    name: str
    source: int
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A definition with its versions pinned. Arrays are indexed by place, in definition order."""

    pins_id: UUID
    workflow_id: UUID | None  # none of a node that runs alone
    workflow_version: int | None
    places: tuple[Place, ...]
    children: tuple[tuple[int, ...], ...]
    parents: tuple[int, ...]  # how many distinct places each one waits for
    roots: tuple[int, ...]
    index: Mapping[str, int]
    inputs: tuple[RunInput, ...]
    outputs: tuple[RunOutput, ...]
    timeout_ms: int | None
    pythons: frozenset[str]  # that its places need


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeVersion:
    """The version of a Python node that a place is pinned to."""

    id: UUID
    python_version: str
    output_types: Sequence[Mapping[str, Any]]
    # Read only to hold a definition against versions it was not compiled with before.
    input_types: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A stored workflow version, as its JSON columns hold it."""

    workflow_id: UUID | None
    version: int | None
    nodes: Sequence[Mapping[str, Any]]
    connections: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any]
    input_types: Sequence[Mapping[str, Any]]
    output_types: Sequence[Mapping[str, Any]]


_NO_VARIABLES: Final[Mapping[str, str]] = {}


def bound_texts(
    definition: Definition, node: Mapping[str, Any], variables: Mapping[str, str]
) -> dict[str, str | None]:
    """Give what variables and parameters feed a place, by input; None where nothing is there."""
    defaults = {
        str(each["name"]): each["default_json"]
        for each in definition.settings.get("parameters") or ()
    }
    texts = {
        str(name): variables.get(source) for name, source in (node.get("variables") or {}).items()
    }
    for name, source in (node.get("template_parameters") or {}).items():
        texts[str(name)] = defaults.get(source)
    return texts


def compile_plan(
    definition: Definition,
    versions: Mapping[str, NodeVersion],
    *,
    pins_id: UUID,
    variables: Mapping[str, str] = _NO_VARIABLES,
) -> Plan:
    """Compile a definition; `versions` gives each place's pinned version by its id in the graph.

    `variables` are the texts that were pinned with them: in the plan they are like literals.
    """
    index = {str(node["id"]): at for at, node in enumerate(definition.nodes)}
    outputs = [
        tuple(str(output["name"]) for output in versions[str(node["id"])].output_types)
        for node in definition.nodes
    ]
    incoming: list[list[Mapping[str, Any]]] = [[] for _ in definition.nodes]
    for connection in definition.connections:
        incoming[index[connection["target"]]].append(connection)
    run_inputs = {str(each["name"]): each for each in definition.input_types}
    places: list[Place] = []
    shared: dict[str, bytes] = {}
    children: list[dict[int, None]] = [{} for _ in definition.nodes]
    parents: list[int] = []
    for at, node in enumerate(definition.nodes):
        bindings = [_edge(each, index, outputs, run_inputs, versions) for each in incoming[at]]
        literals = node.get("parameters") or {}
        bindings += [_literal(name, text.encode()) for name, text in literals.items()]
        if node.get("variables") or node.get("template_parameters"):
            bound = bound_texts(definition, node, variables)
            # One variable may stand at ten thousand places: they share its bytes.
            for name, text in bound.items():
                raw = shared.get(text or "")
                if raw is None:
                    raw = shared[text or ""] = (text or "").encode()
                bindings.append(_literal(name, raw))
        sources = {binding.source for binding in bindings if binding.source >= 0}
        for source in sorted(sources):
            children[source][at] = None
        parents.append(len(sources))
        places.append(_place(node, versions[str(node["id"])], tuple(bindings), outputs[at]))
    return Plan(
        pins_id=pins_id,
        workflow_id=definition.workflow_id,
        workflow_version=definition.version,
        places=tuple(places),
        children=tuple(tuple(each) for each in children),
        parents=tuple(parents),
        roots=tuple(at for at, count in enumerate(parents) if count == 0),
        index=index,
        inputs=tuple(
            RunInput(name=name, type=from_json(each["type"]), required=bool(each["required"]))
            for name, each in run_inputs.items()
        ),
        outputs=tuple(
            RunOutput(
                name=str(each["name"]),
                source=index[each["node_id"]],
                output=outputs[index[each["node_id"]]].index(each["output"]),
            )
            for each in definition.output_types
        ),
        timeout_ms=definition.settings.get("timeout_ms"),
        pythons=frozenset(place.python_version for place in places),
    )


def _place(
    node: Mapping[str, Any],
    version: NodeVersion,
    inputs: tuple[Binding, ...],
    outputs: tuple[str, ...],
) -> Place:
    retry = node.get("retry")
    return Place(
        id=str(node["id"]),
        node_version_id=version.id,
        python_version=version.python_version,
        inputs=inputs,
        outputs=outputs,
        retry=NO_RETRY if retry is None else RetryPolicy(**retry),
        timeout_ms=int(node.get("timeout_ms") or NODE_TIMEOUT_MS_DEFAULT),
        memory_bytes=int(node.get("memory_bytes") or NODE_MEMORY_BYTES_DEFAULT),
    )


def _edge(
    connection: Mapping[str, Any],
    index: Mapping[str, int],
    outputs: Sequence[tuple[str, ...]],
    run_inputs: Mapping[str, Mapping[str, Any]],
    versions: Mapping[str, NodeVersion],
) -> Binding:
    source_id, key = str(connection["source"]), str(connection["source_output"])
    if source_id:
        source = index[source_id]
        output = outputs[source].index(key)
        source_type = versions[source_id].output_types[output]["type"]
        default = b""
    else:
        source, output = FROM_RUN, 0
        source_type = run_inputs[key]["type"]
        default = (run_inputs[key].get("default_json") or "").encode()
    return Binding(
        name=str(connection["target_input"]),
        source=source,
        output=output,
        key=key,
        literal=default,
        conversion=str(connection.get("conversion") or ""),
        source_type_json=_json(source_type) if connection.get("conversion") else "",
    )


def _literal(name: str, raw: bytes) -> Binding:
    return Binding(
        name=name,
        source=FROM_LITERAL,
        output=0,
        key="",
        literal=raw,
        conversion="",
        source_type_json="",
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
