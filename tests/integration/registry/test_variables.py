"""Variables of tenants and workflows, and the workflows that read them."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.registry.v1 import variable_service_pb2 as pb
from qflow.registry.v1 import workflow_alias_service_pb2 as alias_rpc
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as workflow_rpc
from qflow.registry.v1.variable_service_pb2_grpc import VariableServiceStub
from qflow.registry.v1.workflow_alias_service_pb2_grpc import WorkflowAliasServiceStub

from tests import factories
from tests.integration.registry.conftest import Client, Registry, change_rows, place, refused

INT, STR = '{"t":"int"}', '{"t":"str"}'
INVALID = grpc.StatusCode.INVALID_ARGUMENT


async def put(
    client: Client, name: str = "limit", value: str = "3", of: str = INT, **fields: Any
) -> pb.Variable:
    """Set a variable."""
    request = pb.SetVariableRequest(name=name, value_json=value, type_json=of, **fields)
    answer: pb.SetVariableResponse = await VariableServiceStub(client.channel).SetVariable(request)
    return answer.variable


async def remove(client: Client, name: str = "limit", **fields: Any) -> None:
    request = pb.DeleteVariableRequest(name=name, **fields)
    await VariableServiceStub(client.channel).DeleteVariable(request)


async def listed(client: Client, **fields: Any) -> list[str]:
    stub = VariableServiceStub(client.channel)
    answer = await stub.ListVariables(pb.ListVariablesRequest(**fields))
    return [each.name for each in answer.variables]


async def reader(client: Client, variable: str = "limit") -> workflow_pb2.WorkflowDefinition:
    """A graph whose one node reads a variable."""
    node = await client.node("def increment(x: int) -> int: return x + 1")
    return workflow_pb2.WorkflowDefinition(
        nodes=[
            place("a", on=node, variables=[{"input": "x", "variable": variable}]),
        ]
    )


async def create(
    client: Client, definition: workflow_pb2.WorkflowDefinition, *, activate: bool = False
) -> workflow_pb2.Workflow:
    request = workflow_rpc.CreateWorkflowRequest(name="w", definition=definition, activate=activate)
    made: workflow_pb2.Workflow = (await client.workflows.CreateWorkflow(request)).workflow
    return made


async def test_a_variable_is_set_changed_read_listed_and_removed(
    client: Client, user: factories.User
) -> None:
    value = '{"b": 1.50, "a": 1e3}'
    of = '{"t":"dict","key":{"t":"str"},"value":{"t":"float"}}'
    made = await put(client, "rates", value, of, description="for people")
    assert (made.value_json, made.type_expression) == (value, "dict[str, float]")
    assert (made.created_by, made.updated_by) == (str(user.id), str(user.id))
    changed = await put(client, "rates", '{"a": 2.0}', "", etag=made.etag)
    assert (changed.type_json, changed.value_json) == (made.type_json, '{"a": 2.0}')
    assert changed.etag != made.etag
    stub = VariableServiceStub(client.channel)
    assert (await stub.GetVariable(pb.GetVariableRequest(name="rates"))).variable == changed
    await put(client)
    assert await listed(client) == ["limit", "rates"]
    assert await listed(client, page_size=1) == ["limit"]
    await remove(client, "rates", etag=changed.etag)
    said = await refused(remove(client, "rates"))
    assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "VARIABLE_NOT_FOUND")


@pytest.mark.parametrize(
    ("name", "value", "of", "field"),
    [
        ("limit", '"3"', INT, "value_json"),
        ("limit", "NaN", INT, "value_json"),
        ("limit", "{", INT, "value_json"),
        ("limit", "", INT, "value_json"),
        ("limit", json.dumps("x" * 65_535), STR, "value_json"),
        ("limit", "3", "", "type_json"),
        ("limit", "3", '{"t":"nothing"}', "type_json"),
        ("limit", "3", '{"t":"named","name":"numpy.ndarray"}', "type_json"),
        ("limit", "3", json.dumps({"t": "tuple", "items": [{"t": "int"}] * 101}), "type_json"),
        ("1st", "3", INT, "name"),
        ("a-b", "3", INT, "name"),
        ("a" * 64, "3", INT, "name"),
    ],
)
async def test_what_is_no_variable_is_refused_at_its_field(
    client: Client, name: str, value: str, of: str, field: str
) -> None:
    """B57, B59: a value is of its declared type, or it is not kept."""
    said = await refused(put(client, name, value, of))
    assert said.code == INVALID
    assert said.violations[0][0] == field
    assert await listed(client) == []


async def test_what_is_only_validated_is_not_kept(client: Client) -> None:
    checked = await put(client, validate_only=True)
    assert (checked.value_json, checked.etag) == ("3", "")
    assert await listed(client) == []


async def test_of_two_changes_with_the_same_etag_one_is_aborted(client: Client) -> None:
    """One of two wins; the other is told."""
    made = await put(client)
    outcomes = await asyncio.gather(
        *(put(client, value=value, etag=made.etag) for value in "45"), return_exceptions=True
    )
    lost = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert [each.code() for each in lost] == [grpc.StatusCode.ABORTED]
    await remove(client)
    assert (await refused(put(client, etag=made.etag))).reason == "ETAG_MISMATCH"


async def test_a_repeated_call_answers_as_the_first_did(client: Client) -> None:
    """F26."""
    request_id = str(uuid.uuid4())
    made = await put(client, request_id=request_id)
    await put(client, value="4")
    assert await put(client, request_id=request_id) == made
    assert (await refused(put(client, value="5", request_id=request_id))).reason == (
        "REQUEST_ID_REUSED"
    )


async def test_a_tenant_has_at_most_a_thousand_variables(
    client: Client, user: factories.User, sql: psycopg.Connection
) -> None:
    sql.execute(
        "INSERT INTO variables (name, type, value, tenant_id, created_by, updated_by)"
        " SELECT 'v' || n, '{\"t\":\"int\"}', '1', %s, %s, %s FROM generate_series(1, 999) n",
        (user.id,) * 3,
    )
    outcomes = await asyncio.gather(
        *(put(client, f"last{n}") for n in range(3)), return_exceptions=True
    )
    lost = [each for each in outcomes if isinstance(each, grpc.aio.AioRpcError)]
    assert [each.code() for each in lost] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2
    await put(client, "v1", "2")


async def test_a_graph_that_reads_a_variable_is_checked_by_its_type(client: Client) -> None:
    """B52."""
    definition = await reader(client)
    check = workflow_rpc.CheckWorkflowRequest(definition=definition)
    found = await client.workflows.CheckWorkflow(check)
    assert [(each.place, each.code) for each in found.findings] == [
        ("nodes[0].variables[0].variable", "VARIABLE_NOT_FOUND")
    ]
    assert (found.storable, found.activatable) == (True, False)
    await put(client)
    assert (await client.workflows.CheckWorkflow(check)).activatable
    await put(client, value='"3"', of=STR)
    said = await refused(create(client, definition))
    assert said.code == INVALID
    assert said.violations == [("nodes[0].variables[0].variable", "TYPE_REFUTED")]
    await put(client, value="true", of='{"t":"bool"}')
    said = await refused(create(client, definition))
    assert said.violations == [("nodes[0].variables[0].variable", "TYPE_REFUTED")]


async def test_an_input_with_a_variable_has_no_other_writer(client: Client) -> None:
    """B51."""
    await put(client)
    definition = await reader(client)
    definition.nodes[0].literals.add(input="x", value_json="1")
    definition.nodes[0].variables.add(input="y", variable="limit")
    said = await refused(create(client, definition))
    assert set(said.violations) == {
        ("nodes[0].variables[0]", "TWO_WRITERS"),
        ("nodes[0].variables[1].input", "UNKNOWN_INPUT"),
    }


async def test_a_workflows_own_variable_stands_before_the_tenants(client: Client) -> None:
    await put(client, value='"3"', of=STR)
    definition = await reader(client, "other")
    draft = await create(client, definition)
    await put(client, workflow_id=draft.id)
    await put(client, "other", workflow_id=draft.id)
    assert await listed(client) == ["limit"]
    assert await listed(client, workflow_id=draft.id) == ["other", "limit"]
    definition.nodes[0].variables[0].variable = "limit"
    check = workflow_rpc.CheckWorkflowRequest(definition=definition)
    assert not (await client.workflows.CheckWorkflow(check)).storable
    check.workflow_id = draft.id
    assert (await client.workflows.CheckWorkflow(check)).activatable
    change = workflow_rpc.UpdateWorkflowRequest(
        workflow_id=draft.id, definition=definition, update_mask=FieldMask(paths=["definition"])
    )
    await client.workflows.UpdateWorkflow(change)
    activate = workflow_rpc.ActivateWorkflowRequest(workflow_id=draft.id)
    assert (await client.workflows.ActivateWorkflow(activate)).workflow.active
    read = workflow_rpc.GetWorkflowRequest(workflow_id=draft.id)
    stored = (await client.workflows.GetWorkflow(read)).workflow.definition
    assert [(each.input, each.variable) for each in stored.nodes[0].variables] == [("x", "limit")]


async def test_a_variable_that_an_active_workflow_reads_stays(client: Client) -> None:
    await put(client)
    definition = await reader(client)
    made = await create(client, definition, activate=True)
    said = await refused(remove(client))
    assert (said.code, said.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VARIABLE_IN_USE")
    assert said.violations == [("name", "VARIABLE_IN_USE")]
    assert made.id in said.text
    # A newer version reads it no longer, but an alias still stands for the one that does.
    alias = alias_rpc.SetWorkflowAliasRequest(workflow_id=made.id, alias="prod", version=1)
    await WorkflowAliasServiceStub(client.channel).SetWorkflowAlias(alias)
    del definition.nodes[0].variables[:]
    definition.nodes[0].literals.add(input="x", value_json="1")
    change = workflow_rpc.UpdateWorkflowRequest(
        workflow_id=made.id, definition=definition, update_mask=FieldMask(paths=["definition"])
    )
    await client.workflows.UpdateWorkflow(change)
    assert (await refused(remove(client))).reason == "VARIABLE_IN_USE"
    await WorkflowAliasServiceStub(client.channel).DeleteWorkflowAlias(
        alias_rpc.DeleteWorkflowAliasRequest(workflow_id=made.id, alias="prod")
    )
    await remove(client)


async def test_a_workflow_with_a_variable_of_its_own_does_not_hold_the_tenants(
    client: Client,
) -> None:
    await put(client)
    made = await create(client, await reader(client), activate=True)
    await put(client, workflow_id=made.id)
    await remove(client)
    assert (await refused(remove(client, workflow_id=made.id))).reason == "VARIABLE_IN_USE"
    deactivate = workflow_rpc.DeactivateWorkflowRequest(workflow_id=made.id)
    await client.workflows.DeactivateWorkflow(deactivate)
    await remove(client, workflow_id=made.id)


async def test_nobody_reads_or_changes_another_tenants_variables(
    client: Client, registry: Registry, sql: psycopg.Connection
) -> None:
    """X14."""
    await put(client)
    made = await create(client, await reader(client))
    await put(client, "own", workflow_id=made.id)
    stranger = registry.client(factories.user(sql).token)
    assert await listed(stranger) == []
    await put(stranger, value="9")
    stub = VariableServiceStub(client.channel)
    mine = await stub.GetVariable(pb.GetVariableRequest(name="limit"))
    assert mine.variable.value_json == "3"
    assert (await refused(listed(stranger, workflow_id=made.id))).reason == "WORKFLOW_NOT_FOUND"
    await change_rows(sql, "UPDATE workflows SET is_template = true WHERE id = %s", (made.id,))
    assert await listed(stranger, workflow_id=made.id) == []
    for call in (put(stranger, workflow_id=made.id), remove(stranger, workflow_id=made.id)):
        assert (await refused(call)).reason == "NOT_YOURS"
