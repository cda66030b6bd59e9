"""ExecutionService: starts, shows and steers runs of workflows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from qflow.orchestrator.v1 import execution_pb2, execution_service_pb2_grpc
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from services.kit.caller import current_caller
from services.kit.rpc import codec as kit
from services.orchestrator.engine.engine import Engine
from services.orchestrator.rpc import codec
from services.orchestrator.usecases.cancel import cancel_execution
from services.orchestrator.usecases.read import Reader
from services.orchestrator.usecases.start import Starter
from services.orchestrator.usecases.watch import Step, Watcher

Context = grpc.aio.ServicerContext[Any, Any]

_WAIT_DEFAULT_S: Final = 30.0
_BASIC: Final = execution_pb2.EXECUTION_VIEW_BASIC
_FULL: Final = execution_pb2.EXECUTION_VIEW_FULL


class ExecutionServicer(execution_service_pb2_grpc.ExecutionServiceServicer):
    """Decodes, calls one use case, encodes."""

    def __init__(self, *, starter: Starter, reader: Reader, engine: Engine) -> None:
        self._starter = starter
        self._reader = reader
        self._engine = engine
        self._watcher = Watcher(reader, engine)

    async def StartExecution(
        self, request: pb.StartExecutionRequest, context: Context
    ) -> pb.StartExecutionResponse:
        """Start a run; an OK means that it is committed."""
        execution, plan = await self._starter.start(
            current_caller(),
            kit.uuid_from(request.workflow_id, field="workflow_id"),
            request.workflow_version,
            request.input_json,
            kit.uuid_or_none(request.request_id, field="request_id"),
        )
        return pb.StartExecutionResponse(execution=codec.execution_to_pb(execution, plan))

    async def GetExecution(
        self, request: pb.GetExecutionRequest, context: Context
    ) -> pb.GetExecutionResponse:
        """Give one run."""
        execution_id = kit.uuid_from(request.execution_id, field="execution_id")
        execution, plan = await self._reader.get(
            current_caller(), execution_id, full=request.view != _BASIC
        )
        return pb.GetExecutionResponse(execution=codec.execution_to_pb(execution, plan))

    async def ListExecutions(
        self, request: pb.ListExecutionsRequest, context: Context
    ) -> pb.ListExecutionsResponse:
        """Give a page of runs."""
        found, token = await self._reader.list_page(
            current_caller(),
            size=request.page_size,
            token=request.page_token,
            workflow_id=kit.uuid_or_none(request.workflow_id, field="workflow_id"),
            statuses=[codec.RUN_STATUS_BY_NUMBER[each] for each in request.statuses],
        )
        return pb.ListExecutionsResponse(
            executions=[codec.execution_to_pb(*each) for each in found], next_page_token=token
        )

    async def ListNodeExecutions(
        self, request: pb.ListNodeExecutionsRequest, context: Context
    ) -> pb.ListNodeExecutionsResponse:
        """Give a page of a run's nodes."""
        execution_id = kit.uuid_from(request.execution_id, field="execution_id")
        nodes, token = await self._reader.list_nodes(
            current_caller(),
            execution_id,
            size=request.page_size,
            token=request.page_token,
            full=request.view == _FULL,
        )
        return pb.ListNodeExecutionsResponse(
            node_executions=[codec.node_to_pb(str(execution_id), node) for node in nodes],
            next_page_token=token,
        )

    async def WaitExecution(
        self, request: pb.WaitExecutionRequest, context: Context
    ) -> pb.WaitExecutionResponse:
        """Give a run once it is over, or when the time is up."""
        timeout_s = _WAIT_DEFAULT_S
        if request.HasField("timeout"):
            timeout_s = kit.milliseconds_from(request.timeout, field="timeout") / 1000
        execution, plan = await self._watcher.wait(
            current_caller(),
            kit.uuid_from(request.execution_id, field="execution_id"),
            timeout_s=timeout_s,
            full=request.view != _BASIC,
        )
        return pb.WaitExecutionResponse(
            execution=codec.execution_to_pb(execution, plan), done=execution.final
        )

    async def WatchExecution(
        self, request: pb.WatchExecutionRequest, context: Context
    ) -> AsyncIterator[pb.WatchExecutionResponse]:
        """Stream what stands, then every change to the end."""
        execution_id = kit.uuid_from(request.execution_id, field="execution_id")
        steps = self._watcher.watch(
            current_caller(), execution_id, after_revision=request.after_revision
        )
        async for step in steps:
            yield _step_to_pb(str(execution_id), step)

    async def CancelExecution(
        self, request: pb.CancelExecutionRequest, context: Context
    ) -> pb.CancelExecutionResponse:
        """Ask a run to stop."""
        execution, plan = await cancel_execution(
            self._reader,
            self._engine,
            current_caller(),
            kit.uuid_from(request.execution_id, field="execution_id"),
        )
        return pb.CancelExecutionResponse(execution=codec.execution_to_pb(execution, plan))


def _step_to_pb(execution_id: str, step: Step) -> pb.WatchExecutionResponse:
    message = pb.WatchExecutionResponse(revision=step.revision)
    if step.kind == "bookmark":
        message.bookmark.SetInParent()
    elif step.kind == "progress":
        message.progress.SetInParent()
    else:
        part = message.snapshot if step.kind == "snapshot" else message.delta
        part.SetInParent()
        if step.execution is not None and step.plan is not None:
            part.execution.CopyFrom(codec.execution_to_pb(step.execution, step.plan))
        part.node_executions.extend(codec.node_to_pb(execution_id, node) for node in step.nodes)
    return message
