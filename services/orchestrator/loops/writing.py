"""The journal's task, which ends last: what calls and runners still cause is committed."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg
import structlog

from services.kit.errors import QflowError, Unavailable
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import BROKEN, FencedError
from services.orchestrator.usecases.balance import begin, hand_over

log = structlog.get_logger()

_FLUSH_POLL_S: Final = 0.01


class Writer:
    """Runs the engine's journal from when the member joins until it leaves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writing: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Take shards, load their open runs, and start to write."""
        await begin(self._engine)
        self._writing = asyncio.create_task(self._engine.run())

    async def follow(self, stop: asyncio.Event) -> None:
        """Raise when the journal fails, which ends the process; return when `stop` is set.

        The journal goes on while calls drain.
        """
        assert self._writing is not None
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({self._writing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if self._writing.done():
            await self._writing

    async def drain(self) -> None:
        """Hand the shards over and write what is queued, if the journal still runs.

        Runners keep their attempts; callers that wait for a run are told to resume elsewhere.
        """
        try:
            await self._hand_over_and_write()
        finally:
            self._engine.hub.leave()

    async def _hand_over_and_write(self) -> None:
        assert self._writing is not None
        if not self._writing.done():
            try:
                await hand_over(self._engine)
            except (QflowError, FencedError, asyncpg.PostgresError, *BROKEN) as error:
                log.warning("shards_not_handed_over", error=repr(error))
        while not (self._engine.journal.idle or self._writing.done()):  # noqa: ASYNC110  # milliseconds, once per process
            await asyncio.sleep(_FLUSH_POLL_S)

    async def close(self) -> None:
        """Leave: end the lease for good."""
        if self._writing is not None:
            self._writing.cancel()
        if not self._engine.member.epoch:  # it never joined
            return
        try:
            await self._engine.member.rest(state="gone")
        except (Unavailable, asyncpg.PostgresError, OSError):
            log.warning("member_not_signed_off")
