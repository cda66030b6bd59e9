"""Variables at a start: a run takes them as they stand, and keeps them whatever becomes of them."""

from __future__ import annotations

import uuid
from typing import Any

import grpc
import pytest
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_floating import details, update


def put(
    orchestra: Orchestra,
    value: str,
    *,
    name: str = "by",
    workflow_id: str | None = None,
    owner: factories.User | None = None,
) -> None:
    """Set an integer variable, as the registry does."""
    key = (owner or orchestra.owner).id
    changed = orchestra.sql.execute(
        "UPDATE variables SET value = %s, revision = revision + 1"
        " WHERE tenant_id = %s AND name = %s AND workflow_id IS NOT DISTINCT FROM %s",
        (value, key, name, workflow_id),
    )
    if not changed.rowcount:
        orchestra.sql.execute(
            "INSERT INTO variables (workflow_id, name, type, value, tenant_id, created_by,"
            ' updated_by) VALUES (%s, %s, \'{"t":"int"}\', %s, %s, %s, %s)',
            (workflow_id, name, value, key, key, key),
        )


def reader(orchestra: Orchestra, **settings: Any) -> str:
    """A workflow of one node: x is the run's input, y the variable `by`."""
    node = factories.node(orchestra.sql, orchestra.owner, inputs=("x", "y"))
    return str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"a": node},
            edges=[("", "x", "a", "x")],
            outputs=[("out", "a")],
            settings={"variables": ["by"]},
            node_settings={"a": {"variables": {"y": "by"}, **settings}},
        )
    )


def seen(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
    return inputs["y"]


async def start(orchestra: Orchestra, workflow_id: str, **fields: Any) -> str:
    request = pb.StartExecutionRequest(workflow_id=workflow_id, input_json='{"x":1}', **fields)
    return (await orchestra.stub.StartExecution(request)).execution.id


async def output(orchestra: Orchestra, execution_id: str) -> str:
    waited = await orchestra.stub.WaitExecution(pb.WaitExecutionRequest(execution_id=execution_id))
    assert waited.done
    return waited.execution.output_json


async def refusal(orchestra: Orchestra, workflow_id: str) -> tuple[str, list[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await start(orchestra, workflow_id)
    assert grpc.StatusCode.FAILED_PRECONDITION == refused.value.code()
    return details(refused.value)


async def test_each_start_takes_the_value_that_stands_then(orchestra: Orchestra) -> None:
    workflow_id = reader(orchestra)
    put(orchestra, "10")
    async with orchestra.running(), (await orchestra.runner(seen)).attached():
        assert '{"out":10}' == await output(orchestra, await start(orchestra, workflow_id))
        put(orchestra, "20")
        assert '{"out":20}' == await output(orchestra, await start(orchestra, workflow_id))
        put(orchestra, "30", workflow_id=workflow_id)
        assert '{"out":30}' == await output(orchestra, await start(orchestra, workflow_id))
        await orchestra.change("DELETE FROM variables WHERE workflow_id IS NOT NULL")
        assert '{"out":20}' == await output(orchestra, await start(orchestra, workflow_id))
    # Two runs that took the same share what they took.
    assert [("10",), ("20",), ("30",)] == orchestra.rows(
        "SELECT variables ->> 'by' FROM execution_pins ORDER BY 1"
    )


async def test_a_run_that_is_loaded_again_has_the_value_of_its_start(
    orchestra: Orchestra,
) -> None:
    """Nothing of the run is in memory any more when its variable has changed and gone."""
    workflow_id = reader(orchestra)
    put(orchestra, "10")
    async with orchestra.running():
        first = await start(orchestra, workflow_id)
        put(orchestra, "20")
        second = await start(orchestra, workflow_id)
    await orchestra.change("DELETE FROM variables")
    async with orchestra.running(), (await orchestra.runner(seen)).attached():
        assert '{"out":10}' == await output(orchestra, first)
        assert '{"out":20}' == await output(orchestra, second)


async def test_a_retry_has_the_value_of_the_first_attempt(orchestra: Orchestra) -> None:
    retry = {"max_retries": 3, "initial_delay_ms": 20, "factor": 2.0, "max_delay_ms": 60_000}
    workflow_id = reader(orchestra, retry={**retry, "jitter": 0.1})
    put(orchestra, "10")
    values = []

    def flaky(_define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        values.append(inputs["y"])
        put(orchestra, str(20 + assign.attempt))
        if assign.attempt < 3:
            raise Fail
        return inputs["y"]

    async with orchestra.running(), (await orchestra.runner(flaky)).attached():
        execution_id = await start(orchestra, workflow_id)
        assert '{"out":10}' == await output(orchestra, execution_id)
    assert [10, 10, 10] == values


async def test_a_missing_variable_is_named_where_it_is_read(orchestra: Orchestra) -> None:
    workflow_id = reader(orchestra)
    async with orchestra.running():
        assert ("VARIABLE_MISSING", ["nodes[0].variables[0]"]) == (
            await refusal(orchestra, workflow_id)
        )
        put(orchestra, "10")
        await start(orchestra, workflow_id)
        await orchestra.change("DELETE FROM variables")
        assert "VARIABLE_MISSING" == (await refusal(orchestra, workflow_id))[0]


async def test_a_value_that_fits_its_input_no_more_is_refused(orchestra: Orchestra) -> None:
    """Its type was changed since the workflow was proven, or the node's was."""
    workflow_id = reader(orchestra)
    put(orchestra, '"ten"')
    async with orchestra.running():
        assert ("NODE_INCOMPATIBLE", ["nodes[0].variables[0]"]) == (
            await refusal(orchestra, workflow_id)
        )
        assert [(0,)] == orchestra.rows("SELECT count(*) FROM execution_pins")
        put(orchestra, "10")
        await start(orchestra, workflow_id)


async def test_a_floating_node_that_takes_another_type_is_held_against_the_value(
    orchestra: Orchestra,
) -> None:
    node = factories.node(orchestra.sql, orchestra.owner)
    workflow_id = str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"a": node},
            edges=[],
            inputs=(),
            outputs=[("out", "a")],
            settings={"variables": ["by"]},
            node_settings={"a": {"version": 0, "variables": {"x": "by"}}},
        )
    )
    put(orchestra, "10")
    request = pb.StartExecutionRequest(workflow_id=workflow_id)
    async with orchestra.running():
        await orchestra.stub.StartExecution(request)
        update(orchestra, node, of="str")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await orchestra.stub.StartExecution(request)
    assert ("NODE_INCOMPATIBLE", ["nodes[0].variables[0]"]) == details(refused.value)


async def test_whoever_runs_a_template_of_others_takes_their_own_variables(
    orchestra: Orchestra,
) -> None:
    """X14: a plain value is still its tenant's alone."""
    workflow_id = reader(orchestra)
    await orchestra.change("UPDATE workflows SET is_template = true")
    await orchestra.change("UPDATE python_nodes SET is_public = true")
    put(orchestra, "10")
    put(orchestra, "11", workflow_id=workflow_id)
    other = factories.user(orchestra.sql)
    request = pb.StartExecutionRequest(workflow_id=workflow_id, input_json='{"x":1}')
    async with orchestra.running():
        stub = type(orchestra.stub)(orchestra.channel(other.token))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.StartExecution(request)
        assert "VARIABLE_MISSING" == details(refused.value)[0]
        put(orchestra, "99", owner=other)
        await stub.StartExecution(request)
    assert [("99",)] == orchestra.rows("SELECT variables ->> 'by' FROM execution_pins")


async def test_more_than_a_run_carries_is_refused(orchestra: Orchestra) -> None:
    names = [f"v{n}" for n in range(17)]
    node = factories.node(orchestra.sql, orchestra.owner, inputs=names)
    workflow_id = str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"a": node},
            edges=[],
            inputs=(),
            outputs=[("out", "a")],
            settings={"variables": names},
            node_settings={"a": {"variables": {name: name for name in names}}},
        )
    )
    for name in names:
        put(orchestra, f'"{"x" * 65_000}"', name=name)
    async with orchestra.running():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await orchestra.stub.StartExecution(pb.StartExecutionRequest(workflow_id=workflow_id))
    assert "VARIABLES_TOO_LARGE" == details(refused.value)[0]


