"""Cancels runs of a schedule that overlap with its next one.

The schedule loop has no caller, so it has no token by which the owner of such a run could check who
wants it cancelled. The owner checks the schedule's row instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import structlog

from services.kit.errors import FailedPrecondition, NotFound
from services.kit.pg import Pool, transaction
from services.orchestrator.storage import schedule_due as due
from services.orchestrator.usecases.batch import each_of
from services.orchestrator.usecases.cancel import cancel_execution
from services.orchestrator.usecases.forward import Router, forwarded
from services.orchestrator.usecases.on_behalf import caller_of
from services.orchestrator.usecases.read import Reader

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Overlaps:
    """The dependencies of these use cases."""

    pool: Pool  # the engine's
    reader: Reader
    router: Router

    async def cancel_all(self, schedule_id: UUID, running: Sequence[UUID]) -> None:
        """Request cancellation of runs of a schedule at their owners; failures are logged."""

        async def cancel(execution_id: UUID) -> None:
            await self.router.at_owner(
                execution_id,
                here=lambda: self.cancel(schedule_id, execution_id),
                there=lambda address: self.router.peers.cancel_overlapping(
                    address, execution_id, schedule_id
                ),
            )

        for each in await each_of(running, cancel):
            # A refused one has ended by itself.
            if each.error is not None and not isinstance(
                each.error, (FailedPrecondition, NotFound)
            ):
                log.info("overlapping_run_not_cancelled", reason=each.error.reason)

    async def cancel(self, schedule_id: UUID, execution_id: UUID) -> None:
        """Request cancellation of a run owned here, if a tick of its schedule waits for that.

        On behalf of the schedule's creator, with the rights they have now. Raises `NotFound` for
        any other run.
        """
        async with transaction(self.pool) as db:
            maker = await due.maker_of_overlapping(db, schedule_id, execution_id)
        if maker is None:
            raise NotFound(
                "NOT_OVERLAPPING",
                "no tick of the schedule waits for this run to be stopped",
                resource=("execution", str(execution_id)),
            )
        caller = await caller_of(self.pool, *maker)
        with forwarded():  # if it has moved, the next attempt finds it
            await cancel_execution(self.reader, self.router, caller, execution_id)
