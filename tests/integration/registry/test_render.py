"""RenderWorkflow through the contract."""

from __future__ import annotations

import uuid
from xml.etree import ElementTree as ET

import grpc
import pytest
from qflow.registry.v1 import exchange_service_pb2 as pb
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as workflow_rpc

from tests.integration.registry.conftest import Client, edge, place, refused

INCREMENT = "def increment(x: int) -> int: return x + 1"
SHOUT = "def shout(x: str) -> str: return x.upper()"


@pytest.mark.parametrize("form", [pb.PICTURE_FORMAT_MERMAID, pb.PICTURE_FORMAT_SVG])
async def test_a_stored_workflow_and_a_definition_are_drawn(
    client: Client, form: pb.PictureFormat.ValueType
) -> None:
    a, b = await client.node(INCREMENT), await client.node(SHOUT)
    definition = workflow_pb2.WorkflowDefinition(nodes=[place("one", on=a, version=1)])
    made = await client.workflows.CreateWorkflow(
        workflow_rpc.CreateWorkflowRequest(name="stored & shown", definition=definition)
    )
    request = pb.RenderWorkflowRequest(workflow_id=made.workflow.id, format=form)
    stored = await client.exchange.RenderWorkflow(request)
    # What cannot be stored is drawn too, with what is wrong in it.
    definition.nodes.append(place("two", on=b))
    definition.connections.append(edge("two.result -> one.x"))
    drawn = await client.exchange.RenderWorkflow(
        pb.RenderWorkflowRequest(definition=definition, format=form)
    )
    assert not stored.findings
    assert "TYPE_REFUTED" in {each.code for each in drawn.findings}
    assert "#dc2626" in drawn.text
    if form == pb.PICTURE_FORMAT_SVG:
        assert stored.media_type == "image/svg+xml"
        words = {each.text for each in ET.fromstring(stored.text).iter()}
        assert {"one", "a node · version 1", "stored & shown"} <= words
    else:
        assert stored.media_type == "text/vnd.mermaid"
        assert 'b0["one<br/>a node · version 1"]' in stored.text


async def test_either_an_id_or_a_definition_is_drawn(client: Client) -> None:
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[workflow_pb2.WorkflowNode(id="a", node_id=str(uuid.uuid4()))]
    )
    for request in (
        pb.RenderWorkflowRequest(),
        pb.RenderWorkflowRequest(workflow_id=str(uuid.uuid4()), definition=definition),
    ):
        said = await refused(client.exchange.RenderWorkflow(request))
        assert said.code == grpc.StatusCode.INVALID_ARGUMENT
    request = pb.RenderWorkflowRequest(workflow_id=str(uuid.uuid4()))
    said = await refused(client.exchange.RenderWorkflow(request))
    assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND")


@pytest.mark.slow
async def test_ten_thousand_nodes_are_drawn_as_text_and_refused_as_an_image(
    client: Client,
) -> None:
    node = await client.node("def f(x: int = 0) -> int: return x")
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[place(f"n{i}", on=node) for i in range(10_000)],
        connections=[edge(f"n{i // 2}.result -> n{i}.x") for i in range(1, 10_000)],
        outputs=[workflow_pb2.WorkflowOutput(name="y", source_node="n9", source_output="result")],
    )
    request = pb.RenderWorkflowRequest(definition=definition, format=pb.PICTURE_FORMAT_SVG)
    said = await refused(client.exchange.RenderWorkflow(request, timeout=40))
    assert (said.code, said.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "PICTURE_TOO_LARGE",
    )
    request.format = pb.PICTURE_FORMAT_MERMAID
    drawn = await client.exchange.RenderWorkflow(request, timeout=40)
    assert drawn.text.count("\n") > 20_000
