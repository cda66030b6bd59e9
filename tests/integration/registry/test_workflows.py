from __future__ import annotations

import asyncio
import uuid

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import node_service_pb2 as node_rpc
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as pb

from tests import factories
from tests.integration.registry.conftest import Client, Registry, edge, place, refused

INVALID = grpc.StatusCode.INVALID_ARGUMENT
INCREMENT = "def increment(x: int) -> int: return x + 1"
HALVE = "def halve(x: float) -> float: return x / 2"
SHOUT = "def shout(x: str) -> str: return x.upper()"


def _create(definition: workflow_pb2.WorkflowDefinition, **fields: object) -> object:
    return pb.CreateWorkflowRequest(name="w", definition=definition, **fields)  # type: ignore[arg-type]


async def _pair(client: Client) -> workflow_pb2.WorkflowDefinition:
    increment, halve = await client.node(INCREMENT), await client.node(HALVE)
    return workflow_pb2.WorkflowDefinition(
        nodes=[place("a", on=increment), place("b", on=halve)],
        connections=[edge(".n -> a.x"), edge("a.result -> b.x")],
    )


async def test_a_workflow_is_stored_with_its_conversions_and_types(client: Client) -> None:
    definition = await _pair(client)
    made = (await client.workflows.CreateWorkflow(_create(definition))).workflow
    assert (made.version, made.active) == (1, False)
    assert [(each.conversion, each.verdict) for each in made.definition.connections] == [
        ("", workflow_pb2.VERDICT_EXACT),
        ("int_to_float", workflow_pb2.VERDICT_CONVERSION),
    ]
    assert [(each.name, each.type_expression) for each in made.definition.inputs] == [("n", "int")]
    assert [(each.name, each.type_expression) for each in made.definition.outputs] == [
        ("b", "float")
    ]
    assert made.definition.nodes[0].timeout == Duration(seconds=600)
    assert made.definition.nodes[0].memory_limit_bytes == 512 * 1024 * 1024
    read = await client.workflows.GetWorkflow(pb.GetWorkflowRequest(workflow_id=made.id))
    assert read.workflow == made
    basic = pb.GetWorkflowRequest(workflow_id=made.id, view=workflow_pb2.WORKFLOW_VIEW_BASIC)
    assert not (await client.workflows.GetWorkflow(basic)).workflow.definition.nodes


async def test_all_faults_come_at_once_with_their_places(client: Client) -> None:
    """B44 to B48, B51, B52."""
    increment, shout = await client.node(INCREMENT), await client.node(SHOUT)
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[
            place("a", on=increment),
            place("b", on=increment),
            place("a", on=increment),
            place("s", on=shout, literals={"x": "1"}),
            place("t", on=increment),
        ],
        connections=[
            edge("a.result -> b.x"),
            edge("b.result -> a.x"),
            edge("a.result -> b.x"),
            edge("a.result -> a.x"),
            edge("z.result -> b.x"),
            edge("s.result -> t.x"),
            edge(".n -> t.x"),
        ],
    )
    said = await refused(client.workflows.CreateWorkflow(_create(definition)))
    assert said.code == INVALID
    assert set(said.violations) == {
        ("nodes[2].id", "DUPLICATE_NODE_ID"),
        ("nodes[3].literals[0].value_json", "VALUE_NOT_OF_TYPE"),
        ("connections[2]", "DUPLICATE_EDGE"),
        ("connections[3]", "SELF_EDGE"),
        ("connections[4].source_node", "UNKNOWN_NODE"),
        ("connections[5]", "TYPE_REFUTED"),
        ("connections[6]", "TWO_WRITERS"),
        ("connections[1]", "CYCLE"),
    }
    assert "a → b → a" in said.text
    checked = await client.workflows.CheckWorkflow(pb.CheckWorkflowRequest(definition=definition))
    assert not checked.storable
    assert {(each.place, each.code) for each in checked.findings} >= set(said.violations)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": "1a"}, "definition.nodes[0].id"),
        ({"id": ""}, "definition.nodes[0].id"),
        ({"node_id": "x"}, "definition.nodes[0].node_id"),
        ({"version": -1}, "definition.nodes[0].version"),
        ({"timeout": Duration(seconds=-1)}, "definition.nodes[0].timeout"),
        ({"timeout": Duration(seconds=10**9)}, "definition.nodes[0].timeout"),
        ({"memory_limit_bytes": 1}, "definition.nodes[0].memory_limit_bytes"),
        (
            {"retry": workflow_pb2.RetryPolicy(max_retries=10**9)},
            "definition.nodes[0].retry.max_retries",
        ),
    ],
)
async def test_a_node_out_of_bounds_is_refused(
    client: Client, change: dict[str, object], field: str
) -> None:
    """B54."""
    made = await client.node("def one() -> int: return 1")
    broken = place("a", on=made)
    broken.MergeFrom(workflow_pb2.WorkflowNode(**change))  # type: ignore[arg-type]
    if change.get("id") == "":
        broken.id = ""
    definition = workflow_pb2.WorkflowDefinition(nodes=[broken])
    said = await refused(client.workflows.CreateWorkflow(_create(definition)))
    assert said.code == INVALID
    assert said.violations[0][0] == field


