"""What the tests of control calls share: stubs of all services, short ways to start and wait."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.rerun_service_pb2_grpc import RerunServiceStub
from qflow.orchestrator.v1.run_service_pb2_grpc import RunServiceStub

from services.kit.rpc.errors import DOMAIN
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra

if TYPE_CHECKING:
    from qflow.orchestrator.v1.rerun_service_pb2_grpc import RerunServiceAsyncStub
    from qflow.orchestrator.v1.run_service_pb2_grpc import RunServiceAsyncStub

PENDING = execution_pb2.EXECUTION_STATUS_PENDING
RUNNING = execution_pb2.EXECUTION_STATUS_RUNNING
COMPLETED = execution_pb2.EXECUTION_STATUS_COMPLETED
FAILED = execution_pb2.EXECUTION_STATUS_FAILED
CANCELLED = execution_pb2.EXECUTION_STATUS_CANCELLED


def runs(orchestra: Orchestra) -> RunServiceAsyncStub:
    return RunServiceStub(orchestra.channel(orchestra.owner.token))


def reruns(orchestra: Orchestra) -> RerunServiceAsyncStub:
    return RerunServiceStub(orchestra.channel(orchestra.owner.token))


async def start(
    orchestra: Orchestra, workflow_id: object, input_json: str = '{"x":1}', **more: Any
) -> execution_pb2.Execution:
    request = pb.StartExecutionRequest(workflow_id=str(workflow_id), input_json=input_json, **more)
    return (await orchestra.stub.StartExecution(request)).execution


async def ended(orchestra: Orchestra, execution_id: str) -> execution_pb2.Execution:
    answer = await orchestra.stub.WaitExecution(pb.WaitExecutionRequest(execution_id=execution_id))
    assert answer.done
    return answer.execution


async def get(orchestra: Orchestra, execution_id: str) -> execution_pb2.Execution:
    request = pb.GetExecutionRequest(execution_id=execution_id)
    return (await orchestra.stub.GetExecution(request)).execution


async def cancel(orchestra: Orchestra, execution_id: str) -> execution_pb2.Execution:
    request = pb.CancelExecutionRequest(execution_id=execution_id)
    return (await orchestra.stub.CancelExecution(request)).execution


async def refusal(call: Awaitable[object]) -> tuple[str, str, dict[str, str]]:
    """The code, reason and facts with which a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return told(refused.value)


def told(error: grpc.aio.AioRpcError) -> tuple[str, str, dict[str, str]]:
    from google.rpc import error_details_pb2, status_pb2

    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(cast("bytes", value))
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            assert DOMAIN == info.domain
    return error.code().name, info.reason, dict(info.metadata)


def chain(orchestra: Orchestra, *places: str, **more: Any) -> str:
    """A workflow of one node that adds one, its places in a row; the last one's is the output."""
    node = factories.node(orchestra.sql, orchestra.owner)
    sources = ["", *places]
    edges = [
        (source, "result" if source else "x", target, "x")
        for source, target in zip(sources, places, strict=False)
    ]
    return str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes=dict.fromkeys(places, node),
            edges=edges,
            outputs=[("out", places[-1])],
            **more,
        )
    )
