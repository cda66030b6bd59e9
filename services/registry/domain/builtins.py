"""The built-in nodes, which the engine runs itself, described like Python nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from qflow.types import Type

from services.kit.graph_types import BUILTIN_IDS, BUILTIN_INPUTS, builtin_outputs
from services.registry.domain.constructs import Approval, Choice, Construct, Signal, Sleep
from services.registry.domain.definition import InputSpec, Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltinNode:
    """A built-in node; outputs whose type is stated at the place are `Any` here."""

    id: UUID
    kind: str
    name: str
    description: str
    inputs: Mapping[str, InputSpec]
    outputs: Mapping[str, Type]
    takes_any_input: bool = False


def _inputs(kind: str, **defaults: str) -> dict[str, InputSpec]:
    return {
        name: InputSpec(type=of, required=False, default_json=defaults.get(name))
        for name, of in BUILTIN_INPUTS[kind].items()
    }


CHOICE: Final = BuiltinNode(
    id=BUILTIN_IDS[Choice.kind],
    kind=Choice.kind,
    name="Choice",
    description="Takes one of several branches: the first whose condition holds, else the default,"
    " else none. Conditions are CEL and read whatever is connected to the node, by the name that"
    " each connection gives it. What depends on a branch that is not taken is skipped.",
    inputs=_inputs(Choice.kind),
    outputs=builtin_outputs(Choice.kind, None),
    takes_any_input=True,
)
SLEEP: Final = BuiltinNode(
    id=BUILTIN_IDS[Sleep.kind],
    kind=Sleep.kind,
    name="Sleep",
    description="Waits for a number of seconds or until a time; connect one of the two. It holds no"
    " runner while it waits, and survives restarts. Its result is the time when it continued.",
    inputs=_inputs(Sleep.kind),
    outputs=builtin_outputs(Sleep.kind, None),
)
SIGNAL: Final = BuiltinNode(
    id=BUILTIN_IDS[Signal.kind],
    kind=Signal.kind,
    name="Signal",
    description="Waits for a value that is sent to the run under the signal's name, and of the type"
    " that it states. When its time is up it gives its default, and fails where it has none.",
    inputs=_inputs(Signal.kind),
    outputs=builtin_outputs(Signal.kind, None),
)
APPROVAL: Final = BuiltinNode(
    id=BUILTIN_IDS[Approval.kind],
    kind=Approval.kind,
    name="Approval",
    description="Waits for a person to approve or not, with a comment and a reply of the type that"
    " it states. Its subject is what that person is shown. When its time is up it fails.",
    inputs=_inputs(Approval.kind, subject="null"),
    outputs=builtin_outputs(Approval.kind, None),
)

BUILTINS: Final = (CHOICE, SLEEP, SIGNAL, APPROVAL)
BY_ID: Final = {each.id: each for each in BUILTINS}
BY_KIND: Final = {each.kind: each for each in BUILTINS}


def signature_of(construct: Construct) -> Signature | None:
    """Return the signature of a built-in node at a place; None for a sub-workflow."""
    described = BY_KIND.get(construct.kind)
    if described is None:
        return None
    stated = construct.type if isinstance(construct, Signal | Approval) else None
    return Signature(
        python_version="",
        inputs=described.inputs,
        outputs=builtin_outputs(construct.kind, stated),
        is_open=described.takes_any_input,
    )
