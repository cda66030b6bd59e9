"""Checks whether a definition still fits the current versions of its nodes.

The registry checks a definition when it is stored. A place without a version follows its node, and
a later version of the node has not been checked against the edges yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qflow.types import (
    NONE,
    Type,
    ValueTextError,
    Verdict,
    VerdictKind,
    check_value,
    contains_named,
    from_json,
    parse_strict,
    verdict,
)
from qflow.types.verdict import widens

from services.kit.cel import ExpressionError, compile_expression
from services.kit.errors import FailedPrecondition, FieldViolation
from services.kit.graph_types import ANY_OR_NONE, ERROR_TYPE, element_of
from services.orchestrator.domain.compile import bound_texts
from services.orchestrator.domain.plan import Definition, NodeVersion
from services.orchestrator.domain.signatures import Signature, Signatures

_NAMES_SHOWN_MAX: Final = 10
_VALUE_CHARS_MAX: Final = 200
_ADVICE: Final = "update the workflow to what its nodes are now, or name a version of the node"


_NO_VARIABLES: Final[Mapping[str, str]] = {}


def check(
    definition: Definition,
    versions: Mapping[str, NodeVersion],
    variables: Mapping[str, str] = _NO_VARIABLES,
) -> None:
    """Refuse a definition that does not fit these versions, with all faults at once."""
    _check_parameters(definition)
    faults = find_faults(definition, versions, variables)
    if not faults:
        return
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    raise FailedPrecondition(
        "NODE_INCOMPATIBLE",
        f"{first.field}: {first.description}{more}; {_ADVICE}",
        fields=faults,
        resource=("workflow", str(definition.workflow_id)),
    )


def _check_parameters(definition: Definition) -> None:
    """Refuse a template with open parameters."""
    faults = [
        FieldViolation(f"parameters[{index}]", f"{each['name']} has no value", "PARAMETER_OPEN")
        for index, each in enumerate(definition.settings.get("parameters") or ())
        if each["default_json"] is None
    ]
    if faults:
        names = ", ".join(fault.description.split()[0] for fault in faults[:_NAMES_SHOWN_MAX])
        raise FailedPrecondition(
            "PARAMETERS_MISSING",
            f"this version is a template with parameters to fill in ({names}); create a workflow"
            " from it with CreateWorkflowFromTemplate",
            fields=faults,
            resource=("workflow", str(definition.workflow_id)),
        )


def find_faults(
    definition: Definition,
    versions: Mapping[str, NodeVersion],
    variables: Mapping[str, str] = _NO_VARIABLES,
) -> list[FieldViolation]:
    """Return the faults: of edges, then of the values that feed nodes, then of outputs."""
    run = _Check(definition, versions, variables)
    run.edges()
    run.nodes()
    run.outputs()
    return run.faults


@dataclass(slots=True)
class _Check:
    """A check in progress."""

    definition: Definition
    versions: Mapping[str, NodeVersion]
    variables: Mapping[str, str]
    faults: list[FieldViolation] = field(default_factory=list)
    # Graphs repeat few nodes many times: each pair of types is checked once.
    judged: dict[tuple[Type, Type, str], Verdict] = field(default_factory=dict)
    right: set[tuple[Type, str]] = field(default_factory=set)  # values known to be of a type
    fed: set[tuple[str, str]] = field(default_factory=set)  # (place, input)
    nodes_by_id: dict[str, Mapping[str, Any]] = field(init=False)
    signatures: Signatures = field(init=False)

    def __post_init__(self) -> None:
        self.nodes_by_id = {str(node["id"]): node for node in self.definition.nodes}
        self.signatures = Signatures(self.nodes_by_id, self.versions)

    def add(self, place: str, reason: str, description: str) -> None:
        self.faults.append(FieldViolation(place, description, reason))

    def is_apart(self, node: str) -> bool:
        """Return whether a place is a sub-workflow of a fixed version, checked by itself."""
        place = self.nodes_by_id.get(node, {})
        return place.get("kind") == "workflow" and node not in self.versions

    # -- edges

    def edges(self) -> None:
        inputs = {
            str(each["name"]): from_json(each["type"])
            for each in self.definition.input_types
            if each.get("type") is not None  # a draft's input may have none yet
        }
        for index, edge in enumerate(self.definition.connections):
            if edge.get("kind") and not edge["target_input"]:
                continue  # it carries no value
            node, name = str(edge["source"]), str(edge["source_output"])
            source: Type | None
            if edge.get("kind") == "failure":
                source = ERROR_TYPE
            elif node:
                signature = self.signatures.of(node)
                outputs = {} if signature is None else signature.outputs
                source = self._end(index, edge, (node, "output", name), outputs)
            else:
                source = self._end(index, edge, ("the workflow", "input", name), inputs)
            node, name = str(edge["target"]), str(edge["target_input"])
            self.fed.add((node, name))
            signature = self.signatures.of(node)
            if signature is not None and signature.is_open:
                continue
            takes = {} if signature is None else signature.inputs
            target = self._end(index, edge, (node, "input", name), takes)
            if source is not None and target is not None:
                self._fit(index, edge, *self._elements(node, name, source, target))
                self._absent(index, edge, target)

    def _elements(self, node: str, name: str, source: Type, target: Type) -> tuple[Type, Type]:
        """Return the types to compare: for a mapped list, those of its elements."""
        mapped = self.nodes_by_id[node].get("map")
        if not mapped or mapped["input"] != name:
            return source, target
        depth = int(mapped.get("depth") or 1)
        elements = element_of(source, depth), element_of(target, depth)
        if elements[0] is None or elements[1] is None:
            return source, target
        return elements[0], elements[1]

    def _absent(self, index: int, edge: Mapping[str, Any], target: Type) -> None:
        """Check that an input takes None if its source may end without a value."""
        if edge.get("absent") == "null" and not widens(NONE, target):
            fault = f"{edge['source']} may end without a value, and the input takes no None now"
            self.add(f"connections[{index}]", "INPUT_MAY_BE_ABSENT", f"{_shown(edge)}: {fault}")

    def _end(
        self,
        index: int,
        edge: Mapping[str, Any],
        end: tuple[str, str, str],
        known: Mapping[str, Type],
    ) -> Type | None:
        owner, kind, name = end
        found = known.get(name)
        if found is None and not self.is_apart(owner):
            reason = f"UNKNOWN_{kind.upper()}"
            lacks = _lacks(owner, kind, name, known)
            self.add(f"connections[{index}]", reason, f"{_shown(edge)}: {lacks}")
        return found

    def _fit(self, index: int, edge: Mapping[str, Any], source: Type, target: Type) -> None:
        conversion = str(edge.get("conversion") or "")
        said = self._judge(source, target, conversion)
        if not said.fits:
            fault = said.reason
            if said.counter_example is not None:
                fault += f" (for example {said.counter_example[:_VALUE_CHARS_MAX]})"
        elif said.kind is VerdictKind.CONVERSION:
            if said.method == conversion:
                return
            # Storing the edge now would add the conversion; the stored one passes values unchanged.
            fault = f"the values need the conversion {said.method} now, which the edge lacks"
        else:
            opaque = contains_named(source) or contains_named(target)
            if opaque is None:
                return
            fault = f"values of {opaque} are not carried between nodes"
        self.add(f"connections[{index}]", "TYPE_REFUTED", f"{_shown(edge)}: {fault}")

    def _judge(self, source: Type, target: Type, conversion: str) -> Verdict:
        key = (source, target, conversion)
        said = self.judged.get(key)
        if said is None:
            said = self.judged[key] = verdict(source, target, conversion)
        return said

    # -- nodes: literals, variables and parameters, and inputs that nothing feeds

    def nodes(self) -> None:
        for index, node in enumerate(self.definition.nodes):
            place, name = f"nodes[{index}]", str(node["id"])
            signature = self.signatures.of(name)
            if self.is_apart(name):
                continue
            if signature is None:
                self.add(place, "NODE_NOT_FOUND", f"the node behind {name} is gone")
                continue
            literals = node.get("parameters") or {}
            for at, (key, text) in enumerate(literals.items()):
                self._literal(f"{place}.literals[{at}]", name, key, text, signature)
            bound = bound_texts(self.definition, node, self.variables)
            for key, value in bound.items():
                if value is not None:
                    self._literal(f"{place}.{_kind(node, key)}", name, key, value, signature)
            for key in signature.required:
                if key not in literals and key not in bound and (name, key) not in self.fed:
                    fault = f"nothing feeds the required input {key} of {name}"
                    self.add(place, "INPUT_MISSING", fault)
            if node.get("loop"):
                self._loop(f"{place}.repeat", node, node["loop"], {*literals, *bound})

    def _loop(
        self, place: str, node: Mapping[str, Any], loop: Mapping[str, Any], given: set[str]
    ) -> None:
        """Check what a turn hands to the next, and the loop's condition, against the version."""
        name = str(node["id"])
        signature = self.signatures.of(name)
        if signature is None:
            return
        for at, (key, output) in enumerate((loop.get("carry") or {}).items()):
            source, target = signature.outputs.get(output), signature.inputs.get(key)
            if source is None:
                lacks = _lacks(name, "output", output, signature.outputs)
                self.add(f"{place}.carry[{at}]", "UNKNOWN_OUTPUT", lacks)
            elif target is None:
                lacks = _lacks(name, "input", key, signature.inputs)
                self.add(f"{place}.carry[{at}]", "UNKNOWN_INPUT", lacks)
            else:
                said = self._judge(source, target, "")
                if not said.fits or said.kind is VerdictKind.CONVERSION:
                    fault = said.reason or f"the values need the conversion {said.method} now"
                    self.add(f"{place}.carry[{at}]", "TYPE_REFUTED", fault)
        names = given | {key for owner, key in self.fed if owner == name}
        names |= {*(loop.get("carry") or ()), *signature.outputs, "turn"}
        try:
            compile_expression(str(loop["condition"]), names)
        except ExpressionError as error:
            self.add(f"{place}.condition", "EXPRESSION_INVALID", str(error))

    def _literal(self, place: str, node: str, name: str, text: str, signature: Signature) -> None:
        of = ANY_OR_NONE if signature.is_open else signature.inputs.get(name)
        if of is None:
            self.add(place, "UNKNOWN_INPUT", _lacks(node, "input", name, signature.inputs))
            return
        if (of, text) in self.right:  # one variable may be used at ten thousand places
            return
        try:
            fault = check_value(of, parse_strict(text), name)
        except ValueTextError as error:
            self.add(place, "VALUE_INVALID", f"the value of {name} of {node}: {error}")
            return
        if fault is not None:
            what = f"the value of {fault.path} of {node} {fault.message}"
            self.add(place, "VALUE_NOT_OF_TYPE", what)
        else:
            self.right.add((of, text))

    # -- the workflow's outputs

    def outputs(self) -> None:
        for index, each in enumerate(self.definition.output_types):
            node, name = str(each["node_id"]), str(each["output"])
            signature = self.signatures.of(node)
            known = {} if signature is None else signature.outputs
            if name not in known and not self.is_apart(node):
                fault = _lacks(node, "output", name, known)
                self.add(f"outputs[{index}]", "UNKNOWN_OUTPUT", f"{each['name']}: {fault}")


def _kind(node: Mapping[str, Any], key: str) -> str:
    """Return the field of a place that feeds an input, as the contract names it."""
    for kind, stored in (("variables", "variables"), ("parameters", "template_parameters")):
        keys = list(node.get(stored) or ())
        if key in keys:
            return f"{kind}[{keys.index(key)}]"
    raise AssertionError(key)


def _shown(edge: Mapping[str, Any]) -> str:
    source = (
        f"{edge['source']}.{edge['source_output']}" if edge["source"] else edge["source_output"]
    )
    return f"{source} → {edge['target']}.{edge['target_input']}"


def _lacks(owner: str, kind: str, name: str, known: Iterable[str]) -> str:
    names = list(known)[:_NAMES_SHOWN_MAX]
    has = f"it has {', '.join(names)}" if names else f"it has no {kind}s"
    return f"{owner} has no {kind} {name} ({has})"
