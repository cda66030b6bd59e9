"""Whether the inputs of a start fit the workflow."""

from __future__ import annotations

from qflow.types import ValueTextError, check_value, expression, parse_strict

from services.kit.errors import FieldViolation, InvalidArgument
from services.orchestrator.domain.plan import Plan

_FIELD = "input_json"


def check(plan: Plan, text: str) -> None:
    """Refuse inputs that do not fit, naming every fault at once."""
    try:
        values = parse_strict(text or "{}")
    except ValueTextError as error:
        raise _refused(
            [FieldViolation(_place(error.path), error.message, "VALUE_INVALID")]
        ) from None
    if not isinstance(values, dict):
        fault = "must be a JSON object of the workflow's inputs by name"
        raise _refused([FieldViolation(_FIELD, fault, "NOT_AN_OBJECT")])
    known = {each.name: each for each in plan.inputs}
    faults = [
        FieldViolation(_place(name), _unknown(known), "INPUT_UNKNOWN")
        for name in values
        if name not in known
    ]
    for each in plan.inputs:
        if each.name not in values:
            if each.required:
                fault = f"is required: a value of type {expression(each.type)}"
                faults.append(FieldViolation(_place(each.name), fault, "INPUT_MISSING"))
            continue
        wrong = check_value(each.type, values[each.name], each.name)
        if wrong is not None:
            faults.append(FieldViolation(_place(wrong.path), wrong.message, "TYPE_MISMATCH"))
    if faults:
        raise _refused(faults)


def _place(path: str) -> str:
    return f"{_FIELD}.{path}" if path else _FIELD


def _unknown(known: object) -> str:
    names = ", ".join(known) if isinstance(known, dict) else ""
    return f"is no input of the workflow; it takes {names}" if names else "the workflow takes none"


def _refused(faults: list[FieldViolation]) -> InvalidArgument:
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return InvalidArgument(
        "INPUT_INVALID", f"{first.field}: {first.description}{more}", fields=faults
    )
