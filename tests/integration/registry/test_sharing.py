"""Public nodes and templates: read and run by everybody, changed by their own tenant alone."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import node_pb2, workflow_pb2
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1 import workflow_service_pb2 as pb

from tests import factories
from tests.integration.registry.conftest import Client, Registry, edge, place, refused
from tests.integration.registry.test_deletion import delete_workflow, undelete_workflow
from tests.integration.registry.test_versions import (
    INCREMENT,
    PRECONDITION,
    SHOUT,
    create,
    redefine,
    set_code,
    single,
)

DENIED = (grpc.StatusCode.PERMISSION_DENIED, "NOT_YOURS")


@pytest.fixture
def other_user(sql: psycopg.Connection) -> factories.User:
    return factories.user(sql)


@pytest.fixture
def other(registry: Registry, other_user: factories.User) -> Client:
    return registry.client(other_user.token)


async def share(client: Client, node_id: str, **flags: bool) -> node_pb2.Node:
    request = node_rpc.UpdateNodeRequest(
        node_id=node_id,
        update_mask=FieldMask(paths=list(flags)),
        is_public=flags.get("is_public", False),
        is_template=flags.get("is_template", False),
    )
    shared: node_pb2.Node = (await client.nodes.UpdateNode(request)).node
    return shared


async def make_template(
    client: Client, workflow_id: str, *, is_template: bool = True, **fields: Any
) -> workflow_pb2.Workflow:
    request = pb.UpdateWorkflowRequest(
        workflow_id=workflow_id,
        is_template=is_template,
        update_mask=FieldMask(paths=["is_template"]),
        **fields,
    )
    made: workflow_pb2.Workflow = (await client.workflows.UpdateWorkflow(request)).workflow
    return made


@pytest.mark.parametrize("flag", ["is_public", "is_template"])
async def test_a_shared_node_is_read_by_all_and_changed_by_nobody_else(
    client: Client, other: Client, user: factories.User, flag: str
) -> None:
    """X16: no version is made for a flag, and the author is shown."""
    node = await client.node(INCREMENT)
    get = node_rpc.GetNodeRequest(node_id=node.id)
    assert grpc.StatusCode.NOT_FOUND == (await refused(other.nodes.GetNode(get))).code
    shared = await share(client, node.id, **{flag: True})
    assert (1, True) == (shared.version, getattr(shared, flag))
    read = (await other.nodes.GetNode(get)).node
    assert (INCREMENT, str(user.id)) == (read.code, read.created_by)
    assert [node.id] == [
        each.id for each in (await other.nodes.ListNodes(node_rpc.ListNodesRequest())).nodes
    ]
    versions = node_rpc.ListNodeVersionsRequest(node_id=node.id)
    assert 1 == len((await other.nodes.ListNodeVersions(versions)).versions)
    calls: list[Awaitable[Any]] = [
        set_code(other, node.id, SHOUT),
        share(other, node.id, **{flag: False}),
        set_code(other, node.id, SHOUT, validate_only=True),
        other.nodes.RollbackNode(node_rpc.RollbackNodeRequest(node_id=node.id, version=1)),
        other.nodes.DeleteNode(node_rpc.DeleteNodeRequest(node_id=node.id)),
        other.nodes.UndeleteNode(node_rpc.UndeleteNodeRequest(node_id=node.id)),
    ]
    for call in calls:
        said = await refused(call)
        assert DENIED == (said.code, said.reason)
    await share(client, node.id, **{flag: False})
    assert grpc.StatusCode.NOT_FOUND == (await refused(other.nodes.GetNode(get))).code


async def test_a_template_is_read_and_cloned_by_all_and_changed_by_nobody_else(
    client: Client, other: Client, user: factories.User, other_user: factories.User
) -> None:
    """X16."""
    node = await client.node(INCREMENT)
    await share(client, node.id, is_public=True)
    made = await create(client, single(node), activate=True)
    template = await make_template(client, made.id)
    assert (1, True, True) == (template.version, template.is_template, template.active)
    get = pb.GetWorkflowRequest(workflow_id=made.id)
    read = (await other.workflows.GetWorkflow(get)).workflow
    assert (str(user.id), 1) == (read.created_by, len(read.definition.nodes))
    calls: list[Awaitable[Any]] = [
        redefine(other, made.id, single(node)),
        make_template(other, made.id, is_template=False),
        other.workflows.ActivateWorkflow(pb.ActivateWorkflowRequest(workflow_id=made.id)),
        other.workflows.DeactivateWorkflow(pb.DeactivateWorkflowRequest(workflow_id=made.id)),
        other.workflows.RollbackWorkflow(
            pb.RollbackWorkflowRequest(workflow_id=made.id, version=1)
        ),
        other.workflows.DeleteWorkflow(pb.DeleteWorkflowRequest(workflow_id=made.id)),
    ]
    for call in calls:
        said = await refused(call)
        assert DENIED == (said.code, said.reason)
    clone = pb.CloneWorkflowRequest(workflow_id=made.id, name="mine")
    copy = (await other.workflows.CloneWorkflow(clone)).workflow
    assert (str(other_user.id), False) == (copy.created_by, copy.is_template)
    assert made.id == copy.cloned_from.workflow_id
    assert [1] == [each.version for each in copy.definition.nodes]
    assert ["NODE_PINNED"] == [each.code for each in copy.findings]
    activate = pb.ActivateWorkflowRequest(workflow_id=copy.id)
    assert (await other.workflows.ActivateWorkflow(activate)).workflow.active


async def test_a_node_of_another_tenant_is_pinned_when_it_is_stored(
    client: Client, other: Client
) -> None:
    """Its next version does not run unasked; one's own goes on floating."""
    node = await client.node(INCREMENT)
    await share(client, node.id, is_public=True)
    own = await other.node(INCREMENT)
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[place("a", on=node), place("b", on=own)],
        connections=[edge(".n -> a.x"), edge("a.result -> b.x")],
    )
    checked = await other.workflows.CheckWorkflow(pb.CheckWorkflowRequest(definition=definition))
    assert [1, 0] == [each.version for each in checked.definition.nodes]
    assert [("nodes[0].version", "NODE_PINNED")] == [
        (each.place, each.code) for each in checked.findings
    ]
    assert checked.activatable
    made = await create(other, definition, activate=True)
    await set_code(client, node.id, f"{INCREMENT}\nNEW = 1\n")
    read = await other.workflows.GetWorkflow(pb.GetWorkflowRequest(workflow_id=made.id))
    assert [1, 0] == [each.version for each in read.workflow.definition.nodes]
    changed = await redefine(other, made.id, definition)
    assert [2, 0] == [each.version for each in changed.definition.nodes]
    theirs = await create(client, single(node))
    assert [0] == [each.version for each in theirs.definition.nodes]


