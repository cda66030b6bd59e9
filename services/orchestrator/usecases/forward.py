"""Finding who answers for a run: the member that has it in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, TypeVar
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import Unavailable
from services.kit.pg import Pool, transaction
from services.orchestrator.engine.engine import Engine
from services.orchestrator.gateways.peers import NOT_OWNER, PeerGone, Peers
from services.orchestrator.storage import shards

# Set while something is done that another orchestrator has asked for: it goes no further.
FORWARDED: Final[ContextVar[bool]] = ContextVar("qflow_forwarded", default=False)

_TRIES: Final = 2

Answer = TypeVar("Answer")


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

    async def at_owner(
        self,
        execution_id: UUID,
        *,
        here: Callable[[], Awaitable[Answer]],
        there: Callable[[str], Awaitable[Answer]],
    ) -> Answer:
        """Do something about a run where it is: here, or at the address of its owner.

        While nobody has it this fails with `Unavailable`: it may or may not have been done, so
        that it has to be repeatable.
        """
        for _ in range(_TRIES):
            try:
                address = await self.address(execution_id)
                return await (here() if address is None else there(address))
            except PeerGone as gone:
                if not gone.undone:
                    break
        raise owner_gone()

    async def cancel(self, caller: Caller, execution_id: UUID) -> None:
        """Have a run asked to stop, wherever it is; returns once that is committed."""
        await self.at_owner(
            execution_id,
            here=lambda: self.engine.cancel(execution_id),
            there=lambda address: self.peers.cancel(address, execution_id, caller),
        )


@contextmanager
def forwarded() -> Iterator[None]:
    """Have what is asked inside the block go to no other orchestrator."""
    token = FORWARDED.set(True)
    try:
        yield
    finally:
        FORWARDED.reset(token)


def owner_gone() -> Unavailable:
    """Make the answer of a call that only the run's owner could take."""
    return Unavailable(
        "OWNER_GONE",
        "the orchestrator that has this run does not answer; another takes over within seconds: "
        "repeat the call",
        retry_after_s=1.0,
    )
