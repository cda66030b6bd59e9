"""Admission of runners."""

from __future__ import annotations

from uuid import UUID

from services.kit.errors import FailedPrecondition
from services.kit.pg import Pool, transaction
from services.orchestrator.engine.engine import Engine
from services.orchestrator.storage import members


async def admit(engine: Engine, pool: Pool, incarnation: UUID) -> None:
    """Refuse a fenced runner, whichever process fenced it.

    Waits while a run is being reloaded, since the runner's attempts cannot be judged before.
    """
    fenced = incarnation in engine.core.fenced
    if not fenced:
        async with transaction(pool) as db:
            fenced = await members.is_fenced(db, incarnation)
    if fenced:
        raise FailedPrecondition(
            "RUNNER_FENCED",
            "hello.incarnation: this one was fenced; stop its attempts and attach with a new one",
        )
    await engine.settled()
