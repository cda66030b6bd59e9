"""Deleted nodes and workflows: kept, shown to their own, used by nothing new, and brought back."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import node_pb2, workflow_pb2
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1 import workflow_service_pb2 as pb

from tests import factories
from tests.integration.registry.conftest import Client, Registry, change_rows, refused
from tests.integration.registry.test_versions import (
    INCREMENT,
    PRECONDITION,
    codes,
    create,
    redefine,
    set_code,
    single,
)

NOT_FOUND = grpc.StatusCode.NOT_FOUND


async def delete_node(client: Client, node_id: str, **fields: Any) -> node_pb2.Node:
    request = node_rpc.DeleteNodeRequest(node_id=node_id, **fields)
    deleted: node_pb2.Node = (await client.nodes.DeleteNode(request)).node
    return deleted


async def undelete_node(client: Client, node_id: str, **fields: Any) -> node_pb2.Node:
    request = node_rpc.UndeleteNodeRequest(node_id=node_id, **fields)
    back: node_pb2.Node = (await client.nodes.UndeleteNode(request)).node
    return back


async def delete_workflow(client: Client, workflow_id: str, **fields: Any) -> workflow_pb2.Workflow:
    request = pb.DeleteWorkflowRequest(workflow_id=workflow_id, **fields)
    deleted: workflow_pb2.Workflow = (await client.workflows.DeleteWorkflow(request)).workflow
    return deleted


async def undelete_workflow(
    client: Client, workflow_id: str, **fields: Any
) -> workflow_pb2.Workflow:
    request = pb.UndeleteWorkflowRequest(workflow_id=workflow_id, **fields)
    back: workflow_pb2.Workflow = (await client.workflows.UndeleteWorkflow(request)).workflow
    return back


async def test_a_node_that_a_workflow_uses_is_not_deleted(client: Client) -> None:
    """B42: the workflows are named; those that are deleted, or use it no more, do not count."""
    node, other = await client.node(INCREMENT), await client.node(INCREMENT)
    first, second = await create(client, single(node)), await create(client, single(node))
    said = await refused(delete_node(client, node.id))
    assert (PRECONDITION, "NODE_IN_USE") == (said.code, said.reason)
    assert [("node_id", "NODE_IN_USE")] * 2 == said.violations
    assert first.id in said.text
    assert second.id in said.text
    await redefine(client, first.id, single(other))
    assert second.id in (await refused(delete_node(client, node.id))).text
    await delete_workflow(client, second.id)
    assert (await delete_node(client, node.id)).HasField("delete_time")


async def test_of_many_workflows_that_use_a_node_the_oldest_are_named(
    client: Client, sql: psycopg.Connection, user: factories.User
) -> None:
    """B42."""
    node = await client.node(INCREMENT)
    used = {"a": factories.Node(uuid.UUID(node.id), uuid.UUID(node.version_id))}
    made = [factories.workflow(sql, user, nodes=used, edges=[], outputs=[]) for _ in range(25)]
    said = await refused(delete_node(client, node.id))
    assert 20 == len(said.violations)
    assert "; and at least 20 more" in said.text
    assert str(made[19]) in said.text
    assert str(made[20]) not in said.text


async def test_a_deleted_node_is_shown_when_asked_for_and_takes_no_change(client: Client) -> None:
    node = await client.node(INCREMENT)
    deleted = await delete_node(client, node.id, etag=node.etag)
    assert deleted.etag != node.etag
    read = (await client.nodes.GetNode(node_rpc.GetNodeRequest(node_id=node.id))).node
    assert (INCREMENT, deleted.delete_time) == (read.code, read.delete_time)
    assert not (await client.nodes.ListNodes(node_rpc.ListNodesRequest())).nodes
    listed = await client.nodes.ListNodes(node_rpc.ListNodesRequest(show_deleted=True))
    assert [deleted] == list(listed.nodes)
    versions = node_rpc.ListNodeVersionsRequest(node_id=node.id)
    assert 1 == len((await client.nodes.ListNodeVersions(versions)).versions)
    for call in (
        set_code(client, node.id, INCREMENT),
        client.nodes.RollbackNode(node_rpc.RollbackNodeRequest(node_id=node.id, version=1)),
        client.nodes.CloneNode(node_rpc.CloneNodeRequest(node_id=node.id)),
    ):
        said = await refused(call)
        assert (PRECONDITION, "NODE_DELETED") == (said.code, said.reason)
    said = await refused(create(client, single(node)))
    assert [("nodes[0].node_id", "NODE_NOT_FOUND")] == said.violations


async def test_a_node_comes_back_as_it_was(client: Client) -> None:
    node = await client.node(INCREMENT)
    deleted = await delete_node(client, node.id)
    said = await refused(undelete_node(client, node.id, etag=node.etag))
    assert (grpc.StatusCode.ABORTED, deleted.etag) == (said.code, said.facts["etag"])
    back = await undelete_node(client, node.id, etag=deleted.etag)
    assert not back.HasField("delete_time")
    assert [back] == list((await client.nodes.ListNodes(node_rpc.ListNodesRequest())).nodes)
    assert 1 == (await create(client, single(node))).version


async def test_deleting_twice_is_deleting_once(client: Client) -> None:
    """I12."""
    node = await client.node(INCREMENT)
    made = await create(client, single(node))
    request_id = str(uuid.uuid4())
    deleted = await delete_workflow(client, made.id, etag=made.etag, request_id=request_id)
    assert deleted == await delete_workflow(client, made.id, etag=made.etag, request_id=request_id)
    assert deleted == await delete_workflow(client, made.id)
    first = await delete_node(client, node.id)
    assert first == await delete_node(client, node.id)
    back = await undelete_node(client, node.id)
    assert back == await undelete_node(client, node.id)
    again = await undelete_workflow(client, made.id)
    assert again == await undelete_workflow(client, made.id)


async def test_a_deleted_workflow_is_shown_when_asked_for_and_takes_no_change(
    client: Client,
) -> None:
    node = await client.node(INCREMENT)
    made = await create(client, single(node))
    deleted = await delete_workflow(client, made.id)
    read = await client.workflows.GetWorkflow(pb.GetWorkflowRequest(workflow_id=made.id))
    assert deleted.delete_time == read.workflow.delete_time
    assert 1 == len(read.workflow.definition.nodes)
    assert not (await client.workflows.ListWorkflows(pb.ListWorkflowsRequest())).workflows
    shown = pb.ListWorkflowsRequest(show_deleted=True)
    assert [deleted] == list((await client.workflows.ListWorkflows(shown)).workflows)
    for call in (
        redefine(client, made.id, single(node)),
        client.workflows.ActivateWorkflow(pb.ActivateWorkflowRequest(workflow_id=made.id)),
        client.workflows.DeactivateWorkflow(pb.DeactivateWorkflowRequest(workflow_id=made.id)),
        client.workflows.CloneWorkflow(pb.CloneWorkflowRequest(workflow_id=made.id)),
        client.workflows.RollbackWorkflow(
            pb.RollbackWorkflowRequest(workflow_id=made.id, version=1)
        ),
    ):
        said = await refused(call)
        assert (PRECONDITION, "WORKFLOW_DELETED") == (said.code, said.reason)


async def test_a_workflow_comes_back_only_with_its_nodes(client: Client) -> None:
    node = await client.node(INCREMENT)
    made = await create(client, single(node))
    await delete_workflow(client, made.id)
    await delete_node(client, node.id)
    said = await refused(undelete_workflow(client, made.id))
    assert (PRECONDITION, "NODES_DELETED") == (said.code, said.reason)
    assert node.id in said.text
    await undelete_node(client, node.id)
    assert made.id == (await undelete_workflow(client, made.id)).id


async def test_what_others_have_is_deleted_by_nobody_else(
    registry: Registry, client: Client, sql: psycopg.Connection
) -> None:
    """X16: what is shared is refused, what is not is absent; once deleted it is shared no more."""
    node = await client.node(INCREMENT)
    made = await create(client, single(node))
    other = registry.client(factories.user(sql).token)
    for call in (delete_node(other, node.id), delete_workflow(other, made.id)):
        assert NOT_FOUND == (await refused(call)).code
    share = node_rpc.UpdateNodeRequest(
        node_id=node.id, is_public=True, update_mask=FieldMask(paths=["is_public"])
    )
    await client.nodes.UpdateNode(share)
    template = pb.UpdateWorkflowRequest(
        workflow_id=made.id, is_template=True, update_mask=FieldMask(paths=["is_template"])
    )
    await client.workflows.UpdateWorkflow(template)
    for call in (
        delete_node(other, node.id),
        undelete_node(other, node.id),
        delete_workflow(other, made.id),
        undelete_workflow(other, made.id),
    ):
        said = await refused(call)
        assert (grpc.StatusCode.PERMISSION_DENIED, "NOT_YOURS") == (said.code, said.reason)
    await delete_workflow(client, made.id)
    await delete_node(client, node.id)
    for call in (
        other.nodes.GetNode(node_rpc.GetNodeRequest(node_id=node.id)),
        undelete_node(other, node.id),
        other.workflows.GetWorkflow(pb.GetWorkflowRequest(workflow_id=made.id)),
        undelete_workflow(other, made.id),
    ):
        assert NOT_FOUND == (await refused(call)).code
    shown = await other.nodes.ListNodes(node_rpc.ListNodesRequest(show_deleted=True))
    assert not shown.nodes


async def test_other_tenants_neither_hinder_a_deletion_nor_lose_what_they_have(
    registry: Registry, client: Client, sql: psycopg.Connection
) -> None:
    node = await client.node(INCREMENT)
    await change_rows(sql, "UPDATE python_nodes SET is_public = true")
    other = registry.client(factories.user(sql).token)
    made = await create(other, single(node), activate=True)
    await delete_node(client, node.id)
    read = await other.workflows.GetWorkflow(pb.GetWorkflowRequest(workflow_id=made.id))
    assert (made.definition, made.active) == (read.workflow.definition, read.workflow.active)
    said = await refused(redefine(other, made.id, single(node)))
    assert [("nodes[0].node_id", "NODE_NOT_FOUND")] == said.violations


async def test_of_a_deletion_and_a_workflow_that_takes_the_node_one_is_refused(
    client: Client, sql: psycopg.Connection
) -> None:
    """B42: whichever comes second sees the first."""
    outcomes = set()
    for _ in range(12):
        node = await client.node(INCREMENT)
        deleted, created = await codes([delete_node(client, node.id), create(client, single(node))])
        outcomes.add((deleted == grpc.StatusCode.OK, created == grpc.StatusCode.OK))
        left = sql.execute(
            "SELECT count(*) FROM workflow_node_uses u"
            "  JOIN python_nodes n ON n.id = u.node_id AND n.deleted_at IS NOT NULL"
        ).fetchall()
        assert [(0,)] == left
    assert outcomes <= {(True, False), (False, True)}


@pytest.mark.parametrize("first", ["deletion", "workflow"])
async def test_the_second_of_the_two_waits_for_the_first(
    client: Client, sql: psycopg.Connection, user: factories.User, first: str
) -> None:
    """B42: in either order, held open as long as it takes to see the other wait."""
    node = await client.node(INCREMENT)
    with psycopg.connect(sql.info.dsn, password=sql.info.password) as holder:
        if first == "deletion":
            await change_rows(holder, "SELECT 1 FROM python_nodes FOR UPDATE")
            await change_rows(holder, "UPDATE python_nodes SET deleted_at = now()")
            waiting: asyncio.Future[Any] = asyncio.ensure_future(create(client, single(node)))
        else:
            factories.workflow(
                holder,
                user,
                nodes={"a": factories.Node(uuid.UUID(node.id), uuid.UUID(node.version_id))},
                edges=[],
                outputs=[],
            )
            await change_rows(holder, "SELECT 1 FROM python_nodes FOR KEY SHARE")
            waiting = asyncio.ensure_future(delete_node(client, node.id))
        await _until_somebody_waits(sql)
        holder.commit()
    said = await refused(waiting)
    expected = "NODES_DELETED" if first == "deletion" else "NODE_IN_USE"
    assert (PRECONDITION, expected) == (said.code, said.reason)


async def _until_somebody_waits(sql: psycopg.Connection) -> None:
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + 10
    while loop.time() < ends_at:
        row = sql.execute(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock'"
        ).fetchone()
        if row is not None:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits")
