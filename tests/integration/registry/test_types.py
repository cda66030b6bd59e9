from __future__ import annotations

import json
import uuid
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import node_pb2, workflow_pb2
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1 import type_service_pb2 as pb
from qflow.types import LOSSY, METHODS, SCALARS, check_value, from_text, parse_strict

from tests import factories
from tests.integration.registry.conftest import Client, Registry, refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
ADDRESS = {
    "type": "object",
    "properties": {
        "street": {"type": "string"},
        "numbers": {"type": "array", "items": {"type": "integer"}},
        "since": {"type": ["string", "null"], "format": "date"},
        "kind": {"enum": ["home", "work"]},
    },
    "required": ["street", "numbers"],
    "additionalProperties": False,
}


def _schema(schema: Any) -> pb.CustomTypeDefinition:
    return pb.CustomTypeDefinition(json_schema=json.dumps(schema))


def _fields(*optional: str, **fields: str) -> pb.CustomTypeDefinition:
    return pb.CustomTypeDefinition(
        record=pb.CustomTypeFields(
            fields=[
                pb.CustomTypeField(name=name, type_expression=text, optional=name in optional)
                for name, text in fields.items()
            ]
        )
    )


async def _create(
    client: Client, name: str, definition: pb.CustomTypeDefinition, **fields: Any
) -> pb.CustomType:
    request = pb.CreateCustomTypeRequest(name=name, definition=definition, **fields)
    made: pb.CustomType = (await client.types.CreateCustomType(request)).custom_type
    return made


async def test_a_type_is_made_of_fields_or_of_a_schema(client: Client) -> None:
    address = await _create(client, "Address", _schema(ADDRESS), description="Where.")
    assert (address.version, address.description, address.node_count) == (1, "Where.", 0)
    shape = from_text(address.type_json)
    good = {"street": "a", "numbers": [1], "since": None, "kind": "home"}
    for value, fits in (
        (good, True),
        ({"street": "a", "numbers": []}, True),
        ({"street": "a"}, False),
        ({**good, "more": 1}, False),
        ({**good, "kind": "other"}, False),
        ({**good, "since": "yesterday"}, False),
    ):
        assert (check_value(shape, value) is None) == fits

    order = await _create(
        client, "Order", _fields("note", total="Decimal", to="Address | None", note="str")
    )
    fields = {each["name"]: each for each in json.loads(order.type_json)["fields"]}
    assert fields["total"] == {"name": "total", "type": {"t": "decimal"}, "required": True}
    assert fields["to"]["type"]["any_of"][0] == json.loads(address.type_json)
    assert not fields["note"]["required"]

    read = await client.types.GetCustomType(pb.GetCustomTypeRequest(custom_type_id=order.id))
    assert read.custom_type == order
    listed = (await client.types.ListCustomTypes(pb.ListCustomTypesRequest())).custom_types
    assert [each.name for each in listed] == ["Order", "Address"]


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        (_fields(a="Nowhere"), "TYPE_UNKNOWN"),
        (_fields(a="list[Thing]"), "TYPE_RECURSIVE"),
        (_fields(a="list[" * 65 + "int" + "]" * 65), "TYPE_TOO_DEEP"),
        (_fields(a="int]; import os; x = [int"), "TYPE_NOT_UNDERSTOOD"),
        (_fields(a="__import__('os').getcwd()"), "TYPE_NOT_UNDERSTOOD"),
        (_fields(a="(" * 20_00), "TYPE_NOT_UNDERSTOOD"),
        (_fields(a="memoryview | type"), "TYPE_NOT_CARRIED"),
        (_schema({"type": "strnig"}), "TYPE_UNKNOWN"),
        (_schema({"$ref": "#/$defs/None"}), "TYPE_UNKNOWN"),
        (
            _schema({"$ref": "#/$defs/A", "$defs": {"A": {"items": {"$ref": "#"}}}}),
            "SCHEMA_KEYWORD_REFUSED",
        ),
        (
            _schema(
                {
                    "$ref": "#/$defs/A",
                    "$defs": {"A": {"type": "array", "items": {"$ref": "#/$defs/A"}}},
                }
            ),
            "TYPE_RECURSIVE",
        ),
        (_schema({"type": "integer", "minimum": 0}), "SCHEMA_KEYWORD_REFUSED"),
        (_schema({"type": "object", "properties": {"no name": {}}}), "SCHEMA_INVALID"),
        (pb.CustomTypeDefinition(json_schema="{"), "SCHEMA_INVALID"),
        (
            pb.CustomTypeDefinition(
                json_schema='{"type":"array","items":' * 65 + "true" + "}" * 65
            ),
            "TYPE_TOO_DEEP",
        ),
        (
            _schema(
                {
                    "$ref": "#/$defs/0",
                    "$defs": {
                        str(at): {
                            "type": "array",
                            "prefixItems": [{"$ref": f"#/$defs/{at + 1}"}] * 2,
                        }
                        for at in range(20)
                    }
                    | {"20": True},
                }
            ),
            "TYPE_TOO_LARGE",
        ),
    ],
)
async def test_what_is_no_type_is_refused(
    client: Client, definition: pb.CustomTypeDefinition, reason: str
) -> None:
    """B38: an unknown name, a type that holds itself, depth 65; and nothing of it is evaluated."""
    request = pb.CreateCustomTypeRequest(name="Thing", definition=definition)
    said = await refused(client.types.CreateCustomType(request))
    assert (said.code, said.reason) == (INVALID, reason)
    assert said.violations[0][0].startswith("definition.")
    assert not (await client.types.ListCustomTypes(pb.ListCustomTypesRequest())).custom_types


