"""Templates: parameters declared, filled in, and in the way of a start while they are open."""

from __future__ import annotations

import uuid
from typing import Any

import grpc
import psycopg
import pytest
from qflow.registry.v1 import template_service_pb2 as pb
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as workflow_rpc
from qflow.registry.v1.template_service_pb2_grpc import TemplateServiceStub

from tests import factories
from tests.integration.registry.conftest import Client, Registry, change_rows, place, refused

INVALID, STATE = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


def parameter(name: str, of: str = "int", **fields: Any) -> workflow_pb2.WorkflowParameter:
    return workflow_pb2.WorkflowParameter(name=name, type_json=f'{{"t":"{of}"}}', **fields)


async def graph(client: Client) -> workflow_pb2.WorkflowDefinition:
    """A node with two parameters: `by` must be filled in, `to` need not be."""
    node = await client.node("def scale(x: int, y: int) -> int: return x * y")
    return workflow_pb2.WorkflowDefinition(
        nodes=[
            place(
                "a",
                on=node,
                parameters=[
                    {"input": "x", "parameter": "by"},
                    {"input": "y", "parameter": "to"},
                ],
            )
        ],
        parameters=[
            parameter("by", description="how much"),
            parameter("to", default_json="7"),
        ],
    )


async def create(client: Client, definition: Any, **fields: Any) -> workflow_pb2.Workflow:
    request = workflow_rpc.CreateWorkflowRequest(name="t", definition=definition, **fields)
    made: workflow_pb2.Workflow = (await client.workflows.CreateWorkflow(request)).workflow
    return made


@pytest.fixture
async def template(client: Client, sql: psycopg.Connection) -> workflow_pb2.Workflow:
    made = await create(client, await graph(client))
    await change_rows(sql, "UPDATE workflows SET is_template = true WHERE id = %s", (made.id,))
    # Its node is for everybody too, as a template's must be.
    await change_rows(
        sql,
        "UPDATE python_nodes SET is_public = true WHERE id = %s",
        (made.definition.nodes[0].node_id,),
    )
    return made


async def fill_in(
    client: Client, template: workflow_pb2.Workflow, arguments: str, **fields: Any
) -> workflow_pb2.Workflow:
    request = pb.CreateWorkflowFromTemplateRequest(
        template_id=template.id, arguments_json=arguments, name="w", **fields
    )
    stub = TemplateServiceStub(client.channel)
    made: workflow_pb2.Workflow = (await stub.CreateWorkflowFromTemplate(request)).workflow
    return made


async def test_a_template_is_filled_in_by_somebody_else(
    template: workflow_pb2.Workflow, registry: Registry, sql: psycopg.Connection
) -> None:
    user = factories.user(sql)
    other = registry.client(user.token)
    made = await fill_in(other, template, '{"by": 3}', activate=True)
    assert (made.active, made.created_by, made.version) == (True, str(user.id), 1)
    [node] = made.definition.nodes
    assert [(each.input, each.value_json) for each in node.literals] == [("x", "3"), ("y", "7")]
    assert not node.parameters
    assert not made.definition.parameters


async def test_what_is_missing_is_named_whole(client: Client, sql: psycopg.Connection) -> None:
    """B55."""
    definition = await graph(client)
    definition.parameters[1].default_json = ""
    made = await create(client, definition)
    await change_rows(sql, "UPDATE workflows SET is_template = true WHERE id = %s", (made.id,))
    said = await refused(fill_in(client, made, "{}"))
    assert (said.code, said.reason) == (STATE, "PARAMETERS_MISSING")
    assert said.violations == [
        ("arguments_json.by", "PARAMETER_MISSING"),
        ("arguments_json.to", "PARAMETER_MISSING"),
    ]
    assert (await refused(fill_in(client, made, ""))).reason == "PARAMETERS_MISSING"