async def test_a_repeated_request_is_the_same_run_whatever_the_variable_is(
    orchestra: Orchestra,
) -> None:
    """I12."""
    workflow_id = reader(orchestra)
    put(orchestra, "10")
    request_id = str(uuid.uuid4())
    async with orchestra.running():
        first = await start(orchestra, workflow_id, request_id=request_id)
        put(orchestra, "20")
        assert first == await start(orchestra, workflow_id, request_id=request_id)
        await orchestra.change("DELETE FROM variables")
        assert first == await start(orchestra, workflow_id, request_id=request_id)


async def test_parameters_run_by_their_defaults_and_not_without(orchestra: Orchestra) -> None:
    """B55: also for a version that is asked for by its number."""
    node = factories.node(orchestra.sql, orchestra.owner)
    declared = {"name": "by", "type": factories.INT, "description": ""}
    made = [
        str(
            factories.workflow(
                orchestra.sql,
                orchestra.owner,
                nodes={"a": node},
                edges=[],
                inputs=(),
                outputs=[("out", "a")],
                settings={"parameters": [{**declared, "default_json": default}]},
                node_settings={"a": {"template_parameters": {"x": "by"}}},
            )
        )
        for default in ("7", None)
    ]

    def given(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
        return inputs["x"]

    async with orchestra.running(), (await orchestra.runner(given)).attached():
        request = pb.StartExecutionRequest(workflow_id=made[0])
        started = await orchestra.stub.StartExecution(request)
        assert '{"out":7}' == await output(orchestra, started.execution.id)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=made[1], workflow_version=1)
            )
    assert grpc.StatusCode.FAILED_PRECONDITION == refused.value.code()
    assert ("PARAMETERS_MISSING", ["parameters[0]"]) == details(refused.value)
