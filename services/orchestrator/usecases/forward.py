"""Finds the owner of a run: the member that has it in memory."""

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

# Set while a forwarded call is executed, which is not forwarded again.
FORWARDED: Final[ContextVar[bool]] = ContextVar("qflow_forwarded", default=False)

_TRIES: Final = 2

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Router:
    """Routes calls about runs: those in memory here, all others by the database."""

    engine: Engine
    pool: Pool
    peers: Peers

    async def address(self, execution_id: UUID) -> str | None:
        """Return the address of a run's owner; None to answer here.

        It is None for runs of this member, ended runs and runs that do not exist. Raises `PeerGone`
        while the owner is fenced and nobody has taken over.
        """
        engine = self.engine
        if engine.shards.whole or execution_id in engine.core.runs:
            return None
        async with transaction(self.pool) as db:
            owner = await shards.owner_of(db, execution_id)
        if owner is None or owner.member_id == engine.member.id:
            return None
        if FORWARDED.get():
            raise Unavailable(NOT_OWNER, "the run moved to another orchestrator", retry_after_s=0.1)
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
        """Execute a call at the owner of a run: `here`, or `there` with the owner's address.

        Raises `Unavailable` while there is no owner. The call may have been executed, so it must be
        idempotent.
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
        """Request cancellation of a run at its owner; returns once that is committed."""
        await self.at_owner(
            execution_id,
            here=lambda: self.engine.cancel(execution_id),
            there=lambda address: self.peers.cancel(address, execution_id, caller),
        )


@contextmanager
def forwarded() -> Iterator[None]:
    """Keep calls within the block from being forwarded."""
    token = FORWARDED.set(True)
    try:
        yield
    finally:
        FORWARDED.reset(token)


def owner_gone() -> Unavailable:
    """Return the error of a call that only the run's owner could execute."""
    return Unavailable(
        "OWNER_GONE",
        "the orchestrator that owns this run does not respond; another takes over within seconds: "
        "retry",
        retry_after_s=1.0,
    )
