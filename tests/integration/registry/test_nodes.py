from __future__ import annotations

import asyncio
import uuid

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import node_pb2
from qflow.registry.v1 import node_service_pb2 as pb

from tests import factories
from tests.integration.registry.conftest import Client, Registry, Resolver, change_rows, refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
DOUBLE = '''
def double(x: int, *, times: int = 2) -> int:
    """Multiply."""
    return x * times
'''
NUMPY = "import numpy\ndef f(x: int) -> int: ..."


def _create(**fields: object) -> pb.CreateNodeRequest:
    return pb.CreateNodeRequest(**{"name": "n", "code": DOUBLE, **fields})  # type: ignore[arg-type]


async def test_a_node_is_made_of_its_source_alone(client: Client) -> None:
    made = (await client.nodes.CreateNode(_create())).node
    assert (made.main_function, made.python_version, made.version) == ("double", "3.11", 1)
    assert made.description == "Multiply."
    assert [(each.name, each.type_expression, each.required) for each in made.inputs] == [
        ("x", "int", True),
        ("times", "int", False),
    ]
    assert made.inputs[1].kind == node_pb2.PARAMETER_KIND_KEYWORD
    assert made.inputs[1].default_json == "2"
    assert [(each.name, each.type_json) for each in made.outputs] == [("result", '{"t":"int"}')]
    assert made.lock_state == node_pb2.LOCK_STATE_NONE

    read = (await client.nodes.GetNode(pb.GetNodeRequest(node_id=made.id.upper()))).node
    assert read == made
    basic = pb.GetNodeRequest(node_id=made.id, view=node_pb2.NODE_VIEW_BASIC)
    assert (await client.nodes.GetNode(basic)).node.code == ""


async def test_a_byte_order_mark_before_the_source_is_taken_off(client: Client) -> None:
    made = (await client.nodes.CreateNode(_create(code=f"\ufeff{DOUBLE}"))).node
    assert made.code == DOUBLE
    again = pb.UpdateNodeRequest(
        node_id=made.id, code=f"\ufeff{DOUBLE}", update_mask=FieldMask(paths=["code"])
    )
    assert (await client.nodes.UpdateNode(again)).node.version == 1  # the same source
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # CPython takes off just one
        await client.nodes.CreateNode(_create(code=f"\ufeff\ufeff{DOUBLE}"))
    assert caught.value.code() == INVALID


async def test_requirements_are_locked_by_the_runner(
    client: Client, resolver: Resolver, user: factories.User
) -> None:
    made = await client.node(NUMPY)
    assert [(each.specifier, each.provenance) for each in made.requirements] == [
        ("numpy", "same_name")
    ]
    assert made.lock_state == node_pb2.LOCK_STATE_LOCKED
    assert resolver.asked[0].requirements == ["numpy"]
    assert resolver.asked[0].tenant_id == str(user.id)


async def test_a_lock_is_pending_while_the_index_is_away(
    client: Client, resolver: Resolver
) -> None:
    resolver.failure = (grpc.StatusCode.UNAVAILABLE, "the index is down")
    made = await client.node(NUMPY)
    assert made.lock_state == node_pb2.LOCK_STATE_PENDING
    assert "does not respond" in made.lock_error


async def test_validation_alone_stores_nothing(client: Client) -> None:
    checked = (await client.nodes.CreateNode(_create(validate_only=True))).node
    assert (checked.id, checked.inputs[0].name) == ("", "x")
    assert not (await client.nodes.ListNodes(pb.ListNodesRequest())).nodes