@pytest.mark.parametrize("name", ["int", "class", "Optional", "datetime", "1a", "a b", ""])
async def test_a_name_that_sources_use_otherwise_is_refused(client: Client, name: str) -> None:
    request = pb.CreateCustomTypeRequest(name=name, definition=_schema({"type": "string"}))
    assert (await refused(client.types.CreateCustomType(request))).code == INVALID


async def test_a_name_is_taken_once_in_a_tenant(
    registry: Registry, client: Client, sql: psycopg.Connection
) -> None:
    await _create(client, "Order", _fields(a="int"))
    request = pb.CreateCustomTypeRequest(name="Order", definition=_fields(a="int"))
    said = await refused(client.types.CreateCustomType(request))
    assert (said.code, said.reason) == (grpc.StatusCode.ALREADY_EXISTS, "CUSTOM_TYPE_EXISTS")
    other = registry.client(factories.user(sql).token)
    assert (await _create(other, "Order", _fields(b="str"))).version == 1


async def test_a_repeated_call_adds_one_type_and_validation_none(client: Client) -> None:
    """I12."""
    checked = await _create(client, "Order", _fields(a="int"), validate_only=True)
    assert (checked.id, checked.type_expression) == ("", "Order")
    request_id = str(uuid.uuid4())
    made = [
        (await _create(client, "Order", _fields(a="int"), request_id=request_id)).id
        for _ in range(2)
    ]
    assert made[0] == made[1] != ""


async def test_a_source_names_a_custom_type_in_quotes(client: Client) -> None:
    await _create(client, "Order", _fields(total="int"))
    node = await client.node('def f(order: "Order", many: list["Order"]) -> "Order": return order')
    assert [each.type_expression for each in node.inputs] == ["Order", "list[Order]"]
    assert [each.name for each in node.outputs] == ["total"]
    later = await client.node(
        "from __future__ import annotations\ndef f(order: Order) -> int: return order['total']"
    )
    assert later.inputs[0].type_json == node.inputs[0].type_json
    # Python would evaluate it, and knows no such name.
    bare = node_rpc.CreateNodeRequest(name="n", code="def f(order: Order) -> int: return 1")
    said = await refused(client.nodes.CreateNode(bare))
    assert (said.code, said.reason) == (INVALID, "CUSTOM_TYPE_NOT_QUOTED")
    own = await client.node("class Order: ...\ndef f(order: 'Order') -> int: return 1")
    assert json.loads(own.inputs[0].type_json) == {"t": "named", "name": "Order"}


async def test_anothers_custom_type_is_unknown(
    registry: Registry, client: Client, sql: psycopg.Connection
) -> None:
    """X14."""
    made = await _create(client, "Order", _fields(total="int"))
    other = registry.client(factories.user(sql).token)
    request = node_rpc.CreateNodeRequest(name="n", code="def f(x: 'Order') -> int: return 1")
    assert (await refused(other.nodes.CreateNode(request))).reason == "TYPE_UNKNOWN"
    for call in (
        other.types.GetCustomType(pb.GetCustomTypeRequest(custom_type_id=made.id)),
        other.types.UpdateCustomType(
            pb.UpdateCustomTypeRequest(custom_type_id=made.id, description="mine")
        ),
        other.types.DeleteCustomType(pb.DeleteCustomTypeRequest(custom_type_id=made.id)),
    ):
        said = await refused(call)
        assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "CUSTOM_TYPE_NOT_FOUND")