async def test_a_workflow_without_nodes_is_refused(client: Client) -> None:
    """B53, B1."""
    for request in (
        _create(workflow_pb2.WorkflowDefinition()),
        pb.CreateWorkflowRequest(name="w"),
    ):
        said = await refused(client.workflows.CreateWorkflow(request))
        assert said.code == INVALID


async def test_a_draft_with_warnings_is_not_started(client: Client) -> None:
    """B50."""
    increment = await client.node(INCREMENT)
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[place("a", on=increment, literals={"x": "1"}), place("b", on=increment)],
        outputs=[workflow_pb2.WorkflowOutput(name="out", source_node="a", source_output="result")],
    )
    said = await refused(client.workflows.CreateWorkflow(_create(definition, activate=True)))
    assert said.code == grpc.StatusCode.FAILED_PRECONDITION
    draft = (await client.workflows.CreateWorkflow(_create(definition))).workflow
    assert [each.code for each in draft.findings] == ["INPUT_MISSING", "NODE_UNREACHABLE"]
    said = await refused(
        client.workflows.ActivateWorkflow(pb.ActivateWorkflowRequest(workflow_id=draft.id))
    )
    assert (said.code, said.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "WORKFLOW_INCOMPLETE",
    )
    assert ("nodes[1]", "INPUT_MISSING") in said.violations


async def test_a_workflow_is_activated_and_withdrawn(client: Client) -> None:
    definition = await _pair(client)
    draft = (await client.workflows.CreateWorkflow(_create(definition))).workflow
    activate = pb.ActivateWorkflowRequest(workflow_id=draft.id, etag=draft.etag)
    active = (await client.workflows.ActivateWorkflow(activate)).workflow
    assert (active.active, active.version) == (True, 1)
    again = pb.ActivateWorkflowRequest(workflow_id=draft.id)
    assert (await client.workflows.ActivateWorkflow(again)).workflow.etag == active.etag
    assert (await refused(client.workflows.ActivateWorkflow(activate))).reason == "ETAG_MISMATCH"
    deactivate = pb.DeactivateWorkflowRequest(workflow_id=draft.id)
    withdrawn = (await client.workflows.DeactivateWorkflow(deactivate)).workflow
    assert not withdrawn.active


async def test_a_node_that_changed_under_a_draft_is_seen_at_activation(client: Client) -> None:
    definition = await _pair(client)
    draft = (await client.workflows.CreateWorkflow(_create(definition))).workflow
    change = node_rpc.UpdateNodeRequest(
        node_id=draft.definition.nodes[1].node_id,
        code="def halve(x: list[int]) -> float: ...",
        update_mask=FieldMask(paths=["code"]),
    )
    await client.nodes.UpdateNode(change)
    activate = pb.ActivateWorkflowRequest(workflow_id=draft.id)
    said = await refused(client.workflows.ActivateWorkflow(activate))
    assert said.code == grpc.StatusCode.FAILED_PRECONDITION
    assert said.violations == [("connections[1]", "TYPE_REFUTED")]

    change.code = "def halve(x: int) -> float: return x / 2"
    await client.nodes.UpdateNode(change)
    active = (await client.workflows.ActivateWorkflow(activate)).workflow
    assert (active.active, active.version) == (True, 2)
    assert active.definition.connections[1].conversion == ""


async def test_a_new_definition_makes_a_new_version(client: Client) -> None:
    """I17."""
    definition = await _pair(client)
    first = (await client.workflows.CreateWorkflow(_create(definition, activate=True))).workflow
    definition.settings.timeout.FromSeconds(60)
    change = pb.UpdateWorkflowRequest(
        workflow_id=first.id,
        etag=first.etag,
        definition=definition,
        update_mask=FieldMask(paths=["definition"]),
    )
    second = (await client.workflows.UpdateWorkflow(change)).workflow
    assert (second.version, second.definition.settings.timeout) == (2, Duration(seconds=60))
    assert second.active
    said = await refused(client.workflows.UpdateWorkflow(change))
    assert (said.code, said.facts["etag"]) == (grpc.StatusCode.ABORTED, second.etag)

    del definition.connections[0]
    change.definition.CopyFrom(definition)
    change.etag = ""
    said = await refused(client.workflows.UpdateWorkflow(change))
    assert said.code == grpc.StatusCode.FAILED_PRECONDITION
    old = pb.GetWorkflowRequest(workflow_id=first.id, version=1)
    assert not (await client.workflows.GetWorkflow(old)).workflow.definition.settings.HasField(
        "timeout"
    )


