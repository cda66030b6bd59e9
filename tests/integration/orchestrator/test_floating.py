"""Workflows whose places follow their nodes: what a change of the node does to the next start."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra


def floating_pair(orchestra: Orchestra) -> tuple[factories.Node, str]:
    """Make x → a → b, both following one node of integers each; a's node is given back."""
    first = factories.node(orchestra.sql, orchestra.owner)
    second = factories.node(orchestra.sql, orchestra.owner)
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": first, "b": second},
        edges=[("", "x", "a", "x"), ("a", "result", "b", "x")],
        outputs=[("out", "b")],
        node_settings={"a": {"version": 0}, "b": {"version": 0}},
    )
    return first, str(workflow_id)


async def rename_its_input(orchestra: Orchestra, workflow_id: str) -> None:
    """Give a workflow a version 2, which calls its input z."""
    orchestra.sql.execute(
        "INSERT INTO workflow_versions (workflow_id, version, name, nodes, connections, settings,"
        " input_types, output_types, python_version, created_by)"
        " SELECT workflow_id, 2, name, nodes,"
        "        jsonb_set(connections, '{0,source_output}', '\"z\"'), settings,"
        "        jsonb_set(input_types, '{0,name}', '\"z\"'), output_types, python_version,"
        "        created_by"
        "   FROM workflow_versions WHERE workflow_id = %s",
        (workflow_id,),
    )
    await orchestra.change("UPDATE workflows SET version = 2 WHERE id = %s", workflow_id)


def update(
    orchestra: Orchestra,
    node: factories.Node,
    *,
    inputs: Sequence[str] = ("x",),
    output: str = "result",
    of: str = "int",
) -> None:
    """Give a node a version 2, as UpdateNode would."""
    of_inputs = [
        {"name": name, "type": {"t": of}, "kind": "positional", "required": True}
        | {"default_json": None}
        for name in inputs
    ]
    of_outputs = [{"name": output, "type": {"t": "int"}}]
    made = uuid.uuid4()
    orchestra.sql.execute(
        "INSERT INTO python_node_versions (id, node_id, version, name, code, main_function,"
        " python_version, input_types, output_types, created_by)"
        " SELECT %s, node_id, 2, name, code, main_function, python_version, %s, %s, created_by"
        " FROM python_node_versions WHERE node_id = %s AND version = 1",
        (made, json.dumps(of_inputs), json.dumps(of_outputs), node.id),
    )
    orchestra.sql.execute("UPDATE python_nodes SET version = 2 WHERE id = %s", (node.id,))
    orchestra.sql.execute(
        "INSERT INTO node_version_locks (node_version_id, tenant_id, state)"
        " VALUES (%s, %s, 'none')",
        (made, orchestra.owner.id),
    )


def details(error: grpc.aio.AioRpcError) -> tuple[str, list[str]]:
    """Give the reason and the fields of a refusal."""
    status = rpc_status.from_call(cast("grpc.Call", error))
    assert status is not None
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        for message in (info, bad):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    return info.reason, [each.field for each in bad.field_violations]


async def test_an_output_that_vanished_is_refused_and_an_earlier_request_is_answered(
    orchestra: Orchestra,
) -> None:
    node, workflow_id = floating_pair(orchestra)
    request = pb.StartExecutionRequest(
        workflow_id=workflow_id, input_json='{"x":1}', request_id=str(uuid.uuid4())
    )
    async with orchestra.running():
        first = await orchestra.stub.StartExecution(request)
        update(orchestra, node, output="other")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=workflow_id, input_json='{"x":1}')
            )
        again = await orchestra.stub.StartExecution(request)
    assert grpc.StatusCode.FAILED_PRECONDITION == refused.value.code()
    assert ("NODE_INCOMPATIBLE", ["connections[1]"]) == details(refused.value)
    assert "a.result → b.x" in (refused.value.details() or "")
    assert first.execution.id == again.execution.id
    # Nothing was kept of the combination that does not work.
    assert [(1,)] == orchestra.rows("SELECT count(*) FROM execution_pins")


