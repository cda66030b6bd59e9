"""Settings that the orchestrator enforces."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_floating import details


def single(orchestra: Orchestra, *, python: str = "3.11", **settings: Any) -> str:
    node = factories.node(orchestra.sql, orchestra.owner, python=python)
    return str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"a": node},
            edges=[("", "x", "a", "x")],
            outputs=[("out", "a")],
            node_settings={"a": settings},
        )
    )


@pytest.mark.parametrize("max_retries", [0, 2])
async def test_no_more_attempts_follow_than_the_policy_says(
    orchestra: Orchestra, max_retries: int
) -> None:
    retry = {"max_retries": max_retries, "initial_delay_ms": 1, "factor": 1.0}
    workflow_id = single(orchestra, retry={**retry, "max_delay_ms": 1, "jitter": 0.0})

    def never(_define: Any, _assign: Any, _inputs: dict[str, Any]) -> object:
        raise Fail

    async with orchestra.running(), (await orchestra.runner(never)).attached():
        started = await orchestra.stub.StartExecution(
            pb.StartExecutionRequest(workflow_id=workflow_id, input_json='{"x":1}')
        )
        done = await orchestra.stub.WaitExecution(
            pb.WaitExecutionRequest(execution_id=started.execution.id)
        )
    assert execution_pb2.EXECUTION_STATUS_FAILED == done.execution.status
    assert [(max_retries,)] == orchestra.rows("SELECT retry_count FROM node_executions")


async def test_a_python_that_no_runner_has_stops_the_start(orchestra: Orchestra) -> None:
    workflow_id = single(orchestra, python="3.13")

    def one(_define: Any, _assign: Any, _inputs: dict[str, Any]) -> object:
        return 1

    async with orchestra.running(), (await orchestra.runner(one)).attached():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await orchestra.stub.StartExecution(
                pb.StartExecutionRequest(workflow_id=workflow_id, input_json='{"x":1}')
            )
    assert grpc.StatusCode.FAILED_PRECONDITION == refused.value.code()
    assert "PYTHON_MISSING" == details(refused.value)[0]
    assert [(0,)] == orchestra.rows("SELECT count(*) FROM workflow_executions")
