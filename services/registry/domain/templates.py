"""Fill in templates: arguments replace parameters, as literals of the new workflow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from qflow.types import ValueTextError, check_value, dump_exact, expression, parse_strict

from services.registry.domain.definition import (
    ERROR,
    Definition,
    Finding,
    Parameter,
    WorkflowNode,
)

FIELD: Final = "arguments_json"
MISSING: Final = "PARAMETER_MISSING"
_KNOWN_SHOWN_MAX: Final = 10
# Limits the total of filled-in values, counted at every place that uses them: more would not fit
# into a response.
_FILLED_CHARS_MAX: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Filled:
    """The definition without its parameters, and all faults of the arguments."""

    definition: Definition
    faults: tuple[Finding, ...]


def fill_in(template: Definition, arguments_json: str) -> Filled:
    """Fill in a template; parameters that are not given take their defaults."""
    try:
        arguments = parse_strict(arguments_json or "{}")
    except ValueTextError as error:
        place = f"{FIELD}.{error.path}" if error.path else FIELD
        return Filled(template, (Finding(ERROR, place, "VALUE_INVALID", error.message),))
    if not isinstance(arguments, dict):
        message = "must be a JSON object of the template's parameters by name"
        return Filled(template, (Finding(ERROR, FIELD, "NOT_AN_OBJECT", message),))
    known = ", ".join([each.name for each in template.parameters][:_KNOWN_SHOWN_MAX])
    takes = f"it takes {known}" if known else "it takes none"
    declared = {each.name for each in template.parameters}
    faults = [
        Finding(ERROR, f"{FIELD}.{name}", "UNKNOWN_PARAMETER", f"is no parameter; {takes}")
        for name in arguments
        if name not in declared
    ]
    texts: dict[str, str] = {}
    for each in template.parameters:
        if each.name in arguments:
            texts[each.name] = dump_exact(arguments[each.name])
            faults += _faults_of(each, arguments[each.name])
        elif each.default_json is not None:
            texts[each.name] = each.default_json
        else:
            of = f" of type {expression(each.type)}" if each.type is not None else ""
            faults.append(Finding(ERROR, f"{FIELD}.{each.name}", MISSING, f"needs a value{of}"))
    taken = sum(len(texts.get(name, "")) for node in template.nodes for _, name in node.parameters)
    if taken > _FILLED_CHARS_MAX:
        message = f"the values at all places take {taken} characters; {_FILLED_CHARS_MAX} may"
        return Filled(template, (*faults, Finding(ERROR, FIELD, "ARGUMENTS_TOO_LARGE", message)))
    nodes = tuple(_filled(node, texts) for node in template.nodes)
    return Filled(replace(template, nodes=nodes, parameters=()), tuple(faults))


def _faults_of(each: Parameter, value: object) -> list[Finding]:
    fault = None if each.type is None else check_value(each.type, value, each.name)
    if fault is None:
        return []
    return [Finding(ERROR, f"{FIELD}.{fault.path}", "VALUE_NOT_OF_TYPE", fault.message)]


def _filled(node: WorkflowNode, texts: dict[str, str]) -> WorkflowNode:
    given = tuple((name, texts[source]) for name, source in node.parameters if source in texts)
    return replace(node, literals=(*node.literals, *given), parameters=())
