from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import node_service_pb2 as nodes_rpc
from qflow.registry.v1 import tag_pb2
from qflow.registry.v1 import tag_service_pb2 as pb
from qflow.registry.v1 import workflow_service_pb2 as workflows_rpc
from qflow.registry.v1.tag_service_pb2_grpc import TagServiceStub

from tests import factories
from tests.integration.registry.conftest import Client, Registry, change_rows, refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NODE, WORKFLOW = tag_pb2.TAG_KIND_NODE, tag_pb2.TAG_KIND_WORKFLOW
KINDS = pytest.mark.parametrize("kind", [NODE, WORKFLOW], ids=["node", "workflow"])


def _tags(client: Client) -> Any:
    return TagServiceStub(client.channel)


async def _tag(client: Client, name: str, kind: Any = NODE, **fields: Any) -> tag_pb2.Tag:
    request = pb.CreateTagRequest(kind=kind, name=name, **fields)
    made: tag_pb2.Tag = (await _tags(client).CreateTag(request)).tag
    return made


class Subject:
    """A node or a workflow to tie tags to."""

    def __init__(self, sql: psycopg.Connection, owner: factories.User, kind: Any) -> None:
        self.kind = kind
        node = factories.node(sql, owner)
        self.id = str(node.id)
        if kind == WORKFLOW:
            self.id = str(
                factories.workflow(
                    sql,
                    owner,
                    nodes={"a": node},
                    edges=[("", "x", "a", "x")],
                    outputs=[("y", "a")],
                    node_settings={"a": {"timeout_ms": None, "memory_bytes": None}},
                )
            )

    def change(self, client: Client, **fields: Any) -> Any:
        if self.kind == NODE:
            return _tags(client).ChangeNodeTags(pb.ChangeNodeTagsRequest(node_id=self.id, **fields))
        return _tags(client).ChangeWorkflowTags(
            pb.ChangeWorkflowTagsRequest(workflow_id=self.id, **fields)
        )

    async def read(self, client: Client) -> Any:
        if self.kind == NODE:
            return (await client.nodes.GetNode(nodes_rpc.GetNodeRequest(node_id=self.id))).node
        request = workflows_rpc.GetWorkflowRequest(workflow_id=self.id)
        return (await client.workflows.GetWorkflow(request)).workflow

    async def found(self, client: Client, text: str) -> list[Any]:
        if self.kind == NODE:
            return [*(await client.nodes.ListNodes(nodes_rpc.ListNodesRequest(filter=text))).nodes]
        request = workflows_rpc.ListWorkflowsRequest(filter=text)
        return [*(await client.workflows.ListWorkflows(request)).workflows]


@KINDS
async def test_a_tag_is_made_read_changed_and_deleted(client: Client, kind: Any) -> None:
    tags = _tags(client)
    made = await _tag(client, "prod", kind, description="in use", color="#00FF7f")
    assert ("prod", "in use", "#00FF7f", kind) == (
        made.name,
        made.description,
        made.color,
        made.kind,
    )
    assert made == (await tags.GetTag(pb.GetTagRequest(kind=kind, tag_id=made.id))).tag
    change = pb.UpdateTagRequest(
        kind=kind, tag_id=made.id, name="live", update_mask=FieldMask(paths=["name", "color"])
    )
    changed = (await tags.UpdateTag(change)).tag
    assert ("live", "in use", "") == (changed.name, changed.description, changed.color)
    assert changed == (await tags.DeleteTag(pb.DeleteTagRequest(kind=kind, tag_id=made.id))).tag
    said = await refused(tags.GetTag(pb.GetTagRequest(kind=kind, tag_id=made.id)))
    assert (grpc.StatusCode.NOT_FOUND, "TAG_NOT_FOUND") == (said.code, said.reason)


