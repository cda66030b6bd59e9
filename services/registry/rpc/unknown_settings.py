"""Reject settings that this version does not know, since nothing would enforce them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from qflow.registry.v1 import workflow_pb2 as pb

from services.kit.errors import FieldViolation, InvalidArgument

_FAULTS_MAX: Final = 100
# Fields of a node that hold one message of this contract.
_PARTS: Final = frozenset(
    field
    for field in pb.WorkflowNode.DESCRIPTOR.fields
    if field.message_type is not None
    and field.message_type.file is pb.DESCRIPTOR
    and not field.is_repeated
)


def check_settings_known(definition: pb.WorkflowDefinition) -> None:
    """Raise InvalidArgument for unknown fields in a definition, naming their places."""
    # Comparing sizes first: inspecting every part costs more than decoding, and rarely finds
    # anything.
    raw = definition.SerializeToString()
    definition.DiscardUnknownFields()
    if definition.ByteSize() == len(raw):
        return
    faults = []
    for place, message in _holders(pb.WorkflowDefinition.FromString(raw)):
        numbers = _unknown_numbers(message)
        if numbers:
            shown = ", ".join(map(str, numbers[:10]))
            text = f"has fields that this server does not know, by number: {shown}"
            faults.append(FieldViolation(place, text, "SETTING_UNKNOWN"))
            if len(faults) == _FAULTS_MAX:
                break
    if faults:
        raise InvalidArgument(
            "SETTING_UNKNOWN", f"{faults[0].field} {faults[0].description}", fields=faults
        )


def _unknown_numbers(message: Message) -> list[int]:
    found: Any = UnknownFieldSet(message)
    return sorted({each.field_number for each in found})


def _holders(definition: pb.WorkflowDefinition) -> Iterator[tuple[str, Message]]:
    if definition.HasField("settings"):
        yield "definition.settings", definition.settings
    for index, node in enumerate(definition.nodes):
        yield f"definition.nodes[{index}]", node
        for field, part in node.ListFields():
            if field in _PARTS:
                yield f"definition.nodes[{index}].{field.name}", part
