"""Check the workflow's outputs, its unfed inputs, and nodes whose results are not used."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from qflow.types import NONE, Type, union_of

from services.registry.domain.checks.absence import Absence
from services.registry.domain.checks.state import Check
from services.registry.domain.constructs import BRANCH, FAILURE, Sleep
from services.registry.domain.definition import WARNING, Connection, WorkflowNode, WorkflowOutput

# The longest sleep that the engine allows, 366 days.
_SLEEP_S_MAX: Final = 366 * 86_400


def outputs(check: Check, absence: Absence | None) -> tuple[WorkflowOutput, ...]:
    """Check the declared outputs, or infer them: those of every node that feeds no other."""
    if not check.definition.outputs:
        return tuple(_or_none(absence, each) for each in _sinks(check, absence))
    seen: dict[str, int] = {}
    filled = []
    for index, each in enumerate(check.definition.outputs):
        place = f"outputs[{index}]"
        first = seen.setdefault(each.name, index)
        if first != index:
            message = f"{each.name} is the name of outputs[{first}] already"
            check.error(f"{place}.name", "DUPLICATE_OUTPUT", message)
        filled.append(_or_none(absence, replace(each, type=_type_of(check, each, place))))
    return tuple(filled)


def _or_none(absence: Absence | None, output: WorkflowOutput) -> WorkflowOutput:
    """Make an output's type optional if its node may end without a value."""
    if absence is None or output.type is None or output.node not in absence.runs:
        return output
    if not absence.has_value(output.node):
        return output
    return replace(output, type=union_of((output.type, NONE)))


def _type_of(check: Check, output: WorkflowOutput, place: str) -> Type | None:
    if output.node not in check.places:
        message = f"there is no node {output.node} in this workflow"
        check.error(f"{place}.source_node", "UNKNOWN_NODE", message)
        return None
    signature = check.signature_of(output.node)
    if signature is None:
        return None
    of = signature.outputs.get(output.output)
    if of is None:
        where = f"{place}.source_output"
        check.unknown(where, "UNKNOWN_OUTPUT", output.node, output.output, signature.outputs)
    return of


def _sinks(check: Check, absence: Absence | None) -> list[WorkflowOutput]:
    edges = [
        edge
        for edge in (check.definition.connections[index] for index in check.sound)
        if edge.source and _goes_on(check, absence, edge)
    ]
    feeding = {edge.source for edge in edges if edge.is_value}
    leading = {edge.source for edge in edges}
    found = []
    for node, signature in zip(check.definition.nodes, check.known, strict=True):
        # The outputs of a built-in node are not shown if anything follows it.
        used = leading if node.construct is not None else feeding
        if node.id in used or signature is None or not node.is_main:
            continue
        single = len(signature.outputs) == 1
        for name, of in signature.outputs.items():
            shown = node.id if single else f"{node.id}.{name}"
            found.append(WorkflowOutput(name=shown, node=node.id, output=name, type=of))
    return found


def _goes_on(check: Check, absence: Absence | None, edge: Connection) -> bool:
    """Return whether an edge continues the main work.

    An edge into a finally place, into a compensation or after a failure does not.
    """
    if edge.kind == FAILURE or not check.named[edge.target].is_main:
        return False
    return absence is None or not absence.needs_failure(edge)


def missing_inputs(check: Check) -> None:
    """Warn about required inputs that nothing feeds."""
    required: dict[int, list[str]] = {}  # by id of the signature, since many places share one
    for index, node in enumerate(check.definition.nodes):
        signature = check.known[index]
        if signature is None:
            continue
        names = required.get(id(signature))
        if names is None:
            names = [name for name, spec in signature.inputs.items() if spec.required]
            required[id(signature)] = names
        for name in names:
            if (node.id, name) in check.fed:
                continue
            message = f"nothing feeds the required input {name} of {node.id}"
            hint = "add a connection or a literal"
            check.add(WARNING, f"nodes[{index}]", "INPUT_MISSING", message, hint)
        if isinstance(node.construct, Sleep):
            _span(check, node, f"nodes[{index}]")


def _span(check: Check, node: WorkflowNode, place: str) -> None:
    fed = [name for name in ("seconds", "until") if (node.id, name) in check.fed]
    if not fed:
        message = f"nothing says how long {node.id} sleeps"
        check.add(WARNING, place, "INPUT_MISSING", message, "feed seconds or until")
    elif len(fed) > 1:
        message = f"{node.id} is fed both seconds and until"
        check.error(place, "SLEEP_AMBIGUOUS", message, "feed one of the two")
    for index, (name, text) in enumerate(node.literals):
        if name == "seconds" and _number(text) < 0:
            message = f"{node.id} would sleep {text[:32]} seconds, less than none"
            where = f"{place}.literals[{index}].value_json"
            check.error(where, "SLEEP_NEGATIVE", message, "give 0 or more, or remove the sleep")
        if name == "seconds" and _number(text) > _SLEEP_S_MAX:
            message = f"{node.id} would sleep {text[:32]} seconds, longer than 366 days"
            where = f"{place}.literals[{index}].value_json"
            check.error(where, "SLEEP_TOO_LONG", message, f"give at most {_SLEEP_S_MAX}")


def _number(text: str) -> float:
    """Return a literal's number; a text that is none has been reported before."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def unreachable(check: Check, shown: Sequence[WorkflowOutput]) -> None:
    """Warn about nodes that contribute to no output and are not run for their effect."""
    reached = _walk({each.node for each in shown} | _for_effect(check), check.parents)
    for index, node in enumerate(check.definition.nodes):
        if node.id not in reached and check.known[index] is not None:
            message = f"{node.id} reaches no output of the workflow"
            hint = "connect it, declare an output of it (in Python: return it too), or remove it"
            check.add(WARNING, f"nodes[{index}]", "NODE_UNREACHABLE", message, hint)


def _for_effect(check: Check) -> set[str]:
    """Give the places that run for what they do: at the end, to undo, on a branch, on a failure.

    And those that give nothing: what would show their work?
    """
    found = {each.id for each in check.definition.nodes if not each.is_main}
    if check.kinds & {BRANCH, FAILURE}:
        edges = [check.definition.connections[index] for index in check.sound]
        found |= {edge.target for edge in edges if edge.kind in (BRANCH, FAILURE)}
    return _walk(found, check.children) | {
        node.id
        for node, signature in zip(check.definition.nodes, check.known, strict=True)
        if signature is not None and {*signature.outputs.values()} == {NONE}
    }


def _walk(found: set[str], ways: Mapping[str, Sequence[str]]) -> set[str]:
    """Add everything reachable from the given places."""
    queue = deque(found)
    while queue:
        for name in ways.get(queue.popleft(), ()):
            if name not in found:
                found.add(name)
                queue.append(name)
    return found
