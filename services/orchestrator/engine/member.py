"""The member: this orchestrator's lease and epoch, which fence its journal."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

import structlog

from services.kit import crash
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, transaction
from services.orchestrator.domain.shares import MemberState
from services.orchestrator.engine.journal import DATABASE_FAULTS, Fence, FencedError
from services.orchestrator.storage import members, shards
from services.orchestrator.storage.flush import ENGINE_FORMAT

log = structlog.get_logger()

FORMATS: Final = (ENGINE_FORMAT,)
# An idle member looks in once a minute. After three minutes of silence it gets no share of the
# shards any more (the database may have been away, so it is not fenced); after a day it is fenced.
_SILENT_AFTER_S: Final = 180.0
_SILENT_MAX_S: Final = 86_400.0
_ASK_AGAIN_S: Final = 0.2
_HEARTBEATS_PER_TTL: Final = 3.3
_HEARTBEAT_MAX_S: Final = 5.0
# For how many heartbeats a member must have been in touch with the database before it fences
# others, and after how many without an answer it counts as out of touch.
_PATIENCE_HEARTBEATS: Final = 1.1
_BREAK_HEARTBEATS: Final = 2.0


class Member:
    """One row of engine_members, the state of its lease, and the shards it owns."""

    def __init__(
        self,
        pool: Pool,
        *,
        host: str,
        address: str,
        proof: bool,
        ttl_s: float,
        glance: Callable[[Db], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._glance = glance  # run in the transaction of every survey
        self._host = host
        self._address = address
        self._proof = proof  # holds the home's lock, so no other process of this home is alive
        self.ttl_s = ttl_s
        self.id: UUID = uuid7()
        self.epoch = 0
        self.live = False
        self.owned: frozenset[int] = frozenset()
        # Not the loop's clock: after the process was stopped, that is stale until its next turn.
        self._clock = clock
        self._certain_until_s = 0.0
        self._heard_s = self._in_touch_since_s = -math.inf
        self._renewing = asyncio.Lock()

    async def join(self) -> None:
        """Become a member with a lease and no shards."""
        async with transaction(self._pool) as db:
            self.epoch = await members.join(
                db, self.id, host=self._host, address=self._address, formats=FORMATS
            )
        await self.renew()
        log.info("member_joined", member_id=str(self.id), epoch=self.epoch)

    @property
    def heartbeat_s(self) -> float:
        """The interval between renewals of the lease."""
        return min(self.ttl_s / _HEARTBEATS_PER_TTL, _HEARTBEAT_MAX_S)

    async def ensure_live(self, again: bool) -> Fence:  # noqa: FBT001  # its only argument
        """Make sure of the lease before a flush; raises `FencedError` if another member took over.

        `again` renews it in any case.
        """
        if again or not self.live:
            await self.renew()
        return Fence(self.id, self.epoch)

    @property
    def certain(self) -> bool:
        """Whether no other member can have taken over, because the lease has not expired."""
        return self.live and self._clock() < self._certain_until_s

    async def holds(self, *, anew: bool = False) -> bool:
        """Renew the lease until it is certain; False once another member took over.

        A process that was suspended would otherwise go on from old memory and hand out work that
        another member has long finished; so would one with a new epoch and the memory of the old.
        `anew` asks the database in any case: only its clock counts, and it may have been set ahead.
        """
        while anew or not self.certain:
            try:
                await self.renew()
                anew = False
            except FencedError:
                return False
            except DATABASE_FAULTS as error:
                log.warning("lease_not_certain", error=repr(error))
                await asyncio.sleep(_ASK_AGAIN_S)
        return True

    async def renew(self) -> None:
        """Renew the lease now. After a rest, `owned` is what nobody took meanwhile."""
        crash.reach("lease_renewed_before")
        async with self._renewing, transaction(self._pool) as db:
            began_s = self._clock()
            if not await members.renew(db, self.id, self.epoch, self.ttl_s):
                raise FencedError
            if not self.live:
                # Its own statement: its snapshot sees shards taken while the first one waited.
                self.owned = await shards.owned(db, self.id)
                await shards.tell(db, self.id)
            self.live = True
            self._certain_until_s = began_s + self.ttl_s
            self._hear(began_s)
        crash.reach("lease_renewed_after")

    async def rest(
        self, *, state: str = "idle", unless: Callable[[], bool] = lambda: False
    ) -> None:
        """Give the lease up while there is nothing to write; `unless` is checked last."""
        async with self._renewing:
            if unless():
                return
            self.live = False
            async with transaction(self._pool) as db:
                await members.rest(db, self.id, self.epoch, state=state)
                if state == "gone":
                    await shards.tell(db, self.id)

    async def advance(self) -> None:
        """Take a new epoch, after which no flush of an older one can be committed.

        This follows a broken connection. Other members may have lost theirs too, or the database
        is now a promoted replica that missed their last renewals: so this member counts as out of
        touch, and fences nobody for a while.
        """
        self._heard_s = -math.inf
        async with self._renewing:  # a renewal with the old epoch would find itself fenced
            async with transaction(self._pool) as db:
                epoch = await members.advance(db, self.id, self.epoch)
            if epoch is None:
                raise FencedError
            self.epoch = epoch
            self.live = False

    # --- shards: called by one loop only, one after the other -----------------------------------

    async def survey(self) -> list[MemberState]:
        """Fence dead members and return the others, including this one; raises `FencedError`.

        An expired lease proves nothing if the database was away and nobody could renew. A member
        that was out of touch with it therefore first gives the others time to renew theirs.
        """
        began_s = self._clock()
        async with transaction(self._pool) as db:
            self._hear(began_s)
            dead = await members.fence_dead(
                db,
                self.id,
                host=self._host if self._proof else None,
                silent_max_s=_SILENT_MAX_S,
                by_lease=self._in_touch_since_s
                <= began_s - _PATIENCE_HEARTBEATS * self.heartbeat_s,
            )
            if not self.live:
                await members.look_in(db, self.id, self.epoch)
            found = await shards.survey(db, silent_after_s=_SILENT_AFTER_S)
            if self._glance is not None:
                await self._glance(db)
        for each in dead:
            log.warning("member_dead", member_id=str(each))
        if all(each.id != self.id for each in found):
            raise FencedError
        return found

    def _hear(self, began_s: float) -> None:
        """Note that the database answered a request sent at `began_s`."""
        if began_s - self._heard_s > _BREAK_HEARTBEATS * self.heartbeat_s:
            self._in_touch_since_s = began_s
        self._heard_s = max(self._heard_s, began_s)

    async def take_orphans(self, count: int) -> None:
        """Take up to `count` shards that have no owner."""
        async with transaction(self._pool) as db:
            taken = await shards.take_orphans(db, self.id, self.epoch, count=count, formats=FORMATS)
        self.owned |= frozenset(taken)

    async def take_of_resting(self, owner: UUID, count: int) -> None:
        """Take up to `count` shards of a member that rests."""
        async with transaction(self._pool) as db:
            taken = await shards.take_of_resting(db, self.id, self.epoch, owner=owner, count=count)
        self.owned |= frozenset(taken)

    async def leave(self) -> None:
        """Mark this member as leaving: it gets no share of the shards any more."""
        async with transaction(self._pool) as db:
            await shards.leave(db, self.id, self.epoch)

    async def read_owned(self) -> None:
        """Read the owned shards from the database."""
        async with transaction(self._pool) as db:
            self.owned = await shards.owned(db, self.id)

    async def give(self, shard: int, taker: UUID) -> bool:
        """Hand a shard to another member; returns whether it was this member's to give.

        Nothing of its runs may be left to write here.
        """
        epoch = self.epoch  # read now: a newer epoch may reload its runs before this is executed
        async with transaction(self._pool) as db:
            given = await shards.give(db, self.id, epoch, shard=shard, taker=taker)
            if given:
                await shards.tell(db, self.id)
        if given:
            self.owned -= {shard}
        return given
