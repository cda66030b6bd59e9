"""Whether the inputs of a start fit the workflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qflow.types import ValueTextError, check_value, expression, parse_strict

from services.kit.errors import FieldViolation, InvalidArgument
from services.orchestrator.domain.plan import Plan

_FIELD = "input_json"


def check(plan: Plan, text: str) -> None:
    """Refuse inputs that do not fit, naming every fault at once."""
    values = _values(text)
    _refuse(_wrong(plan, values) + _missing(plan, values))


def check_some(plan: Plan, text: str, *, payload_input: str) -> None:
    """Refuse inputs that do not fit, whatever others come with them; none is missing yet.

    `payload_input` is the one that comes later, if just one does.
    """
    faults = _wrong(plan, _values(text))
    known = [each.name for each in plan.inputs]
    if payload_input and payload_input not in known:
        faults.append(FieldViolation("payload_input", _unknown(known), "INPUT_UNKNOWN"))
    _refuse(faults)


def _values(text: str) -> dict[str, Any]:
    try:
        values = parse_strict(text or "{}")
    except ValueTextError as error:
        unreadable = FieldViolation(_place(error.path), error.message, "VALUE_INVALID")
        raise _refused([unreadable]) from None
    if not isinstance(values, dict):
        fault = "must be a JSON object of the workflow's inputs by name"
        raise _refused([FieldViolation(_FIELD, fault, "NOT_AN_OBJECT")])
    return values


def _wrong(plan: Plan, values: Mapping[str, Any]) -> list[FieldViolation]:
    types = {each.name: each.type for each in plan.inputs}
    faults = []
    for name, value in values.items():
        if name not in types:
            faults.append(FieldViolation(_place(name), _unknown(types), "INPUT_UNKNOWN"))
        elif (wrong := check_value(types[name], value, name)) is not None:
            faults.append(FieldViolation(_place(wrong.path), wrong.message, "TYPE_MISMATCH"))
    return faults


def _missing(plan: Plan, values: Mapping[str, Any]) -> list[FieldViolation]:
    return [
        FieldViolation(
            _place(each.name),
            f"is required: a value of type {expression(each.type)}",
            "INPUT_MISSING",
        )
        for each in plan.inputs
        if each.required and each.name not in values
    ]


def _place(path: str) -> str:
    return f"{_FIELD}.{path}" if path else _FIELD


def _unknown(known: Iterable[str]) -> str:
    names = ", ".join(known)
    return f"is no input of the workflow; it takes {names}" if names else "the workflow takes none"


def _refuse(faults: list[FieldViolation]) -> None:
    if faults:
        raise _refused(faults)


def _refused(faults: list[FieldViolation]) -> InvalidArgument:
    first = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return InvalidArgument(
        "INPUT_INVALID", f"{first.field}: {first.description}{more}", fields=faults
    )