async def test_all_faults_of_the_arguments_come_at_once(
    client: Client, template: workflow_pb2.Workflow
) -> None:
    said = await refused(fill_in(client, template, '{"to": "x", "what": 1}'))
    assert (said.code, said.reason) == (INVALID, "ARGUMENTS_INVALID")
    assert set(said.violations) == {
        ("arguments_json.what", "UNKNOWN_PARAMETER"),
        ("arguments_json.by", "PARAMETER_MISSING"),
        ("arguments_json.to", "VALUE_NOT_OF_TYPE"),
    }
    for text, field in (("[]", "arguments_json"), ("{", "arguments_json")):
        said = await refused(fill_in(client, template, text))
        assert (said.code, said.violations[0][0]) == (INVALID, field)


async def test_a_template_with_open_parameters_is_not_activated(
    client: Client, template: workflow_pb2.Workflow
) -> None:
    said = await refused(
        client.workflows.ActivateWorkflow(
            workflow_rpc.ActivateWorkflowRequest(workflow_id=template.id)
        )
    )
    assert (said.code, said.reason) == (STATE, "WORKFLOW_INCOMPLETE")
    assert said.violations == [("parameters[0]", "PARAMETER_OPEN")]


async def test_a_workflow_whose_parameters_all_have_defaults_may_be_active(
    client: Client,
) -> None:
    definition = await graph(client)
    definition.parameters[0].default_json = "2"
    made = await create(client, definition, activate=True)
    assert [each.type_expression for each in made.definition.parameters] == ["int", "int"]
    read = await client.workflows.GetWorkflow(workflow_rpc.GetWorkflowRequest(workflow_id=made.id))
    assert read.workflow == made


async def test_faults_of_parameters_come_with_their_places(client: Client) -> None:
    """B51, B52."""
    definition = await graph(client)
    definition.nodes[0].parameters[1].parameter = "nothing"
    definition.nodes[0].literals.add(input="x", value_json="1")
    definition.parameters.extend(
        [
            parameter("by"),
            parameter("text", "str", default_json="1"),
            workflow_pb2.WorkflowParameter(name="odd", type_json="{}"),
        ]
    )
    said = await refused(create(client, definition))
    assert said.code == INVALID
    assert set(said.violations) == {
        ("parameters[2].name", "DUPLICATE_PARAMETER"),
        ("parameters[3].default_json", "VALUE_NOT_OF_TYPE"),
        ("parameters[4].type_json", "TYPE_INVALID"),
        ("nodes[0].parameters[0]", "TWO_WRITERS"),
        ("nodes[0].parameters[1].parameter", "UNKNOWN_PARAMETER"),
    }
    definition = await graph(client)
    definition.parameters[0].type_json = '{"t":"str"}'
    said = await refused(create(client, definition))
    assert said.violations == [("nodes[0].parameters[0].parameter", "TYPE_REFUTED")]


async def test_a_repeated_call_makes_one_workflow(
    client: Client, template: workflow_pb2.Workflow, sql: psycopg.Connection
) -> None:
    """F26: also when the template is none any more."""
    request_id = str(uuid.uuid4())
    made = await fill_in(client, template, '{"by": 1}', request_id=request_id)
    await change_rows(sql, "UPDATE workflows SET is_template = false WHERE id = %s", (template.id,))
    assert await fill_in(client, template, '{"by": 1}', request_id=request_id) == made
    said = await refused(fill_in(client, template, '{"by": 1}'))
    assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "TEMPLATE_NOT_FOUND")


async def test_what_is_only_validated_is_not_stored(
    client: Client, template: workflow_pb2.Workflow, sql: psycopg.Connection
) -> None:
    checked = await fill_in(client, template, '{"by": 1}', validate_only=True)
    assert checked.id == ""
    assert sql.execute("SELECT count(*) FROM workflows").fetchone() == (1,)
    said = await refused(fill_in(client, template, '{"by": 1}', version=2))
    assert said.reason == "VERSION_NOT_FOUND"
