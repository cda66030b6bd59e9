"""Stopping an execution on a caller's word."""

from __future__ import annotations

from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import FailedPrecondition, Unavailable
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.engine.engine import Engine
from services.orchestrator.storage.executions import Execution
from services.orchestrator.usecases.read import Reader

log = structlog.get_logger()


async def cancel_execution(
    reader: Reader,
    engine: Engine,
    caller: Caller,
    execution_id: UUID,
    *,
    finished_ok: bool = False,
) -> tuple[Execution, Plan]:
    """Ask a run to stop and give it as it then stands. A cancelled one is given unchanged.

    With `finished_ok` so is one that ended by itself.
    """
    execution, plan = await reader.get(caller, execution_id, full=False)
    if execution.status is RunStatus.CANCELLED:
        return execution, plan
    if not execution.final:
        await engine.cancel(execution_id)
        log.info("execution_cancel_requested", execution_id=str(execution_id))
        execution, plan = await reader.get(caller, execution_id, full=False)
    if not execution.final and execution.cancel_requested_at is None:
        raise Unavailable(
            "CANCEL_NOT_RECORDED",
            "the engine was reading the run anew; cancel it again",
            retry_after_s=0.5,
        )
    if not finished_ok and execution.status in (RunStatus.COMPLETED, RunStatus.FAILED):
        raise FailedPrecondition(
            "EXECUTION_FINISHED",
            f"the execution is {execution.status} already; nothing is left to cancel",
            resource=("execution", str(execution_id)),
        )
    return execution, plan