async def test_each_kind_has_its_own_names(client: Client) -> None:
    node, workflow = await _tag(client, "same"), await _tag(client, "same", WORKFLOW)
    listed = await _tags(client).ListTags(pb.ListTagsRequest(kind=WORKFLOW))
    assert [workflow.id] == [each.id for each in listed.tags]
    said = await refused(_tags(client).GetTag(pb.GetTagRequest(kind=WORKFLOW, tag_id=node.id)))
    assert grpc.StatusCode.NOT_FOUND == said.code


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"color": "red"}, "color"),
        ({"color": "#12345g"}, "color"),
        ({"color": "#12345"}, "color"),
        ({"color": "#123456\n"}, "color"),
        ({"name": ""}, "name"),
        ({"name": " \u200b"}, "name"),
        ({"name": "a\0"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"description": "x" * 10_001}, "description"),
        ({"kind": 0}, "kind"),
        ({"kind": 7}, "kind"),
    ],
)
async def test_what_cannot_be_a_tag_is_refused(
    client: Client, fields: dict[str, Any], field: str
) -> None:
    """B21, B24, B29, B30."""
    request = pb.CreateTagRequest(**{"kind": NODE, "name": "n", **fields})
    said = await refused(_tags(client).CreateTag(request))
    assert INVALID == said.code
    assert {field} == {each for each, _ in said.violations}
    assert [] == [*(await _tags(client).ListTags(pb.ListTagsRequest(kind=NODE))).tags]


@KINDS
async def test_a_name_is_a_tenants_once(
    client: Client, registry: Registry, sql: psycopg.Connection, kind: Any
) -> None:
    """S12: and another tenant's name neither hinders nor tells."""
    first, second = await _tag(client, "taken", kind), await _tag(client, "free", kind)
    for call in (
        _tags(client).CreateTag(pb.CreateTagRequest(kind=kind, name="taken")),
        _tags(client).CreateTag(pb.CreateTagRequest(kind=kind, name="taken", validate_only=True)),
        _tags(client).UpdateTag(
            pb.UpdateTagRequest(
                kind=kind, tag_id=second.id, name="taken", update_mask=FieldMask(paths=["name"])
            )
        ),
    ):
        said = await refused(call)
        assert (grpc.StatusCode.ALREADY_EXISTS, "TAG_EXISTS") == (said.code, said.reason)
        assert first.id == said.facts["tag_id"]
    stranger = registry.client(factories.user(sql).token)
    await _tag(stranger, "taken", kind)


