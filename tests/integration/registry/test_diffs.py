"""DiffService through the contract."""

from __future__ import annotations

import asyncio
import uuid

import grpc
import psycopg
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import diff_service_pb2 as pb
from qflow.registry.v1 import node_pb2, workflow_pb2
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1 import workflow_service_pb2 as workflow_rpc

from tests.integration.registry.conftest import Client, change_rows, edge, place, refused

FIRST = "def f(x: int, note: str = 'a') -> int:\n    return x\n"
SECOND = "def f(x: float, more: int) -> int:\n    return more\n"


async def _update(client: Client, node: node_pb2.Node, code: str) -> node_pb2.Node:
    request = node_rpc.UpdateNodeRequest(
        node_id=node.id, code=code, update_mask=FieldMask(paths=["code"])
    )
    changed: node_pb2.Node = (await client.nodes.UpdateNode(request, timeout=30)).node
    return changed


async def test_two_versions_of_a_node_are_compared(client: Client) -> None:
    node = await client.node(FIRST)
    await _update(client, node, SECOND)
    request = pb.DiffNodeVersionsRequest(node_id=node.id, from_version=1)
    diff = await client.diffs.DiffNodeVersions(request)
    assert (diff.from_version, diff.to_version, diff.source.cut) == (1, 2, False)
    assert diff.source.text.startswith(
        "--- version 1\n+++ version 2\n@@ -1,2 +1,2 @@\n-def f(x: int"
    )
    assert {each.place: each.can_break for each in diff.changes} == {
        "inputs.x.type": True,
        "inputs.note": True,
        "inputs.more": True,
    }
    same = await client.diffs.DiffNodeVersions(pb.DiffNodeVersionsRequest(node_id=node.id))
    assert (same.source.text, len(same.changes)) == ("", 0)


async def test_what_is_not_there_is_not_found(client: Client) -> None:
    """Of what is there, and has no such version, the version is told, by its field."""
    node = await client.node(FIRST)
    request = pb.DiffNodeVersionsRequest(node_id=str(uuid.uuid4()), from_version=1)
    said = await refused(client.diffs.DiffNodeVersions(request))
    assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "NODE_NOT_FOUND")
    for field in ("from_version", "to_version"):
        missing = pb.DiffNodeVersionsRequest(node_id=node.id, **{field: 9})
        said = await refused(client.diffs.DiffNodeVersions(missing))
        assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "VERSION_NOT_FOUND")
        assert said.violations == [(field, "VERSION_NOT_FOUND")]
    of_none = pb.DiffWorkflowVersionsRequest(workflow_id=str(uuid.uuid4()))
    said = await refused(client.diffs.DiffWorkflowVersions(of_none))
    assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND")


async def test_two_sources_of_a_megabyte_hold_up_nobody(client: Client) -> None:
    """No line of the one is a line of the other: what difflib would be worst at."""
    head = "def f() -> int:\n    return 1\n"
    first, second = (
        head + "".join(f"# {number:05} {end}\n" for number in range(90_000)) for end in "ab"
    )
    node = await client.node(first)
    await _update(client, node, second)
    request = pb.DiffNodeVersionsRequest(node_id=node.id, from_version=1)
    diffing = asyncio.ensure_future(client.diffs.DiffNodeVersions(request, timeout=40))
    answered = 0
    while not diffing.done():
        await client.nodes.ListNodes(node_rpc.ListNodesRequest())
        answered += 1
    assert (await diffing).source.cut
    assert answered > 10


async def test_two_versions_of_a_workflow_are_compared_also_when_a_node_is_gone(
    client: Client, sql: psycopg.Connection
) -> None:
    node = await client.node("def f(x: int = 0) -> int: return x")
    definition = workflow_pb2.WorkflowDefinition(nodes=[place("a", on=node)])
    made = await client.workflows.CreateWorkflow(
        workflow_rpc.CreateWorkflowRequest(name="w", definition=definition)
    )
    definition.nodes.append(place("b", on=node, literals={"x": "7"}))
    definition.connections.append(edge("b.result -> a.x"))
    await client.workflows.UpdateWorkflow(
        workflow_rpc.UpdateWorkflowRequest(
            workflow_id=made.workflow.id,
            definition=definition,
            update_mask=FieldMask(paths=["definition"]),
        )
    )
    request = pb.DiffWorkflowVersionsRequest(workflow_id=made.workflow.id, from_version=1)
    diff = await client.diffs.DiffWorkflowVersions(request)
    assert {(each.kind, each.place) for each in diff.changes} == {
        (pb.CHANGE_KIND_ADDED, "nodes.b"),
        (pb.CHANGE_KIND_ADDED, "connections.b.result>a.x"),
    }
    assert "\n+- {from: b.result, to: a.x}\n" in diff.text.text
    assert "\n+    literals:\n+      x: 7\n" in diff.text.text
    await change_rows(sql, "UPDATE python_nodes SET deleted_at = now()")
    assert (await client.diffs.DiffWorkflowVersions(request)).changes == diff.changes