async def test_a_repeated_call_answers_as_the_first_did(client: Client) -> None:
    """I12, B56: a name may stand twice, a request id not."""
    definition = await _pair(client)
    request = _create(definition, request_id=str(uuid.uuid4()))
    answers = await asyncio.gather(*[client.workflows.CreateWorkflow(request) for _ in range(4)])
    assert len({answer.workflow.id for answer in answers}) == 1
    other = (await client.workflows.CreateWorkflow(_create(definition))).workflow
    assert other.id != answers[0].workflow.id
    listed = await client.workflows.ListWorkflows(pb.ListWorkflowsRequest(page_size=1))
    assert [each.id for each in listed.workflows] == [other.id]
    assert not listed.workflows[0].definition.nodes
    rest = pb.ListWorkflowsRequest(page_size=1, page_token=listed.next_page_token)
    page = await client.workflows.ListWorkflows(rest)
    assert [each.id for each in page.workflows] == [answers[0].workflow.id]
    assert page.next_page_token == ""


async def test_a_repeated_activation_answers_as_the_first_did(client: Client) -> None:
    """I12: the etag it was based on is old by then."""
    node = await client.node(INCREMENT)
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[place("a", on=node)], connections=[edge(".n -> a.x")]
    )
    draft = (await client.workflows.CreateWorkflow(_create(definition))).workflow
    request = pb.ActivateWorkflowRequest(
        workflow_id=draft.id, etag=draft.etag, request_id=str(uuid.uuid4())
    )
    first = await client.workflows.ActivateWorkflow(request)
    assert first.workflow.active
    assert first == await client.workflows.ActivateWorkflow(request)
    request.request_id = str(uuid.uuid4())
    again = await refused(client.workflows.ActivateWorkflow(request))
    assert again.code == grpc.StatusCode.ABORTED


async def test_another_tenants_node_and_workflow_are_absent(
    registry: Registry, client: Client, sql: psycopg.Connection
) -> None:
    definition = await _pair(client)
    made = (await client.workflows.CreateWorkflow(_create(definition))).workflow
    other = registry.client(factories.user(sql).token)
    said = await refused(other.workflows.CreateWorkflow(_create(definition)))
    assert said.violations == [
        ("nodes[0].node_id", "NODE_NOT_FOUND"),
        ("nodes[1].node_id", "NODE_NOT_FOUND"),
    ]
    for call in (
        other.workflows.GetWorkflow(pb.GetWorkflowRequest(workflow_id=made.id)),
        other.workflows.ActivateWorkflow(pb.ActivateWorkflowRequest(workflow_id=made.id)),
        other.workflows.DeactivateWorkflow(pb.DeactivateWorkflowRequest(workflow_id=made.id)),
    ):
        assert (await refused(call)).code == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("shape", ["chain", "star"])
async def test_ten_thousand_nodes_are_stored(client: Client, shape: str) -> None:
    """B49."""
    made = await client.node(INCREMENT)
    size = 10_000
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[
            place("n0", on=made, literals={"x": "1"}),
            *(place(f"n{i}", on=made) for i in range(1, size)),
        ],
        connections=[
            edge(f"n{i - 1 if shape == 'chain' else 0}.result -> n{i}.x") for i in range(1, size)
        ],
    )
    stored = await client.workflows.CreateWorkflow(_create(definition), timeout=50)
    assert len(stored.workflow.definition.nodes) == size
    definition.nodes.append(place("one_more", on=made, literals={"x": "1"}))
    said = await refused(client.workflows.CreateWorkflow(_create(definition)))
    assert said.code == INVALID


async def test_types_that_take_too_long_are_refused_and_harm_nobody(client: Client) -> None:
    """A definition whose edges compare huge types is checked by a child that has its limits."""
    members = " | ".join(f"tuple[{', '.join(['int'] * 8)}, Literal[{i}]]" for i in range(90))
    wide = f"from typing import Literal\ndef f(x: {members} = None) -> {members}: ..."
    narrow = wide.replace("Literal[", "Literal[1000 + 1, ").replace("1000 + 1", "1000")
    source, target = await client.node(wide), await client.node(narrow)
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[place("a", on=source), *(place(f"b{i}", on=target) for i in range(40))],
        connections=[edge(f"a.result -> b{i}.x") for i in range(40)],
    )
    request = pb.CheckWorkflowRequest(definition=definition)
    checking = asyncio.ensure_future(client.workflows.CheckWorkflow(request, timeout=40))
    assert (await client.node(INCREMENT)).version == 1
    assert (await checking).storable


async def test_a_definition_that_could_not_be_read_back_is_not_stored(client: Client) -> None:
    made = await client.node("def f(x: str) -> str: return x")
    literal = '"' + "x" * 3_900 + '"'
    definition = workflow_pb2.WorkflowDefinition(
        nodes=[place(f"n{i}", on=made, literals={"x": literal}) for i in range(1_040)]
    )
    request = _create(definition)
    said = await refused(client.workflows.CreateWorkflow(request, timeout=50))
    assert (said.code, said.reason) == (INVALID, "DEFINITION_TOO_LARGE")
    assert not (await client.workflows.ListWorkflows(pb.ListWorkflowsRequest())).workflows