async def test_racing_for_a_name_has_one_winner(client: Client) -> None:
    request = pb.CreateTagRequest(kind=NODE, name="prize")
    calls = [_tags(client).CreateTag(request) for _ in range(8)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    lost = [each.code() for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert [grpc.StatusCode.ALREADY_EXISTS] * 7 == lost


async def test_racing_renames_to_one_name_have_one_winner(client: Client) -> None:
    made = [await _tag(client, f"t{at}") for at in range(6)]
    mask = FieldMask(paths=["name"])
    calls = [
        _tags(client).UpdateTag(
            pb.UpdateTagRequest(kind=NODE, tag_id=each.id, name="prize", update_mask=mask)
        )
        for each in made
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    lost = {each.code() for each in outcomes if isinstance(each, grpc.aio.AioRpcError)}
    assert lost <= {grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.ABORTED}
    listed = await _tags(client).ListTags(pb.ListTagsRequest(kind=NODE))
    assert 1 == [each.name for each in listed.tags].count("prize")


async def test_a_repeated_request_makes_one_tag(client: Client) -> None:
    request = pb.CreateTagRequest(kind=NODE, name="once", request_id=str(uuid.uuid4()))
    first = await _tags(client).CreateTag(request)
    assert first == await _tags(client).CreateTag(request)
    request.kind = WORKFLOW
    said = await refused(_tags(client).CreateTag(request))
    assert (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED") == (said.code, said.reason)


async def test_tags_are_listed_by_name_in_pages(client: Client) -> None:
    names = sorted(f"t{at}" for at in range(7))
    for name in reversed(names):
        await _tag(client, name)
    seen, token = [], ""
    while True:
        request = pb.ListTagsRequest(kind=NODE, page_size=3, page_token=token)
        page = await _tags(client).ListTags(request)
        seen += [each.name for each in page.tags]
        token = page.next_page_token
        if not token:
            break
        other = pb.ListTagsRequest(kind=WORKFLOW, page_token=token)
        assert INVALID == (await refused(_tags(client).ListTags(other))).code
    assert names == seen


@KINDS
async def test_tags_are_tied_and_taken_off_again_and_again(
    client: Client, sql: psycopg.Connection, user: factories.User, kind: Any
) -> None:
    """B43."""
    subject = Subject(sql, user, kind)
    before = await subject.read(client)
    blue, red = await _tag(client, "blue", kind, color="#0000ff"), await _tag(client, "a red", kind)
    for _ in range(2):
        answer = await subject.change(client, add_tag_ids=[blue.id, red.id.upper(), blue.id])
        assert [("a red", ""), ("blue", "#0000ff")] == [(t.name, t.color) for t in answer.tags]
    after = await subject.read(client)
    assert [red.id, blue.id] == [each.id for each in after.tags]
    assert (before.version, before.etag) == (after.version, after.etag)
    for _ in range(2):
        answer = await subject.change(client, remove_tag_ids=[red.id, str(uuid.uuid4())])
        assert [blue.id] == [each.id for each in answer.tags]
    both = await subject.change(client, add_tag_ids=[blue.id], remove_tag_ids=[blue.id])
    assert [blue.id] == [each.id for each in both.tags]


@KINDS
async def test_what_is_tagged_is_found_by_its_tag(
    client: Client, sql: psycopg.Connection, user: factories.User, kind: Any
) -> None:
    one, two, _ = [Subject(sql, user, kind) for _ in range(3)]
    prod, spare = await _tag(client, "in prod", kind), await _tag(client, "spare", kind)
    await one.change(client, add_tag_ids=[prod.id, spare.id])
    await two.change(client, add_tag_ids=[spare.id])
    for text, expected in {
        'tags:"in prod"': {one.id},
        "tags:spare": {one.id, two.id},
        "tags:spare -tags:'in prod'": {two.id},
        'tags:"prod"': set(),  # the whole name
        "tags:spare tags:'in prod'": {one.id},
        "tags:nothing OR tags:spare": {one.id, two.id},
    }.items():
        found = await one.found(client, text)
        # A workflow's own node is listed as a node, and has no tags.
        assert expected == {each.id for each in found}, text
    (found_one,) = await one.found(client, "tags:'in prod'")
    assert ["in prod", "spare"] == [each.name for each in found_one.tags]
    await _tags(client).DeleteTag(pb.DeleteTagRequest(kind=kind, tag_id=spare.id))
    assert [] == await one.found(client, "tags:spare")
    assert ["in prod"] == [each.name for each in (await one.read(client)).tags]


@KINDS
async def test_too_many_tags_are_refused(
    client: Client, sql: psycopg.Connection, user: factories.User, kind: Any
) -> None:
    """B43: 1,001 in one request, and more than 100 in sum."""
    subject = Subject(sql, user, kind)
    thousand = [str(uuid.uuid4()) for _ in range(1001)]
    for field in ("add_tag_ids", "remove_tag_ids"):
        said = await refused(subject.change(client, **{field: thousand}))
        assert (INVALID, [field]) == (said.code, [each for each, _ in said.violations])
    table = "python_node_tags" if kind == NODE else "workflow_tags"
    rows = sql.execute(
        f"INSERT INTO {table} (name, tenant_id, created_by) SELECT 't' || n, %s, %s"
        " FROM generate_series(1, 101) AS n RETURNING id".encode(),
        (user.id, user.id),
    ).fetchall()
    ids = [str(row[0]) for row in rows]
    assert 100 == len((await subject.change(client, add_tag_ids=ids[:100])).tags)
    said = await refused(subject.change(client, add_tag_ids=ids[100:]))
    assert (grpc.StatusCode.FAILED_PRECONDITION, "TAGS_TOO_MANY") == (said.code, said.reason)
    assert 100 == len((await subject.read(client)).tags)
    swapped = await subject.change(client, add_tag_ids=ids[100:], remove_tag_ids=ids[:1])
    assert 100 == len(swapped.tags)


@KINDS
async def test_what_is_anothers_is_absent(
    client: Client, registry: Registry, sql: psycopg.Connection, user: factories.User, kind: Any
) -> None:
    """X21: A's node with B's tag, A's tag on B's node, A's tag changed or deleted by B."""
    other = factories.user(sql)
    stranger = registry.client(other.token)
    subject, tag = Subject(sql, user, kind), await _tag(client, "mine", kind)
    await subject.change(client, add_tag_ids=[tag.id])
    theirs = await _tag(stranger, "theirs", kind)
    own = Subject(sql, other, kind)
    mask = FieldMask(paths=["name"])
    tags = _tags(stranger)
    for call in (
        subject.change(stranger, add_tag_ids=[theirs.id]),
        subject.change(stranger, remove_tag_ids=[tag.id]),
        own.change(stranger, add_tag_ids=[tag.id]),
        subject.change(client, add_tag_ids=[theirs.id]),
        tags.GetTag(pb.GetTagRequest(kind=kind, tag_id=tag.id)),
        tags.UpdateTag(pb.UpdateTagRequest(kind=kind, tag_id=tag.id, name="x", update_mask=mask)),
        tags.DeleteTag(pb.DeleteTagRequest(kind=kind, tag_id=tag.id)),
    ):
        assert grpc.StatusCode.NOT_FOUND == (await refused(call)).code
    assert ["mine"] == [each.name for each in (await subject.read(client)).tags]


async def test_a_public_node_is_tagged_by_its_owner_alone_and_shows_its_tags_to_nobody_else(
    client: Client, registry: Registry, sql: psycopg.Connection, user: factories.User
) -> None:
    subject = Subject(sql, user, NODE)
    await subject.change(client, add_tag_ids=[(await _tag(client, "mine")).id])
    await change_rows(sql, "UPDATE python_nodes SET is_public = true WHERE id = %s", (subject.id,))
    stranger = registry.client(factories.user(sql).token)
    assert [] == [*(await subject.read(stranger)).tags]
    assert [] == await subject.found(stranger, "tags:mine")
    said = await refused(
        subject.change(stranger, add_tag_ids=[(await _tag(stranger, "theirs")).id])
    )
    assert (grpc.StatusCode.PERMISSION_DENIED, "NOT_YOURS") == (said.code, said.reason)


async def test_a_viewer_reads_tags_and_changes_none(
    registry: Registry, sql: psycopg.Connection
) -> None:
    """X17."""
    viewer = registry.client(factories.user(sql, role="viewer").token)
    assert [] == [*(await _tags(viewer).ListTags(pb.ListTagsRequest(kind=NODE))).tags]
    some = str(uuid.uuid4())
    for call in (
        _tags(viewer).CreateTag(pb.CreateTagRequest(kind=NODE, name="n")),
        _tags(viewer).DeleteTag(pb.DeleteTagRequest(kind=NODE, tag_id=some)),
        _tags(viewer).ChangeNodeTags(pb.ChangeNodeTagsRequest(node_id=some)),
    ):
        assert grpc.StatusCode.PERMISSION_DENIED == (await refused(call)).code


@pytest.mark.parametrize("paths", [[], ["kind"], ["name", "id"]])
async def test_a_mask_names_known_fields(client: Client, paths: list[str]) -> None:
    made = await _tag(client, "n")
    request = pb.UpdateTagRequest(
        kind=NODE, tag_id=made.id, name="x", update_mask=FieldMask(paths=paths)
    )
    assert INVALID == (await refused(_tags(client).UpdateTag(request))).code


async def test_validation_alone_stores_nothing(client: Client) -> None:
    checked = await _tag(client, "n", validate_only=True)
    assert ("", "n") == (checked.id, checked.name)
    assert [] == [*(await _tags(client).ListTags(pb.ListTagsRequest(kind=NODE))).tags]
    made = await _tag(client, "n")
    request = pb.UpdateTagRequest(
        kind=NODE,
        tag_id=made.id,
        name="x",
        update_mask=FieldMask(paths=["name"]),
        validate_only=True,
    )
    assert "x" == (await _tags(client).UpdateTag(request)).tag.name
    read = await _tags(client).GetTag(pb.GetTagRequest(kind=NODE, tag_id=made.id))
    assert "n" == read.tag.name
