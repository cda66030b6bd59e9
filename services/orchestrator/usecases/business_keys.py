"""Business keys: how a start deals with runs that have the same key."""

from __future__ import annotations

from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import AlreadyExists
from services.kit.pg import as_caller
from services.orchestrator.domain.options import KeyConflict, KeyReuse, Wishes
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.storage import executions
from services.orchestrator.storage.executions import Execution
from services.orchestrator.usecases.cancel import cancel_execution
from services.orchestrator.usecases.forward import Router
from services.orchestrator.usecases.read import Reader


async def settle_key(
    reader: Reader,
    router: Router,
    caller: Caller,
    workflow_id: UUID | None,
    wishes: Wishes,
    *,
    dry: bool = False,
) -> Execution | None:
    """Apply the policies; returns the run to answer with, None if the start may proceed.

    This is only a guess, which the flush checks. Raises `AlreadyExists` with the conflicting run.
    With `dry` no run is cancelled.
    """
    key = wishes.options.business_key
    if key is None or workflow_id is None:
        return None
    async with as_caller(reader.api_pool, caller) as db:
        holder = await executions.find_key(db, workflow_id, key)
    if holder is None:
        return None
    if not holder.final and holder.cancel_requested_at is None:
        match wishes.conflict:
            case KeyConflict.USE_EXISTING:
                return holder
            case KeyConflict.CANCEL_EXISTING:
                if not dry:
                    await cancel_execution(reader, router, caller, holder.id, finished_ok=True)
                return None
            case KeyConflict.FAIL:
                raise _in_the_way(holder, "BUSINESS_KEY_IN_USE", "an open run has")
    completed = holder.status is RunStatus.COMPLETED
    if wishes.reuse is KeyReuse.REJECT:
        raise _in_the_way(holder, "BUSINESS_KEY_USED", "an earlier run had")
    if wishes.reuse is KeyReuse.ALLOW_IF_FAILED and completed:
        raise _in_the_way(holder, "BUSINESS_KEY_USED", "a run completed with")
    return None


def _in_the_way(holder: Execution, reason: str, said: str) -> AlreadyExists:
    return AlreadyExists(
        reason,
        f"business_key: {said} this key: {holder.id}",
        resource=("execution", str(holder.id)),
        execution_id=holder.id,
    )
