"""Outputs that a caller gives for a skipped node, checked against its types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from services.kit.errors import invalid
from services.orchestrator.domain.plan import Kind, Place
from services.orchestrator.storage.recovery import split_object
from services.orchestrator.usecases.given_values import check, parsed, wrong_at

_FIELD: Final = "output_json"
_APPROVER: Final = "approver"


def read_outputs(place: Place, text: str, caller_id: UUID) -> tuple[bytes, ...]:
    """Decode the outputs given for a node; the approver of an approval is the caller."""
    values = parsed(_FIELD, text)
    given: dict[str, Any] = {}
    texts: dict[str, bytes] = {}
    if place.kind is Kind.APPROVAL:
        given[_APPROVER] = str(caller_id)
        texts[_APPROVER] = json.dumps(given[_APPROVER]).encode()
    if not isinstance(values, dict) or set(given | values) != set(place.outputs):
        names = ", ".join(place.outputs)
        raise invalid(_FIELD, "OUTPUTS_WRONG", f"must be an object of all its outputs: {names}")
    _check_types(place, given | values)
    if _APPROVER in given and values.get(_APPROVER, given[_APPROVER]) != given[_APPROVER]:
        fault = f"must be the caller, {caller_id}: leave it out, and it is"
        raise wrong_at(_FIELD, _APPROVER, "APPROVER_NOT_CALLER", fault)
    texts |= split_object(text)
    return tuple(texts[name] for name in place.outputs)


def _check_types(place: Place, values: Mapping[str, Any]) -> None:
    for name, of in zip(place.outputs, place.output_types, strict=True):
        if _is_open(place, name, values):
            continue
        check(_FIELD, of, values[name], name)


def _is_open(place: Place, name: str, values: Mapping[str, Any]) -> bool:
    """Return whether it is the reply of a refused approval, which needs none."""
    refused = place.kind is Kind.APPROVAL and values["approved"] is False
    return refused and name == "reply" and values[name] is None