async def test_a_templates_nodes_are_shared(client: Client) -> None:
    private, public = await client.node(INCREMENT), await client.node(INCREMENT)
    await share(client, public.id, is_public=True)
    made = await create(client, single(private))
    for dry in (True, False):
        said = await refused(make_template(client, made.id, validate_only=dry))
        assert (PRECONDITION, "NODES_NOT_SHARED") == (said.code, said.reason)
        assert [("definition.nodes", "NODES_NOT_SHARED")] == said.violations
        assert private.id in said.text
    await redefine(client, made.id, single(public))
    assert (await make_template(client, made.id)).is_template
    for call in (
        redefine(client, made.id, single(private)),
        client.workflows.RollbackWorkflow(
            pb.RollbackWorkflowRequest(workflow_id=made.id, version=1)
        ),
    ):
        said = await refused(call)
        assert (PRECONDITION, "NODES_NOT_SHARED") == (said.code, said.reason)
    read = await client.workflows.GetWorkflow(pb.GetWorkflowRequest(workflow_id=made.id))
    assert 2 == read.workflow.version


async def test_a_node_of_a_template_stays_shared(client: Client) -> None:
    node = await client.node(INCREMENT)
    await share(client, node.id, is_public=True)
    made = await create(client, single(node))
    await make_template(client, made.id)
    for dry in (True, False):
        request = node_rpc.UpdateNodeRequest(
            node_id=node.id,
            is_public=False,
            update_mask=FieldMask(paths=["is_public"]),
            validate_only=dry,
        )
        said = await refused(client.nodes.UpdateNode(request))
        assert (PRECONDITION, "NODE_IN_TEMPLATES") == (said.code, said.reason)
        assert made.id in said.text
    await share(client, node.id, is_template=True)
    assert not (await share(client, node.id, is_public=False)).is_public
    await delete_workflow(client, made.id)
    assert not (await share(client, node.id, is_template=False)).is_template
    said = await refused(undelete_workflow(client, made.id))
    assert (PRECONDITION, "NODES_NOT_SHARED") == (said.code, said.reason)


