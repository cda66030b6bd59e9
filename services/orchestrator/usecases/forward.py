"""Finding who answers for a run: the member that has it in memory."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from services.kit.errors import Unavailable
from services.kit.pg import Pool, transaction
from services.orchestrator.engine.engine import Engine
from services.orchestrator.gateways.peers import NOT_OWNER, PeerGone, Peers
from services.orchestrator.storage import shards

# Set while a call is answered that another orchestrator has sent here: it goes no further.
FORWARDED: Final[ContextVar[bool]] = ContextVar("qflow_forwarded", default=False)


@dataclass(frozen=True, slots=True)
class Router:
    """Knows which runs are here, and asks the database for all others."""

    engine: Engine
    pool: Pool
    peers: Peers

    async def address(self, execution_id: UUID) -> str | None:
        """Give where a run's owner is; None to answer here: it is this one's, over, or nobody's.

        Raises PeerGone while its owner is fenced and nobody has taken over.
        """
        engine = self.engine
        if engine.shards.whole or execution_id in engine.core.runs:
            return None
        async with transaction(self.pool) as db:
            owner = await shards.owner_of(db, execution_id)
        if owner is None or owner.member_id == engine.member.id:
            return None
        if FORWARDED.get():
            raise Unavailable(NOT_OWNER, "the run went to another orchestrator", retry_after_s=0.1)
        if not owner.alive or not owner.address:
            raise PeerGone("the owner is fenced")
        return owner.address


def owner_gone() -> Unavailable:
    """Make the answer of a call that only the run's owner could take."""
    return Unavailable(
        "OWNER_GONE",
        "the orchestrator that has this run does not answer; another takes over within seconds: "
        "repeat the call",
        retry_after_s=1.0,
    )
