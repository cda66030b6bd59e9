"""ExplainService: explains why runs do not move, or failed."""

from __future__ import annotations

from typing import Any, Final

import grpc
from qflow.orchestrator.v1 import explain_service_pb2 as pb
from qflow.orchestrator.v1 import explain_service_pb2_grpc

from services.kit.caller import current_caller
from services.kit.rpc import codec as kit
from services.orchestrator.domain.explain import Cause, Reason
from services.orchestrator.domain.explain_limits import Limited
from services.orchestrator.engine.engine import Engine
from services.orchestrator.rpc import codec
from services.orchestrator.rpc.forwarding import to_owner
from services.orchestrator.usecases.explain import explain_execution
from services.orchestrator.usecases.forward import Router
from services.orchestrator.usecases.read import Reader

Context = grpc.aio.ServicerContext[Any, Any]

_CAUSES: Final = {
    cause: pb.ExecutionCause.Value(f"EXECUTION_CAUSE_{cause.name}") for cause in Cause
}


class ExplainServicer(explain_service_pb2_grpc.ExplainServiceServicer):
    """Decodes, calls one use case, encodes."""

    service: str = "qflow.orchestrator.v1.ExplainService"

    def __init__(self, reader: Reader, engine: Engine, router: Router) -> None:
        self.router = router
        self._reader = reader
        self._engine = engine

    @to_owner
    async def ExplainExecution(
        self, request: pb.ExplainExecutionRequest, context: Context
    ) -> pb.ExplainExecutionResponse:
        """Explain the state of a run."""
        execution_id = kit.uuid_from(request.execution_id, field="execution_id")
        execution, reasons = await explain_execution(
            self._reader, self._engine, current_caller(), execution_id
        )
        return pb.ExplainExecutionResponse(
            status=codec.RUN_STATUS[execution.status], reasons=map(_reason, reasons)
        )


def _reason(reason: Reason) -> pb.ExecutionReason:
    return pb.ExecutionReason(
        cause=_CAUSES[reason.cause],
        message=reason.message,
        action=reason.action,
        nodes=reason.nodes,
        node_count=reason.node_count,
        time=kit.timestamp(reason.time),
        limit=None if reason.limit is None else _limit(reason.limit),
    )


def _limit(limited: Limited) -> pb.LimitedBy:
    return pb.LimitedBy(
        name=limited.limit,
        max_running=limited.max_running or 0,
        taken_count=limited.taken,
        execution_ids=[str(each.execution_id) for each in limited.holders],
        execution_count=limited.holder_count,
        ahead_count=limited.ahead,
    )
