"""What runs is not hurt by what happens to its definitions later; what is shared, runs."""

from __future__ import annotations

import json

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1 import workflow_service_pb2 as pb

from tests.acceptance.conftest import refusal
from tests.support.client import COMPLETED, Client, Step

SLOW = "import time\n\n\ndef slow(x: int) -> int:\n    time.sleep(0.5)\n    return x + 1\n"
INCREMENT = "def increment(x: int) -> int:\n    return x + 1\n"
DECREMENT = "def decrement(x: int) -> int:\n    return x - 1\n"


async def share(client: Client, node_id: str) -> None:
    await client.nodes.UpdateNode(
        node_rpc.UpdateNodeRequest(
            node_id=node_id, is_public=True, update_mask=FieldMask(paths=["is_public"])
        )
    )


async def test_a_run_goes_on_when_its_workflow_and_nodes_are_deleted(client: Client) -> None:
    """B42: nothing is started any more, and what was started is not hurt."""
    node = await client.create_node("slow", SLOW)
    workflow = await client.create_workflow(
        "w",
        [Step("a", node), Step("b", node)],
        [".x > a.x", "a.result > b.x"],
        inputs={"x": "int"},
        outputs=["y = b.result"],
    )
    under_way = await client.start(workflow, {"x": 1})
    await client.workflows.DeleteWorkflow(pb.DeleteWorkflowRequest(workflow_id=workflow.id))
    await client.nodes.DeleteNode(node_rpc.DeleteNodeRequest(node_id=node.id))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.start(workflow, {"x": 1})
    assert grpc.StatusCode.NOT_FOUND == refused.value.code()
    ended = await client.finished(under_way)
    assert (COMPLETED, {"y": 3}) == (ended.status, json.loads(ended.output_json))

    await client.nodes.UndeleteNode(node_rpc.UndeleteNodeRequest(node_id=node.id))
    await client.workflows.UndeleteWorkflow(pb.UndeleteWorkflowRequest(workflow_id=workflow.id))
    again = await client.finished(await client.start(workflow, {"x": 2}))
    assert (COMPLETED, {"y": 4}) == (again.status, json.loads(again.output_json))


async def test_a_public_node_runs_for_others_as_it_was_when_they_took_it(
    client: Client, stranger: Client
) -> None:
    """Also after its next version, and after its owner deleted it."""
    node = await client.create_node("increment", INCREMENT)
    await share(client, node.id)
    theirs = await stranger.create_workflow(
        "w", [Step("a", node)], [".x > a.x"], inputs={"x": "int"}, outputs=["y = a.result"]
    )
    await client.nodes.UpdateNode(
        node_rpc.UpdateNodeRequest(
            node_id=node.id,
            code=DECREMENT,
            main_function="decrement",
            update_mask=FieldMask(paths=["code", "main_function"]),
        )
    )
    await client.nodes.DeleteNode(node_rpc.DeleteNodeRequest(node_id=node.id))
    ended = await stranger.finished(await stranger.start(theirs, {"x": 1}))
    assert (COMPLETED, {"y": 2}) == (ended.status, json.loads(ended.output_json))


async def test_a_template_is_started_by_others_and_only_as_long_as_it_is_one(
    client: Client, stranger: Client
) -> None:
    node = await client.create_node("increment", INCREMENT)
    await share(client, node.id)
    template = await client.create_workflow(
        "w", [Step("a", node)], [".x > a.x"], inputs={"x": "int"}, outputs=["y = a.result"]
    )
    change = pb.UpdateWorkflowRequest(
        workflow_id=template.id, is_template=True, update_mask=FieldMask(paths=["is_template"])
    )
    await client.workflows.UpdateWorkflow(change)
    ended = await stranger.finished(await stranger.start(template, {"x": 1}))
    assert (COMPLETED, {"y": 2}) == (ended.status, json.loads(ended.output_json))
    clone = pb.CloneWorkflowRequest(workflow_id=template.id)
    copy = (await stranger.workflows.CloneWorkflow(clone)).workflow
    active = (
        await stranger.workflows.ActivateWorkflow(pb.ActivateWorkflowRequest(workflow_id=copy.id))
    ).workflow
    change.is_template = False
    await client.workflows.UpdateWorkflow(change)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stranger.start(template, {"x": 1})
    assert grpc.StatusCode.NOT_FOUND == refused.value.code()
    mine = await stranger.finished(await stranger.start(active, {"x": 4}))
    assert (COMPLETED, {"y": 5}) == (mine.status, json.loads(mine.output_json))


async def test_an_older_version_runs_again_after_a_rollback(client: Client) -> None:
    node = await client.create_node("increment", INCREMENT)
    workflow = await client.create_workflow(
        "w", [Step("a", node)], [".x > a.x"], inputs={"x": "int"}, outputs=["y = a.result"]
    )
    await client.nodes.UpdateNode(
        node_rpc.UpdateNodeRequest(
            node_id=node.id,
            code=DECREMENT,
            main_function="decrement",
            update_mask=FieldMask(paths=["code", "main_function"]),
        )
    )
    down = await client.finished(await client.start(workflow, {"x": 1}))
    assert {"y": 0} == json.loads(down.output_json)
    await client.nodes.RollbackNode(node_rpc.RollbackNodeRequest(node_id=node.id, version=1))
    up = await client.finished(await client.start(workflow, {"x": 1}))
    assert {"y": 2} == json.loads(up.output_json)
    said = await refusal(client.nodes.DeleteNode(node_rpc.DeleteNodeRequest(node_id=node.id)))
    assert "NODE_IN_USE" == said.reason
