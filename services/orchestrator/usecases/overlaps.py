"""Runs that are in the way of their schedule's next one, and are asked to stop for it.

The loop that sees to a schedule calls for nobody: there is no token by which the orchestrator that
has such a run could ask who wants it stopped. It finds that out by the schedule, as it stands.
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
    """What stopping such runs takes."""

    pool: Pool  # the engine's
    reader: Reader
    router: Router

    async def cancel_all(self, schedule_id: UUID, running: Sequence[UUID]) -> None:
        """Ask runs of a schedule to stop, wherever each is; what cannot be asked now is logged."""

        async def cancel(execution_id: UUID) -> None:
            await self.router.at_owner(
                execution_id,
                here=lambda: self.cancel(schedule_id, execution_id),
                there=lambda address: self.router.peers.cancel_overlapping(
                    address, execution_id, schedule_id
                ),
            )

        for each in await each_of(running, cancel):
            # What is refused is over by itself, and in nobody's way.
            if each.error is not None and not isinstance(
                each.error, (FailedPrecondition, NotFound)
            ):
                log.info("overlapping_run_not_cancelled", reason=each.error.reason)

    async def cancel(self, schedule_id: UUID, execution_id: UUID) -> None:
        """Ask a run that is here to stop, where a tick of its schedule waits for that.

        In the name of who made the schedule, and by the rights that they have now. Raises
        `NotFound` for any other run.
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
        with forwarded():  # one that has moved by now is asked for with the next look
            await cancel_execution(self.reader, self.router, caller, execution_id)
