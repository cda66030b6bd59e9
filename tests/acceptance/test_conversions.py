"""Conversions on edges: that they run wherever an edge leads, what is recorded, how they fail."""

from __future__ import annotations

import json
from typing import Any

from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.registry.v1 import workflow_pb2, workflow_service_pb2

from tests.support.client import COMPLETED, FAILED, Client
from tests.support.suite import Suite

WORD = "def word(x: str) -> str:\n    return x\n"
WORDS = "def words(x: str) -> list[str]:\n    return x.split()\n"
ADD = "def add(n: int) -> int:\n    return n + 1\n"


def edge(text: str, conversion: str = "") -> workflow_pb2.Connection:
    source, target = (part.strip().partition(".") for part in text.split(">"))
    return workflow_pb2.Connection(
        source_node=source[0],
        source_output=source[2],
        target_node=target[0],
        target_input=target[2],
        conversion=conversion,
    )


async def workflow(
    client: Client,
    nodes: list[workflow_pb2.WorkflowNode],
    edges: list[workflow_pb2.Connection],
    output: str = "",
) -> workflow_pb2.Workflow:
    answer = await client.workflows.CreateWorkflow(
        workflow_service_pb2.CreateWorkflowRequest(
            name="conversions",
            activate=True,
            definition=workflow_pb2.WorkflowDefinition(
                nodes=nodes,
                connections=edges,
                outputs=[
                    workflow_pb2.WorkflowOutput(
                        name="y", source_node=output, source_output="result"
                    )
                ]
                if output
                else [],
            ),
        ),
        timeout=30,
    )
    made: workflow_pb2.Workflow = answer.workflow
    assert made.active, made.findings
    return made


def flows(suite: Suite, execution_id: str) -> set[tuple[Any, ...]]:
    with suite.sql() as sql:
        found = sql.execute(
            "SELECT source_node_id, target_node_id, conversion FROM node_data_flow"
            " WHERE workflow_execution_id = %s",
            (execution_id,),
        ).fetchall()
    return set(found)


async def node_of(client: Client, execution_id: str, node_id: str) -> Any:
    listed = await client.executions.ListNodeExecutions(
        pb.ListNodeExecutionsRequest(execution_id=execution_id), timeout=10
    )
    return next(each for each in listed.node_executions if each.node_id == node_id)


async def test_a_conversion_runs_is_recorded_and_fails_by_the_name_of_its_edge(
    suite: Suite, client: Client
) -> None:
    word = await client.create_node("word", WORD)
    add = await client.create_node("add", ADD)
    made = await workflow(
        client,
        [
            workflow_pb2.WorkflowNode(id="a", node_id=word.id),
            workflow_pb2.WorkflowNode(id="b", node_id=add.id),
        ],
        [edge(".x > a.x"), edge("a.result > b.n", "str_to_int")],
        "b",
    )
    assert workflow_pb2.VERDICT_CONVERSION == made.definition.connections[1].verdict

    run = await client.run(made, {"x": "41"})
    assert (COMPLETED, {"y": 42}) == (run.status, json.loads(run.output_json))
    assert {("a", "b", "str_to_int")} == flows(suite, run.id)

    run = await client.run(made, {"x": "secret"})
    assert FAILED == run.status
    error = (await node_of(client, run.id, "b")).error
    assert "conversion_error" == error.error_type == run.error.error_type
    told = error.edge
    assert ("a", "result", "b", "n", "str_to_int") == (
        told.source_node_id,
        told.source_output,
        told.target_node_id,
        told.target_input,
        told.conversion,
    )
    assert (
        "input 'n': str_to_int of a text of 6 characters: the text is not an integer"
        " (edge a.result → b.n)" == error.message == run.error.message
    )


async def test_conversions_run_into_workflows_maps_and_conditions(
    suite: Suite, client: Client
) -> None:
    """No runner takes these values over: the engine itself converts them."""
    words = await client.create_node("words", WORDS)
    word = await client.create_node("word", WORD)
    add = await client.create_node("add", ADD)
    below = await workflow(
        client,
        [workflow_pb2.WorkflowNode(id="add", node_id=add.id)],
        [edge(".n > add.n")],
        "add",
    )
    made = await workflow(
        client,
        [
            workflow_pb2.WorkflowNode(id="split", node_id=words.id),
            workflow_pb2.WorkflowNode(
                id="each", node_id=add.id, for_each=workflow_pb2.MapPolicy(input="n")
            ),
            workflow_pb2.WorkflowNode(id="one", node_id=word.id),
            workflow_pb2.WorkflowNode(
                id="sub", node_id=below.id, sub_workflow=workflow_pb2.NodeSubWorkflow()
            ),
            workflow_pb2.WorkflowNode(id="big", node_id=add.id, condition="n > 5"),
        ],
        [
            edge(".x > split.x"),
            edge(".z > one.x"),
            edge("split.result > each.n", "str_to_int"),
            edge("one.result > sub.n", "str_to_int"),
            edge("one.result > big.n", "str_to_int"),
        ],
    )
    run = await client.run(made, {"x": "1 2", "z": "7"})
    assert (COMPLETED, "") == (run.status, run.error.message)
    assert {"each": [2, 3], "sub": 8, "big": 8} == json.loads(run.output_json)
    assert {
        ("split", "each", "str_to_int"),
        ("one", "sub", "str_to_int"),
        ("one", "big", "str_to_int"),
    } == flows(suite, run.id)

    for inputs, failing in (
        ({"x": "1 2", "z": "y"}, {"sub", "big"}),  # whichever begins first
        ({"x": "1 x", "z": "7"}, {"each"}),
    ):
        run = await client.run(made, inputs)
        assert FAILED == run.status
        assert run.error.node_id.partition("[")[0] in failing
        error = (await node_of(client, run.id, run.error.node_id)).error
        assert "conversion_error" == error.error_type == run.error.error_type
        assert error.edge.target_node_id in failing
