"""RunService: starts a run, waits for it and returns its output in one call."""

from __future__ import annotations

from typing import Any, Final

import grpc
from qflow.orchestrator.v1 import execution_pb2, run_service_pb2_grpc
from qflow.orchestrator.v1 import run_service_pb2 as pb

from services.kit.caller import current_caller
from services.kit.rpc import codec as kit
from services.orchestrator.domain.options import RunOptions, Wishes
from services.orchestrator.rpc import codec, starting
from services.orchestrator.usecases.launch import Started
from services.orchestrator.usecases.run_node import run_node
from services.orchestrator.usecases.start import Starter
from services.orchestrator.usecases.watch import Watcher

Context = grpc.aio.ServicerContext[Any, Any]

_BASIC: Final = execution_pb2.EXECUTION_VIEW_BASIC


class RunServicer(run_service_pb2_grpc.RunServiceServicer):
    """Decodes, calls a use case, waits, encodes."""

    def __init__(self, *, starter: Starter, watcher: Watcher) -> None:
        self._starter = starter
        self._watcher = watcher

    async def ExecuteWorkflow(
        self, request: pb.ExecuteWorkflowRequest, context: Context
    ) -> pb.ExecuteWorkflowResponse:
        """Run a workflow, wait for its end and return its output."""
        started = await starting.start(self._starter, request.start)
        if request.start.validate_only:
            shown = starting.execution(started, validate_only=True)
            return pb.ExecuteWorkflowResponse(execution=shown, existing=started.existing)
        answer = pb.ExecuteWorkflowResponse(existing=started.existing)
        answer.done = await self._put_ended(answer.execution, started, request)
        return answer

    async def RunNode(self, request: pb.RunNodeRequest, context: Context) -> pb.RunNodeResponse:
        """Run a single node, wait for its end and return its output."""
        options = RunOptions(labels=dict(request.labels), priority=request.priority)
        started = await run_node(
            self._watcher.reader,
            self._watcher.engine,
            current_caller(),
            kit.uuid_from(request.node_id, field="node_id"),
            request.node_version,
            request.input_json,
            kit.uuid_or_none(request.request_id, field="request_id"),
            wishes=Wishes(options=options, timeout_ms=starting.timeout_ms(request)),
        )
        answer = pb.RunNodeResponse(existing=started.existing)
        answer.done = await self._put_ended(answer.execution, started, request)
        return answer

    async def _put_ended(
        self, shown: execution_pb2.Execution, started: Started, request: Any
    ) -> bool:
        """Wait for a run's end and encode the run; returns whether it has ended."""
        execution, plan = await self._watcher.wait(
            current_caller(),
            started.run.id,
            timeout_s=starting.wait_s(request),
            full=request.view != _BASIC,
        )
        codec.put_execution(shown, execution, plan)
        return execution.final
