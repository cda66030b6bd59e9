"""Cancels an execution."""

from __future__ import annotations

from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import FailedPrecondition, Unavailable
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.storage.executions import Execution
from services.orchestrator.usecases.forward import Router
from services.orchestrator.usecases.read import Reader

log = structlog.get_logger()

_FINISHED: Final = "EXECUTION_FINISHED"


async def cancel_execution(
    reader: Reader,
    router: Router,
    caller: Caller,
    execution_id: UUID,
    *,
    finished_ok: bool = False,
) -> tuple[Execution, Plan]:
    """Request cancellation of a run at its owner; returns the run as it is then.

    A cancelled run is returned unchanged; with `finished_ok`, so is any ended one.
    """
    execution, plan = await reader.get(caller, execution_id, full=False)
    if execution.status is RunStatus.CANCELLED:
        return execution, plan
    if not execution.final:
        try:
            await router.cancel(caller, execution_id)
        except FailedPrecondition as refused:
            if refused.reason != _FINISHED:  # else it has just ended, as its row shows now
                raise
        log.info("execution_cancel_requested", execution_id=str(execution_id))
        execution, plan = await reader.get(caller, execution_id, full=False)
    if not execution.final and execution.cancel_requested_at is None:
        raise Unavailable(
            "CANCEL_NOT_RECORDED",
            "the run is changing its orchestrator or being reloaded; cancel it again",
            retry_after_s=0.5,
        )
    if not finished_ok and execution.status in (RunStatus.COMPLETED, RunStatus.FAILED):
        raise FailedPrecondition(
            _FINISHED,
            f"the execution is already {execution.status}; nothing is left to cancel",
            resource=("execution", str(execution_id)),
        )
    return execution, plan