async def test_another_tenants_template_keeps_no_node_public(client: Client, other: Client) -> None:
    node = await client.node(INCREMENT)
    await share(client, node.id, is_public=True)
    made = await create(other, single(node))
    await make_template(other, made.id)
    assert not (await share(client, node.id, is_public=False)).is_public
    clone = pb.CloneWorkflowRequest(workflow_id=made.id)
    said = await refused(other.workflows.CloneWorkflow(clone))
    assert (PRECONDITION, "DEFINITION_OUTDATED") == (said.code, said.reason)


async def test_a_template_whose_older_versions_hold_private_nodes_is_not_cloned_at_them(
    client: Client, other: Client
) -> None:
    """The nodes that the caller may not use are named."""
    private, public = await client.node(INCREMENT), await client.node(INCREMENT)
    await share(client, public.id, is_public=True)
    made = await create(client, single(private))
    await redefine(client, made.id, single(public))
    await make_template(client, made.id)
    clone = pb.CloneWorkflowRequest(workflow_id=made.id, version=1)
    said = await refused(other.workflows.CloneWorkflow(clone))
    assert (PRECONDITION, "DEFINITION_OUTDATED") == (said.code, said.reason)
    assert [("nodes[0].node_id", "NODE_NOT_FOUND")] == said.violations
    assert private.id in said.text
    clone.version = 0
    assert (await other.workflows.CloneWorkflow(clone)).workflow.id


async def test_a_viewer_reads_what_is_shared_and_changes_nothing(
    registry: Registry, client: Client, sql: psycopg.Connection
) -> None:
    """X17."""
    node = await client.node(INCREMENT)
    await share(client, node.id, is_public=True)
    made = await create(client, single(node))
    await make_template(client, made.id)
    viewer = registry.client(factories.user(sql, role="viewer").token)
    versions = node_rpc.ListNodeVersionsRequest(node_id=node.id)
    assert 1 == len((await viewer.nodes.ListNodeVersions(versions)).versions)
    listed = pb.ListWorkflowVersionsRequest(workflow_id=made.id)
    assert 1 == len((await viewer.workflows.ListWorkflowVersions(listed)).versions)
    calls: list[Awaitable[Any]] = [
        viewer.nodes.CloneNode(node_rpc.CloneNodeRequest(node_id=node.id)),
        viewer.nodes.RollbackNode(node_rpc.RollbackNodeRequest(node_id=node.id, version=1)),
        viewer.nodes.DeleteNode(node_rpc.DeleteNodeRequest(node_id=node.id)),
        viewer.nodes.UndeleteNode(node_rpc.UndeleteNodeRequest(node_id=node.id)),
        viewer.workflows.CloneWorkflow(pb.CloneWorkflowRequest(workflow_id=made.id)),
        viewer.workflows.RollbackWorkflow(
            pb.RollbackWorkflowRequest(workflow_id=made.id, version=1)
        ),
        viewer.workflows.DeleteWorkflow(pb.DeleteWorkflowRequest(workflow_id=made.id)),
        viewer.workflows.UndeleteWorkflow(pb.UndeleteWorkflowRequest(workflow_id=made.id)),
    ]
    for call in calls:
        assert grpc.StatusCode.PERMISSION_DENIED == (await refused(call)).code
