"""The member: this orchestrator's lease, which is also the fence of its journal."""

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
# A member that rests looks in once a minute. After three that it missed it is to have no share, but
# that may be the database's doing; after a day it is fenced.
_SILENT_AFTER_S: Final = 180.0
_SILENT_MAX_S: Final = 86_400.0
_ASK_AGAIN_S: Final = 0.2
_HEARTBEATS_PER_TTL: Final = 3.3
_HEARTBEAT_MAX_S: Final = 5.0
# How long it is to have had the database before it judges others, and what counts as a break.
_PATIENCE_HEARTBEATS: Final = 1.1
_BREAK_HEARTBEATS: Final = 2.0


class Member:
    """One row of engine_members, when it was last renewed, and the shards that are its own."""

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
        self._glance = glance  # what else is looked at whenever the members are
        self._host = host
        self._address = address
        self._proof = proof  # holds the home's lock: no other process of this home is alive
        self.ttl_s = ttl_s
        self.id: UUID = uuid7()
        self.epoch = 0
        self.live = False
        self.owned: frozenset[int] = frozenset()
        # Not the loop's clock, which knows after a standstill only at its next turn.
        self._clock = clock
        self._certain_until_s = 0.0
        self._heard_s = self._in_touch_since_s = -math.inf
        self._renewing = asyncio.Lock()

    async def join(self) -> None:
        """Be a member that holds a lease, and as yet no shard."""
        async with transaction(self._pool) as db:
            self.epoch = await members.join(
                db, self.id, host=self._host, address=self._address, formats=FORMATS
            )
        await self.renew()
        log.info("member_joined", member_id=str(self.id), epoch=self.epoch)

    @property
    def heartbeat_s(self) -> float:
        """How often the lease is renewed, and tried to be."""
        return min(self.ttl_s / _HEARTBEATS_PER_TTL, _HEARTBEAT_MAX_S)

    async def ensure_live(self, again: bool) -> Fence:  # noqa: FBT001  # one word of one caller
        """Hold the lease before a flush; raises `FencedError` when another member took over."""
        if again or not self.live:
            await self.renew()
        return Fence(self.id, self.epoch)

    @property
    def certain(self) -> bool:
        """Whether no other member can have taken over: the lease still runs."""
        return self.live and self._clock() < self._certain_until_s

    async def holds(self, *, anew: bool = False) -> bool:
        """Be certain again, where that is possible; False once another member took over.

        A process that stood still would otherwise go on in its last word, and give out what the
        other has long had done; so would one that has a new epoch, and memory of the one before.
        `anew` asks the database in any case: its clock alone judges leases, and may be set ahead.
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
        """Renew the lease now. One that wakes has only the shards that nobody took meanwhile."""
        crash.reach("lease_renewed_before")
        async with self._renewing, transaction(self._pool) as db:
            began_s = self._clock()
            if not await members.renew(db, self.id, self.epoch, self.ttl_s):
                raise FencedError
            if not self.live:
                # A statement of its own: it sees what was taken while the first one waited.
                self.owned = await shards.owned(db, self.id)
                await shards.tell(db, self.id)
            self.live = True
            self._certain_until_s = began_s + self.ttl_s
            self._hear(began_s)
        crash.reach("lease_renewed_after")

    async def rest(
        self, *, state: str = "idle", unless: Callable[[], bool] = lambda: False
    ) -> None:
        """Give the lease back: there is nothing to write. `unless` is asked at the last moment."""
        async with self._renewing:
            if unless():
                return
            self.live = False
            async with transaction(self._pool) as db:
                await members.rest(db, self.id, self.epoch, state=state)
                if state == "gone":
                    await shards.tell(db, self.id)

    async def advance(self) -> None:
        """Take a new epoch, after which no older flush can be written.

        Whoever needs one had a connection break: others as well, or the next one leads to a server
        that was promoted, which knows of no renewal since it lost sight of the first.
        """
        self._heard_s = -math.inf
        async with self._renewing:  # by the old epoch a renewal would find this member fenced
            async with transaction(self._pool) as db:
                epoch = await members.advance(db, self.id, self.epoch)
            if epoch is None:
                raise FencedError
            self.epoch = epoch
            self.live = False

    # --- shards: all by one loop, one after the other -------------------------------------------

    async def survey(self) -> list[MemberState]:
        """Fence the dead and give all others, this one among them; raises `FencedError`.

        A lease that ran out is no death where nobody could renew it. Who comes back from such a
        time, or from any in which it could not see, lets the others come back as well.
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
        """Note that the database answered what was asked then."""
        if began_s - self._heard_s > _BREAK_HEARTBEATS * self.heartbeat_s:
            self._in_touch_since_s = began_s
        self._heard_s = max(self._heard_s, began_s)

    async def take_orphans(self, count: int) -> None:
        """Own shards that nobody has."""
        async with transaction(self._pool) as db:
            taken = await shards.take_orphans(db, self.id, self.epoch, count=count, formats=FORMATS)
        self.owned |= frozenset(taken)

    async def take_of_resting(self, owner: UUID, count: int) -> None:
        """Own shards of a member that rests."""
        async with transaction(self._pool) as db:
            taken = await shards.take_of_resting(db, self.id, self.epoch, owner=owner, count=count)
        self.owned |= frozenset(taken)

    async def leave(self) -> None:
        """Take part in no share any more."""
        async with transaction(self._pool) as db:
            await shards.leave(db, self.id, self.epoch)

    async def read_owned(self) -> None:
        """Ask the database which shards are this member's."""
        async with transaction(self._pool) as db:
            self.owned = await shards.owned(db, self.id)

    async def give(self, shard: int, taker: UUID) -> bool:
        """Make a shard another's, of which nothing is left to write here."""
        epoch = self.epoch  # the next one may have loaded its runs again before this is carried out
        async with transaction(self._pool) as db:
            given = await shards.give(db, self.id, epoch, shard=shard, taker=taker)
            if given:
                await shards.tell(db, self.id)
        if given:
            self.owned -= {shard}
        return given
