"""Nodes that are ended by hand: a given output is held against the node's types, whatever it is."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from qflow.orchestrator.v1 import control_service_pb2 as control
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.control_service_pb2_grpc import ControlServiceStub

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_floating import details

INT = {"t": "int"}
BRANCHES = [{"name": "big", "condition": "true"}]
BUILT_IN: dict[str, dict[str, Any]] = {
    "wait": {"kind": "signal", "signal": {"name": "go"}},
    "nap": {"kind": "sleep", "parameters": {"seconds": "3600"}},
    "ask": {"kind": "approval", "approval": {"name": "ok", "type": INT}},
    "pick": {"kind": "choice", "choice": {"branches": BRANCHES, "default": "small"}},
    "word": {"kind": "signal", "signal": {"name": "word", "type": INT}},
}
ASKED = {"approved": True, "comment": "", "reply": 4}


def order(source: str, target: str, **what: Any) -> dict[str, Any]:
    return {"source": source, "target": target, "kind": "order", **what}


async def test_nodes_of_all_kinds_are_ended_with_outputs_of_their_types_alone(
    orchestra: Orchestra,
) -> None:
    """What is refused changes nothing: the run goes on, and ends by what is right."""
    one = factories.node(orchestra.sql, orchestra.owner)
    inner = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": one},
        edges=[("", "x", "a", "x")],
        outputs=[("r", "a")],
    )
    sub = {"kind": "workflow", "node_id": str(inner), "version": 1}
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={**BUILT_IN, "sub": sub, "b": one, "s": one},
        edges=[("", "x", "sub", "x"), ("", "x", "b", "x"), ("", "x", "s", "x")],
        links=[
            order("wait", "pick"),
            order("wait", "sub"),
            order("pick", "b", kind="branch", branch="big"),
            order("pick", "s", kind="branch", branch="small"),
        ],
        outputs=[("nap", "nap"), ("word", "word")],
    )
    wrong: dict[str, list[tuple[dict[str, Any], str]]] = {
        "nap": [({"result": [1]}, "result")],
        "ask": [
            (ASKED | {"approved": "yes"}, "approved"),
            (ASKED | {"approver": "the boss"}, "approver"),
        ],
        "pick": [({"branch": each}, "branch") for each in ({"x": 1}, ["x"], "nope", 5, "")],
        "sub": [({"r": "not an int"}, "r")],
        "word": [({"result": "q"}, "result")],
    }
    right: dict[str, dict[str, Any]] = {
        "nap": {"result": "2026-01-01T00:00:00+00:00"},
        "ask": ASKED,
        "pick": {"branch": "small"},
        "sub": {"r": 3},
        "word": {"result": 5},
        "s": {"result": 6},
        "wait": {"result": None},
    }
    async with orchestra.running():
        started = await orchestra.stub.StartExecution(
            pb.StartExecutionRequest(workflow_id=str(workflow), input_json='{"x":1}')
        )
        execution_id = started.execution.id
        stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))

        async def skip(node: str, values: dict[str, Any]) -> None:
            text = json.dumps(values)
            at = {"execution_id": execution_id, "node": node}
            await stub.SkipNode(control.SkipNodeRequest(**at, output_json=text))

        for node, faults in wrong.items():
            for values, field in faults:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await skip(node, values)
                assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()
                assert [f"output_json.{field}"] == details(refused.value)[1]
        for node, values in right.items():
            await skip(node, values)
        over = await orchestra.stub.WaitExecution(
            pb.WaitExecutionRequest(execution_id=execution_id)
        )
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == over.execution.status
    assert {"nap": right["nap"]["result"], "word": 5} == json.loads(over.execution.output_json)
    [(said,)] = orchestra.rows("SELECT output_data FROM node_executions WHERE node_id = 'ask'")
    assert ASKED | {"approver": str(orchestra.owner.id)} == said
    skipped = orchestra.rows("SELECT node_id FROM node_executions WHERE status = 'skipped'")
    assert [("b",)] == skipped


async def test_a_map_that_has_begun_is_held_up_by_pausing_its_run(orchestra: Orchestra) -> None:
    """What is refused says what to do, of the map and of its elements."""
    one = factories.node(orchestra.sql, orchestra.owner)
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"m": one},
        edges=[],
        outputs=[("m", "m")],
        node_settings={
            "m": {"map": {"input": "x", "max_in_flight": 1}, "parameters": {"x": "[1,2]"}}
        },
    )
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            started = await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=str(workflow), input_json='{"x":1}')
            )
            await runner.until(lambda: len(runner.assigns) == 1)
            stub = ControlServiceStub(orchestra.channel(orchestra.owner.token))
            told = {}
            for node in ("m", "m[0]", "m[1]", "z[1]"):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.PauseNode(
                        control.PauseNodeRequest(execution_id=started.execution.id, node=node)
                    )
                told[node] = (details(refused.value)[0], refused.value.details() or "")
    assert ["NODE_STARTED", *["NODE_NOT_FOUND"] * 3] == [reason for reason, _ in told.values()]
    assert "PauseExecution" in told["m"][1]
    assert ["part of m" in told[node][1] for node in ("m[0]", "m[1]", "z[1]")] == [
        True,
        True,
        False,
    ]