async def test_what_was_made_with_a_type_keeps_it_as_it_was(client: Client) -> None:
    made = await _create(client, "Order", _fields(total="int"))
    source = 'def f(order: "Order") -> int: return 1'
    node = await client.node(source)
    change = pb.UpdateCustomTypeRequest(
        custom_type_id=made.id, etag=made.etag, definition=_fields(total="int", tax="float")
    )
    changed = (await client.types.UpdateCustomType(change)).custom_type
    assert (changed.version, changed.node_count) == (2, 1)
    stale = await refused(client.types.UpdateCustomType(change))
    assert (stale.code, stale.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert stale.facts["etag"] == changed.etag

    kept = (await client.nodes.GetNode(node_rpc.GetNodeRequest(node_id=node.id))).node
    assert kept.inputs == node.inputs
    update = node_rpc.UpdateNodeRequest(
        node_id=node.id, code=f"# again\n{source}", update_mask=FieldMask(paths=["code"])
    )
    after: node_pb2.Node = (await client.nodes.UpdateNode(update)).node
    assert json.loads(after.inputs[0].type_json)["fields"][1]["name"] == "tax"
    assert after.inputs[0].type_json == changed.type_json


async def test_a_type_cannot_come_to_hold_itself(client: Client) -> None:
    """B38."""
    made = await _create(client, "Order", _fields(total="int"))
    change = pb.UpdateCustomTypeRequest(custom_type_id=made.id, definition=_fields(o="Order"))
    said = await refused(client.types.UpdateCustomType(change))
    assert (said.code, said.reason) == (INVALID, "TYPE_RECURSIVE")


async def test_a_type_in_use_is_not_deleted(client: Client) -> None:
    made = await _create(client, "Order", _fields(total="int"))
    node = await client.node('def f(order: "Order") -> int: return 1')
    delete = pb.DeleteCustomTypeRequest(custom_type_id=made.id)
    said = await refused(client.types.DeleteCustomType(delete))
    assert (said.code, said.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "CUSTOM_TYPE_IN_USE",
    )
    assert said.facts["node_count"] == "1"
    await client.nodes.UpdateNode(
        node_rpc.UpdateNodeRequest(
            node_id=node.id,
            code="def f(order: int) -> int: return 1",
            update_mask=FieldMask(paths=["code"]),
        )
    )
    # The old version has its shape in its own row.
    await client.types.DeleteCustomType(delete)
    old = await client.nodes.GetNode(node_rpc.GetNodeRequest(node_id=node.id, version=1))
    assert old.node.inputs[0].type_expression == "Order"
    said = await refused(client.types.DeleteCustomType(delete))
    assert said.code == grpc.StatusCode.NOT_FOUND


async def test_a_viewer_reads_and_compares_and_changes_nothing(
    registry: Registry, sql: psycopg.Connection
) -> None:
    """X17."""
    viewer = registry.client(factories.user(sql, role="viewer").token)
    assert (await viewer.types.ListTypes(pb.ListTypesRequest())).types
    request = pb.CreateCustomTypeRequest(name="Order", definition=_fields(a="int"))
    said = await refused(viewer.types.CreateCustomType(request))
    assert said.code == grpc.StatusCode.PERMISSION_DENIED


async def test_the_builtin_types_and_conversions_are_those_of_the_module(client: Client) -> None:
    found = await client.types.ListTypes(pb.ListTypesRequest())
    assert {each.name for each in found.types} >= set(SCALARS)
    methods = {each.conversion: each.lossless for each in found.conversions}
    assert methods.keys() == METHODS.keys()
    assert {name for name, lossless in methods.items() if not lossless} == LOSSY.keys()


@pytest.mark.parametrize(
    ("source", "target", "conversion", "verdict", "method"),
    [
        ("int", "int", "", workflow_pb2.VERDICT_EXACT, ""),
        ("int", "int | None", "", workflow_pb2.VERDICT_WIDENING, ""),
        ("date", "datetime", "", workflow_pb2.VERDICT_CONVERSION, "date_to_datetime"),
        ("str", "int", "str_to_int", workflow_pb2.VERDICT_CONVERSION, "str_to_int"),
        ("Order", "dict[str, Any]", "", workflow_pb2.VERDICT_CONVERSION, "record_to_dict"),
        ("str", "list[int]", "", workflow_pb2.VERDICT_REFUTED, ""),
        ("type", "type", "", workflow_pb2.VERDICT_REFUTED, ""),
    ],
)
async def test_two_types_are_compared_as_an_edge_would_be(
    client: Client, source: str, target: str, conversion: str, verdict: int, method: str
) -> None:
    await _create(client, "Order", _fields(total="int"))
    said = await client.types.CompareTypes(
        pb.CompareTypesRequest(
            source=pb.TypeSource(type_expression=source),
            target=pb.TypeSource(type_expression=target),
            conversion=conversion,
        )
    )
    assert (said.verdict, said.conversion) == (verdict, method)
    assert said.lossy == (method in LOSSY)
    if source == "str" and not conversion:
        value = parse_strict(said.counter_example_json)
        assert check_value(from_text(said.source_type_json), value) is None
        assert check_value(from_text(said.target_type_json), value) is not None
        assert "json_to_value" in said.mending_conversions


async def test_what_is_no_type_is_not_compared(client: Client) -> None:
    """B38."""
    whole = pb.TypeSource(type_json='{"t":"int"}')
    for bad, reason, field in (
        (pb.TypeSource(type_expression="Nope"), "TYPE_UNKNOWN", "target.type_expression"),
        (pb.TypeSource(type_json='{"t":"nope"}'), "TYPE_INVALID", "target.type_json"),
    ):
        request = pb.CompareTypesRequest(source=whole, target=bad)
        said = await refused(client.types.CompareTypes(request))
        assert (said.code, said.reason) == (INVALID, reason)
        assert said.violations[0][0] == field
