"""The member: this orchestrator's lease, which is also the fence of its journal."""

from __future__ import annotations

import asyncio
from uuid import UUID

import structlog

from services.kit.ids import uuid7
from services.kit.pg import Pool, transaction
from services.orchestrator.engine.journal import Fence, FencedError
from services.orchestrator.storage import members
from services.orchestrator.storage.flush import ENGINE_FORMAT

log = structlog.get_logger()


class Member:
    """One row of engine_members, and when it was last renewed."""

    def __init__(self, pool: Pool, *, host: str, address: str, proof: bool, ttl_s: float) -> None:
        self._pool = pool
        self._host = host
        self._address = address
        self._proof = proof  # holds the home's lock: no other process of this home is alive
        self.ttl_s = ttl_s
        self.id: UUID = uuid7()
        self.epoch = 0
        self.live = False
        self._renewing = asyncio.Lock()

    async def join(self) -> None:
        """Become the owner of all shards; waits for the lease of a live member elsewhere to end."""
        async with transaction(self._pool) as db:
            self.epoch = await members.join(
                db, self.id, host=self._host, address=self._address, formats=[ENGINE_FORMAT]
            )
        while True:
            async with transaction(self._pool) as db:
                left_s = await members.fence_dead(db, self.id, host=self._host, proof=self._proof)
                if left_s is None:
                    await members.take_shards(db, self.id)
                    break
            log.info("waiting_for_other_member", left_s=left_s)
            await asyncio.sleep(min(max(left_s, 0.05), self.ttl_s))
        log.info("member_joined", member_id=str(self.id), epoch=self.epoch)

    async def ensure_live(self, again: bool) -> Fence:  # noqa: FBT001  # one word of one caller
        """Hold the lease before a flush; raises `FencedError` when another member took over."""
        if again or not self.live:
            await self.renew()
        return Fence(self.id, self.epoch)

    async def renew(self) -> None:
        """Renew the lease now."""
        async with self._renewing, transaction(self._pool) as db:
            if not await members.renew(db, self.id, self.epoch, self.ttl_s):
                raise FencedError
            self.live = True

    async def rest(self, *, state: str = "idle") -> None:
        """Give the lease back: there is nothing to write."""
        async with self._renewing, transaction(self._pool) as db:
            self.live = False
            await members.rest(db, self.id, self.epoch, state=state)

    async def advance(self) -> None:
        """Take a new epoch, after which no older flush can be written."""
        async with transaction(self._pool) as db:
            epoch = await members.advance(db, self.id, self.epoch)
        if epoch is None:
            raise FencedError
        self.epoch = epoch
        self.live = False