@pytest.mark.parametrize(
    ("fields", "reason", "place"),
    [
        ({"name": ""}, "INVALID_REQUEST", "name"),
        ({"name": "x" * 256}, "INVALID_REQUEST", "name"),
        ({"name": " \u200b\u202e\t"}, "TEXT_INVALID", "name"),
        ({"name": "a\0b"}, "INVALID_REQUEST", "name"),
        ({"description": "x" * 10_001}, "INVALID_REQUEST", "description"),
        ({"code": "def f(:"}, "SYNTAX_ERROR", "code"),
        ({"code": "#" * 2_000_000}, "INVALID_REQUEST", "code"),
        ({"code": "(" * 100_000}, "SYNTAX_ERROR", "code"),
        ({"code": "a" + ".b" * 200_000}, "SOURCE_TOO_COMPLEX", "code"),
        ({"main_function": "absent"}, "MAIN_FUNCTION_MISSING", "main_function"),
        ({"main_function": "a.b"}, "MAIN_FUNCTION_INVALID", "main_function"),
        ({"main_function": "class"}, "MAIN_FUNCTION_INVALID", "main_function"),
        ({"main_function": "__init__"}, "MAIN_FUNCTION_INVALID", "main_function"),
        ({"code": "class A: ...", "main_function": "A"}, "MAIN_FUNCTION_NOT_A_FUNCTION", "code"),
        ({"code": "f = lambda: 1", "main_function": "f"}, "MAIN_FUNCTION_NOT_A_FUNCTION", "code"),
        ({"python_version": "9.99"}, "INVALID_REQUEST", "python_version"),
        ({"python_version": "3"}, "INVALID_REQUEST", "python_version"),
        ({"python_version": "3.11; rm"}, "INVALID_REQUEST", "python_version"),
        ({"python_version": "3.99"}, "PYTHON_VERSION_UNSUPPORTED", "python_version"),
        ({"code": "def f(*a): ..."}, "PARAMETER_VARIADIC", "code"),
        ({"code": "def f(a: Nope): ..."}, "TYPE_UNKNOWN", "code"),
        (
            {"code": '# /// script\n# dependencies = ["-e ."]\n# ///\ndef f() -> None: ...'},
            "REQUIREMENT_REFUSED",
            "code",
        ),
        ({"request_id": "no-uuid"}, "INVALID_REQUEST", "request_id"),
    ],
)
async def test_what_cannot_be_a_node_is_refused_with_its_place(
    client: Client, fields: dict[str, object], reason: str, place: str
) -> None:
    """B17, B21, B23, B24, B29, B31, B32, B33, B35, B37, B38, B85."""
    said = await refused(client.nodes.CreateNode(_create(**fields)))
    assert said.code == INVALID
    assert said.violations[0][0] == place
    if reason != "INVALID_REQUEST":
        assert said.reason == reason
    assert (await client.node(DOUBLE)).version == 1


async def test_a_syntax_error_has_line_and_column(client: Client) -> None:
    """B31."""
    said = await refused(client.nodes.CreateNode(_create(code="x = 1\ndef f(:\n  pass\n")))
    assert (said.facts["line"], said.facts["column"]) == ("2", "7")
    assert "line 2, column 7" in said.text


async def test_ten_megabytes_stop_at_the_wire(client: Client) -> None:
    """B32."""
    said = await refused(client.nodes.CreateNode(_create(code="#" * 10_000_000)))
    assert said.code == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    "name", ["'); DROP TABLE python_nodes; --", "🦆 e\u0301", "\u05d0\u05d1\u05d2", "50%_\\"]
)
async def test_any_visible_name_comes_back_as_it_was(client: Client, name: str) -> None:
    """B25, B27, B28."""
    made = (await client.nodes.CreateNode(_create(name=name))).node
    assert (await client.nodes.GetNode(pb.GetNodeRequest(node_id=made.id))).node.name == name


