"""Check the workflow's inputs, or infer them from the edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from qflow.types import ANY, LOSSLESS, Type, TypeFormatError, expression, from_text
from qflow.types.verdict import widens

from services.registry.domain.checks.state import SUGGESTED_MAX, Check
from services.registry.domain.definition import ERROR, INFO, InputSpec, WorkflowInput

# Limits the types that one input of the workflow feeds, since they are compared pairwise.
_TYPES_PER_INPUT_MAX: Final = 100


def inputs(check: Check) -> tuple[WorkflowInput, ...]:
    """Check the declared inputs, or infer them from the edges; returns them with types."""
    fed: dict[str, list[InputSpec]] = {}
    declared = {each.name for each in check.definition.inputs}
    for index in check.sound:
        edge = check.definition.connections[index]
        if edge.source:
            continue
        if declared and edge.source_output not in declared:
            message = f"the workflow declares no input {edge.source_output}"
            hint = "declare it in inputs, or declare none to have all inferred"
            place = f"connections[{index}].source_output"
            check.add(ERROR, place, "UNKNOWN_INPUT", message, hint)
            continue
        target = check.signature_of(edge.target)
        spec = target.inputs.get(edge.target_input) if target is not None else None
        if spec is not None and not edge.conversion:
            fed.setdefault(edge.source_output, []).append(spec)
        else:
            fed.setdefault(edge.source_output, [])
    if not check.definition.inputs:
        return tuple(_inferred(check, name, specs) for name, specs in fed.items())
    return _declared(check, fed)


def _inferred(check: Check, name: str, specs: Sequence[InputSpec]) -> WorkflowInput:
    # A default is inferred only if all fed inputs agree on it; otherwise a start must give a value.
    defaults = {spec.default_json for spec in specs if not spec.required}
    agreed = len(defaults) == 1 and not any(spec.required for spec in specs)
    default = defaults.pop() if agreed else None
    return WorkflowInput(name=name, type=_narrowest(check, name, specs), default_json=default)


def _narrowest(check: Check, name: str, specs: Sequence[InputSpec], place: str = "inputs") -> Type:
    """Return the type that fits everything an input feeds, directly or by lossless conversion."""
    types = list(dict.fromkeys(spec.type for spec in specs))
    if len(types) > _TYPES_PER_INPUT_MAX:
        message = f"the input {name} feeds inputs of {len(types)} different types"
        hint = f"declare its type, or feed at most {_TYPES_PER_INPUT_MAX} by one input"
        check.add(ERROR, place, "TOO_MANY_TYPES", message, hint)
        return ANY
    for fits in (widens, _converts):
        for candidate in types:
            if all(fits(candidate, other) for other in types):
                return candidate
    if types:
        shown = ", ".join(expression(each) for each in types[:SUGGESTED_MAX])
        message = f"the input {name} feeds inputs of types that no one type fits: {shown}"
        check.add(ERROR, place, "INPUT_TYPES_CONFLICT", message, "feed them by two inputs")
    return ANY


def _declared(check: Check, fed: dict[str, list[InputSpec]]) -> tuple[WorkflowInput, ...]:
    filled = []
    seen: dict[str, int] = {}
    for index, each in enumerate(check.definition.inputs):
        place = f"inputs[{index}]"
        first = seen.setdefault(each.name, index)
        if first != index:
            message = f"{each.name} is declared by inputs[{first}] already"
            check.add(ERROR, f"{place}.name", "DUPLICATE_INPUT", message)
        declared = _declared_type(check, each, f"{place}.type_json")
        if each.name not in fed:
            check.add(INFO, place, "INPUT_UNUSED", f"the input {each.name} feeds nothing")
        of = declared or _narrowest(check, each.name, fed.get(each.name, ()), place)
        if each.default_json is not None:
            check.value(f"{place}.default_json", of, each.default_json)
        filled.append(replace(each, type=of, type_text=""))
    return tuple(filled)


def _declared_type(check: Check, each: WorkflowInput, place: str) -> Type | None:
    if not each.type_text:
        return each.type
    try:
        return from_text(each.type_text)
    except TypeFormatError as error:
        check.add(ERROR, place, "TYPE_INVALID", str(error))
        return None


def _converts(source: Type, target: Type) -> bool:
    """Return whether the source fits, directly or by a lossless conversion."""
    made = (rule(source) for rule in LOSSLESS.values())
    return widens(source, target) or any(each and widens(each, target) for each in made)
