"""ControlService: pauses, resumes and skips in open runs, and delivers signals and approvals."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import grpc
from qflow.orchestrator.v1 import control_service_pb2 as pb
from qflow.orchestrator.v1 import control_service_pb2_grpc

from services.kit.caller import current_caller
from services.kit.rpc import codec as kit
from services.kit.rpc.codec import timestamp
from services.orchestrator.domain.plan import Kind
from services.orchestrator.rpc import codec
from services.orchestrator.rpc.forwarding import to_owner
from services.orchestrator.storage.node_executions import NodeExecution
from services.orchestrator.usecases.controls import Controls
from services.orchestrator.usecases.forward import Router
from services.orchestrator.usecases.signals import Answer, Messenger, Waiting

Context = grpc.aio.ServicerContext[Any, Any]

_KIND: Final = {
    Kind.SIGNAL: pb.WAIT_KIND_SIGNAL,
    Kind.APPROVAL: pb.WAIT_KIND_APPROVAL,
}


class ControlServicer(control_service_pb2_grpc.ControlServiceServicer):
    """Decodes, calls one use case, encodes."""

    service: str = "qflow.orchestrator.v1.ControlService"

    def __init__(self, *, controls: Controls, router: Router) -> None:
        self.router = router
        self._controls = controls
        self._messenger = Messenger(controls)

    @to_owner
    async def PauseExecution(
        self, request: pb.PauseExecutionRequest, context: Context
    ) -> pb.PauseExecutionResponse:
        """Pause a run: no further node starts."""
        found = await self._controls.pause(current_caller(), _execution_id(request))
        return pb.PauseExecutionResponse(execution=codec.execution_to_pb(*found))

    @to_owner
    async def ResumeExecution(
        self, request: pb.ResumeExecutionRequest, context: Context
    ) -> pb.ResumeExecutionResponse:
        """Resume a paused run."""
        found = await self._controls.resume(current_caller(), _execution_id(request))
        return pb.ResumeExecutionResponse(execution=codec.execution_to_pb(*found))

    @to_owner
    async def PauseNode(
        self, request: pb.PauseNodeRequest, context: Context
    ) -> pb.PauseNodeResponse:
        """Pause a node."""
        execution_id = _execution_id(request)
        node = await self._controls.pause_node(current_caller(), execution_id, request.node)
        return pb.PauseNodeResponse(node_execution=_node(execution_id, node))

    @to_owner
    async def ResumeNode(
        self, request: pb.ResumeNodeRequest, context: Context
    ) -> pb.ResumeNodeResponse:
        """Resume a node."""
        execution_id = _execution_id(request)
        node = await self._controls.resume_node(current_caller(), execution_id, request.node)
        return pb.ResumeNodeResponse(node_execution=_node(execution_id, node))

    @to_owner
    async def SkipNode(self, request: pb.SkipNodeRequest, context: Context) -> pb.SkipNodeResponse:
        """Skip a node with a given output."""
        execution_id = _execution_id(request)
        node = await self._controls.skip_node(
            current_caller(), execution_id, request.node, request.output_json
        )
        return pb.SkipNodeResponse(node_execution=_node(execution_id, node))

    @to_owner
    async def SendSignal(
        self, request: pb.SendSignalRequest, context: Context
    ) -> pb.SendSignalResponse:
        """Deliver a signal."""
        node_id = await self._messenger.send(
            current_caller(),
            _execution_id(request),
            request.name,
            request.payload_json,
            kit.uuid_or_none(request.request_id, field="request_id"),
        )
        return pb.SendSignalResponse(node_id=node_id)

    @to_owner
    async def AnswerApproval(
        self, request: pb.AnswerApprovalRequest, context: Context
    ) -> pb.AnswerApprovalResponse:
        """Answer an approval."""
        answer = Answer(
            name=request.name,
            approved=request.approved,
            comment=request.comment,
            reply_json=request.reply_json,
        )
        node_id = await self._messenger.answer(
            current_caller(),
            _execution_id(request),
            answer,
            kit.uuid_or_none(request.request_id, field="request_id"),
        )
        return pb.AnswerApprovalResponse(node_id=node_id)

    @to_owner
    async def ListWaits(
        self, request: pb.ListWaitsRequest, context: Context
    ) -> pb.ListWaitsResponse:
        """Return the signals and approvals that a run waits for."""
        found = await self._messenger.waits(current_caller(), _execution_id(request))
        return pb.ListWaitsResponse(waits=[_wait(each) for each in found])


def _execution_id(request: Any) -> UUID:
    return kit.uuid_from(request.execution_id, field="execution_id")


def _node(execution_id: UUID, node: NodeExecution) -> Any:
    return codec.node_to_pb(str(execution_id), node)


def _wait(waiting: Waiting) -> pb.Wait:
    return pb.Wait(
        node_id=waiting.node_id,
        name=waiting.name,
        kind=_KIND[waiting.kind],
        type_expression=waiting.type_expression,
        subject_json=waiting.subject_json,
        due_time=timestamp(waiting.row.due_at),
    )