@pytest.mark.parametrize(
    ("node_id", "code"),
    [
        ("", INVALID),
        ("not-a-uuid", INVALID),
        ("{00000000-0000-4000-8000-000000000001}", INVALID),
        ("urn:uuid:00000000-0000-4000-8000-000000000001", INVALID),
        ("00000000-0000-0000-0000-000000000000", grpc.StatusCode.NOT_FOUND),
        ("5b1c7c1e-3d5e-4f0a-9a53-0d4a3c1f2b77", grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_an_id_that_names_no_node(
    client: Client, node_id: str, code: grpc.StatusCode
) -> None:
    """B17, B18, B19, B20."""
    assert (await refused(client.nodes.GetNode(pb.GetNodeRequest(node_id=node_id)))).code == code


async def test_another_tenants_node_is_as_absent_as_none(
    registry: Registry, client: Client, sql: psycopg.Connection
) -> None:
    made = await client.node(DOUBLE)
    other = registry.client(factories.user(sql).token)
    for read in (
        other.nodes.GetNode(pb.GetNodeRequest(node_id=made.id)),
        other.nodes.UpdateNode(
            pb.UpdateNodeRequest(
                node_id=made.id, name="mine", update_mask=FieldMask(paths=["name"])
            )
        ),
    ):
        said = await refused(read)
        assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "NODE_NOT_FOUND")
    assert not (await other.nodes.ListNodes(pb.ListNodesRequest())).nodes


async def test_a_public_node_is_read_and_not_changed(
    registry: Registry, client: Client, sql: psycopg.Connection
) -> None:
    """X16."""
    made = await client.node(DOUBLE)
    await change_rows(sql, "UPDATE python_nodes SET is_public = true")
    other = registry.client(factories.user(sql).token)
    assert (await other.nodes.GetNode(pb.GetNodeRequest(node_id=made.id))).node.code == DOUBLE
    change = pb.UpdateNodeRequest(
        node_id=made.id, name="mine", update_mask=FieldMask(paths=["name"])
    )
    said = await refused(other.nodes.UpdateNode(change))
    assert said.code == grpc.StatusCode.PERMISSION_DENIED


async def test_a_repeated_call_answers_as_the_first_did(client: Client) -> None:
    """I12."""
    request = _create(request_id=str(uuid.uuid4()))
    calls = [client.nodes.CreateNode(request) for _ in range(5)]
    answers = await asyncio.gather(*calls)
    assert len({answer.node.id for answer in answers}) == 1
    assert len((await client.nodes.ListNodes(pb.ListNodesRequest())).nodes) == 1
    request.name = "another"
    said = await refused(client.nodes.CreateNode(request))
    assert (said.code, said.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


async def test_new_source_makes_a_new_version_and_keeps_the_old(client: Client) -> None:
    """B41."""
    first = await client.node(DOUBLE)
    change = pb.UpdateNodeRequest(
        node_id=first.id,
        etag=first.etag,
        code="def triple(y: float) -> float: return y * 3",
        update_mask=FieldMask(paths=["code", "main_function"]),
    )
    second = (await client.nodes.UpdateNode(change)).node
    assert (second.version, second.main_function) == (2, "triple")
    assert second.etag != first.etag
    old = (await client.nodes.GetNode(pb.GetNodeRequest(node_id=first.id, version=1))).node
    assert (old.code, old.version_id) == (DOUBLE, first.version_id)

    said = await refused(client.nodes.UpdateNode(change))
    assert (said.code, said.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert said.facts["etag"] == second.etag
    missing = pb.GetNodeRequest(node_id=first.id, version=9)
    assert (await refused(client.nodes.GetNode(missing))).code == grpc.StatusCode.NOT_FOUND


async def test_a_new_name_makes_no_version(client: Client) -> None:
    made = await client.node(DOUBLE)
    change = pb.UpdateNodeRequest(
        node_id=made.id, name="renamed", update_mask=FieldMask(paths=["name"])
    )
    renamed = (await client.nodes.UpdateNode(change)).node
    assert (renamed.name, renamed.version) == ("renamed", 1)
    assert renamed.etag != made.etag


async def test_racing_updates_make_versions_without_gaps(
    client: Client, sql: psycopg.Connection
) -> None:
    """I17."""
    made = await client.node(DOUBLE)

    async def change(number: int) -> grpc.StatusCode:
        request = pb.UpdateNodeRequest(
            node_id=made.id,
            code=f"{DOUBLE}\nLIMIT = {number}\n",
            update_mask=FieldMask(paths=["code"]),
        )
        try:
            await client.nodes.UpdateNode(request)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    codes = await asyncio.gather(*map(change, range(6)))
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.ABORTED}
    succeeded = codes.count(grpc.StatusCode.OK)
    rows = sql.execute("SELECT version FROM python_node_versions ORDER BY version").fetchall()
    assert succeeded >= 1
    assert [row[0] for row in rows] == list(range(1, succeeded + 2))


@pytest.mark.parametrize("paths", [[], ["owner"], ["name", "created_by"]])
async def test_a_mask_names_known_fields(client: Client, paths: list[str]) -> None:
    made = await client.node(DOUBLE)
    change = pb.UpdateNodeRequest(node_id=made.id, update_mask=FieldMask(paths=paths))
    assert (await refused(client.nodes.UpdateNode(change))).code == INVALID


async def test_a_mask_names_at_most_sixteen_fields(client: Client) -> None:
    """Refused by the contract's rule, in one violation."""
    made = await client.node(DOUBLE)
    mask = FieldMask(paths=["name"] * 17)
    answer = await refused(
        client.nodes.UpdateNode(pb.UpdateNodeRequest(node_id=made.id, name="x", update_mask=mask))
    )
    assert answer.code == INVALID
    assert answer.violations == [("update_mask", "UPDATE_MASK_MAX_ITEMS")]


async def test_pages_follow_each_other_without_gap_or_repetition(client: Client) -> None:
    """B62g, B62h."""
    made = [(await client.node(DOUBLE)).id for _ in range(5)]
    seen, token = [], ""
    while True:
        page = await client.nodes.ListNodes(pb.ListNodesRequest(page_size=2, page_token=token))
        seen += [each.id for each in page.nodes]
        token = page.next_page_token
        if not token:
            break
    assert seen == made[::-1]
    for request in (
        pb.ListNodesRequest(page_size=-1),
        pb.ListNodesRequest(page_token="forged"),
    ):
        assert (await refused(client.nodes.ListNodes(request))).code == INVALID


async def test_a_page_of_large_sources_is_cut_where_the_message_ends(client: Client) -> None:
    large = f"{DOUBLE}\n# {'x' * 1_000_000}\n"
    made = [(await client.node(large)).id for _ in range(5)]
    full = pb.ListNodesRequest(view=node_pb2.NODE_VIEW_FULL)
    first = await client.nodes.ListNodes(full)
    assert [each.id for each in first.nodes] == made[:0:-1]
    full.page_token = first.next_page_token
    assert [each.id for each in (await client.nodes.ListNodes(full)).nodes] == made[:1]


async def test_a_node_that_could_not_be_listed_is_not_stored(client: Client) -> None:
    """A few kilobytes of source that name one long text very often."""
    made = await client.node(DOUBLE)
    parameters = ", ".join(f"a{index}: X" for index in range(110))
    literal = f"Literal['{'x' * 20_000}']"
    code = f"from typing import Literal\nX = {literal}\ndef f({parameters}) -> int: ..."
    said = await refused(client.nodes.CreateNode(_create(code=code)))
    assert (said.code, said.reason) == (INVALID, "NODE_TOO_LARGE")
    change = pb.UpdateNodeRequest(
        node_id=made.id, code=code, update_mask=FieldMask(paths=["code", "main_function"])
    )
    said = await refused(client.nodes.UpdateNode(change))
    assert (said.code, said.reason) == (INVALID, "NODE_TOO_LARGE")
    listed = (await client.nodes.ListNodes(pb.ListNodesRequest())).nodes
    assert [(each.id, each.version) for each in listed] == [(made.id, 1)]


@pytest.mark.parametrize(
    ("requires", "asked", "runs_on"),
    [
        (">=3.9", "", "3.11"),
        (">=3.12", "", "3.12"),
        ("<3.11", "", "3.9"),
        (">=3.9", "3.10", "3.10"),
    ],
)
async def test_the_source_may_say_which_python_it_needs(
    client: Client, requires: str, asked: str, runs_on: str
) -> None:
    block = f"# /// script\n# requires-python = '{requires}'\n# ///\n"
    assert (await client.node(block + DOUBLE, python_version=asked)).python_version == runs_on
    said = await refused(
        client.nodes.CreateNode(
            _create(code=block.replace(requires, "<3.9") + DOUBLE, python_version="3.11")
        )
    )
    assert (said.code, said.reason) == (INVALID, "PYTHON_VERSION_CONFLICT")
    assert said.violations[0][0] == "python_version"


async def test_a_viewer_creates_nothing(registry: Registry, sql: psycopg.Connection) -> None:
    """X17."""
    viewer = registry.client(factories.user(sql, role="viewer").token)
    said = await refused(viewer.nodes.CreateNode(_create()))
    assert said.code == grpc.StatusCode.PERMISSION_DENIED
