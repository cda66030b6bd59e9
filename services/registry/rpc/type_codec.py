"""Codec for types."""

from __future__ import annotations

from collections.abc import Sequence

from qflow.registry.v1 import type_service_pb2 as pb
from qflow.types import expression, to_text

from services.kit.rpc import codec
from services.registry.domain.custom_type import Written, WrittenField
from services.registry.rpc.workflow_codec import VERDICTS
from services.registry.storage.custom_types import CustomType
from services.registry.storage.type_matrix import BuiltinType, Conversion
from services.registry.usecases.types import Comparison, TypeText


def written_from_pb(message: pb.CustomTypeDefinition) -> Written:
    """Decode the definition of a custom type."""
    if message.WhichOneof("form") == "json_schema":
        return Written(json_schema=message.json_schema)
    return Written(
        tuple(
            WrittenField(each.name, each.type_expression, each.optional)
            for each in message.record.fields
        )
    )


def type_text_from_pb(message: pb.TypeSource) -> TypeText:
    """Decode a type given in either form."""
    return TypeText(message.type_json, message.type_expression)


def custom_type_to_pb(custom: CustomType) -> pb.CustomType:
    """Encode a custom type; a validated-only one has no id."""
    exists = custom.id.int != 0
    return pb.CustomType(
        id=str(custom.id) if exists else "",
        name=custom.name,
        description=custom.description,
        definition=_written_to_pb(custom.written),
        type_json=to_text(custom.type),
        type_expression=expression(custom.type),
        version=custom.version,
        etag=custom.etag if exists else "",
        node_count=custom.node_count,
        created_by=str(custom.created_by),
        create_time=codec.timestamp(custom.created_at) if exists else None,
        update_time=codec.timestamp(custom.updated_at) if exists else None,
    )


def _written_to_pb(written: Written) -> pb.CustomTypeDefinition:
    if written.json_schema:
        return pb.CustomTypeDefinition(json_schema=written.json_schema)
    fields = [
        pb.CustomTypeField(name=each.name, type_expression=each.expression, optional=each.optional)
        for each in written.fields
    ]
    return pb.CustomTypeDefinition(record=pb.CustomTypeFields(fields=fields))


def types_to_pb(
    types: Sequence[BuiltinType], conversions: Sequence[Conversion]
) -> pb.ListTypesResponse:
    """Encode the builtin types and conversions."""
    return pb.ListTypesResponse(
        types=[
            pb.BuiltinType(
                name=each.name,
                category=each.category,
                python_type=each.python_type,
                description=each.description,
            )
            for each in types
        ],
        conversions=[
            pb.TypeConversion(
                source_type=each.source,
                target_type=each.target,
                conversion=each.method,
                lossless=each.is_lossless,
            )
            for each in conversions
        ],
    )


def comparison_to_pb(comparison: Comparison) -> pb.CompareTypesResponse:
    """Encode the verdict on an edge."""
    said = comparison.verdict
    return pb.CompareTypesResponse(
        verdict=VERDICTS[said.kind.value],
        conversion=said.method,
        lossy=not said.lossless,
        reason=said.reason,
        counter_example_json=said.counter_example or "",
        mending_conversions=said.mended_by,
        source_type_json=to_text(comparison.source),
        target_type_json=to_text(comparison.target),
    )