async def test_a_node_that_still_fits_is_followed(orchestra: Orchestra) -> None:
    node, workflow_id = floating_pair(orchestra)
    request = pb.StartExecutionRequest(workflow_id=workflow_id, input_json='{"x":1}')
    async with orchestra.running():
        await orchestra.stub.StartExecution(request)
        update(orchestra, node)
        await orchestra.stub.StartExecution(request)
    assert [(1,), (2,)] == orchestra.rows(
        "SELECT version.version FROM execution_pins AS pins"
        " JOIN python_node_versions AS version ON version.id = (pins.pins->>'a')::uuid"
        " ORDER BY 1"
    )


async def test_a_new_required_input_is_refused_also_after_a_restart(orchestra: Orchestra) -> None:
    node, workflow_id = floating_pair(orchestra)
    request = pb.StartExecutionRequest(workflow_id=workflow_id, input_json='{"x":1}')
    async with orchestra.running():
        await orchestra.stub.StartExecution(request)
    update(orchestra, node, inputs=("x", "y"))
    async with orchestra.running():
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await orchestra.stub.StartExecution(request)
            assert ("NODE_INCOMPATIBLE", ["nodes[0]"]) == details(refused.value)


async def test_a_repeated_request_is_answered_though_the_workflow_takes_other_inputs_now(
    orchestra: Orchestra,
) -> None:
    """I12: what the same request was answered is not asked of the workflow again."""
    _, workflow_id = floating_pair(orchestra)
    request = pb.StartExecutionRequest(
        workflow_id=workflow_id, input_json='{"x":1}', request_id=str(uuid.uuid4())
    )
    async with orchestra.running():
        first = await orchestra.stub.StartExecution(request)
    await rename_its_input(orchestra, workflow_id)
    async with orchestra.running():
        again = await orchestra.stub.StartExecution(request)
        request.request_id = str(uuid.uuid4())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await orchestra.stub.StartExecution(request)
    assert first.execution.id == again.execution.id
    assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()


async def test_inputs_are_checked_against_the_version_of_now(orchestra: Orchestra) -> None:
    """What a start has looked up is used by the next one, unless that does not fit it."""
    _, workflow_id = floating_pair(orchestra)

    def asked(name: str) -> pb.StartExecutionRequest:
        return pb.StartExecutionRequest(workflow_id=workflow_id, input_json=f'{{"{name}":1}}')

    async with orchestra.running():
        await orchestra.stub.StartExecution(asked("x"))
        await rename_its_input(orchestra, workflow_id)
        second = await orchestra.stub.StartExecution(asked("z"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await orchestra.stub.StartExecution(asked("x"))
    assert 2 == second.execution.workflow_version
    assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()


async def test_inputs_of_a_batch_are_checked_against_the_version_of_now(
    orchestra: Orchestra,
) -> None:
    _, workflow_id = floating_pair(orchestra)

    def asked(*names: str) -> pb.BatchStartExecutionsRequest:
        texts = [f'{{"{name}":1}}' for name in names]
        return pb.BatchStartExecutionsRequest(
            starts=[
                pb.StartExecutionRequest(workflow_id=workflow_id, input_json=each) for each in texts
            ]
        )

    async with orchestra.running():
        await orchestra.stub.BatchStartExecutions(asked("x"))
        await rename_its_input(orchestra, workflow_id)
        told = await orchestra.stub.BatchStartExecutions(asked("x", "z", "y", "z"))
    codes = [each.status.code for each in told.items]
    assert [3, 0, 3, 0] == codes, told


async def test_a_node_of_others_is_followed_only_while_it_is_public(orchestra: Orchestra) -> None:
    """X16: what turned private is gone for everybody else, at once."""
    other = factories.user(orchestra.sql)
    node = factories.node(orchestra.sql, other)
    await orchestra.change("UPDATE python_nodes SET is_public = true WHERE id = %s", node.id)
    workflow_id = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": node},
        edges=[("", "x", "a", "x")],
        outputs=[("out", "a")],
        node_settings={"a": {"version": 0}},
    )
    request = pb.StartExecutionRequest(workflow_id=str(workflow_id), input_json='{"x":1}')
    async with orchestra.running():
        await orchestra.stub.StartExecution(request)
        await orchestra.change("UPDATE python_nodes SET is_public = false WHERE id = %s", node.id)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await orchestra.stub.StartExecution(request)
    assert grpc.StatusCode.FAILED_PRECONDITION == refused.value.code()
    assert "NODE_MISSING" == details(refused.value)[0]
