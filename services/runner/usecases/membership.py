"""The runner's lease: renewed in PostgreSQL while there are attempts, released when idle."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog

from services.kit.errors import QflowError
from services.kit.loops import wait_either
from services.kit.pg import Pool, translate
from services.runner.storage import containers, environments, members

log = structlog.get_logger()

_RETRY_S: Final = 0.25
# Share of the lease: without a renewal by then the runner ends its own children, before others may
# consider their work lost.
_SAFE_SHARE: Final = 2 / 3
_LAST_TRY_SHARE: Final = 0.1


class LeaseLost(Exception):  # noqa: N818 - it is an event as much as an error
    """This incarnation may not act any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the row tells about this runner."""

    host: str
    tier: str
    slots: int
    pythons: Sequence[str]


class Membership:
    """One row per incarnation; `on_lost` ends all attempts before the next one begins."""

    def __init__(
        self,
        pool: Pool,
        offer: Offer,
        *,
        ttl_s: float,
        heartbeat_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.incarnation: UUID = uuid.uuid4()
        self._pool = pool
        self._offer = offer
        self._ttl_s = ttl_s
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._safe_until = 0.0
        self._wanted = asyncio.Event()
        self._renewing: asyncio.Task[bool] | None = None
        self._idle_since = 0.0
        self.joined = asyncio.Event()  # set while this incarnation has its row

    @property
    def held(self) -> bool:
        """Whether the lease is certainly valid."""
        return self._clock() < self._safe_until

    async def begin(self) -> None:
        """Insert this incarnation's row; earlier ones of the same home are certainly dead."""
        await members.bury_predecessors(self._pool, self._offer.host, self.incarnation)
        await containers.close_left(self._pool, self._offer.host, self.incarnation)
        await environments.close_left(self._pool, self._offer.host, self.incarnation)
        await self._join()

    async def hold(self) -> None:
        """Return once the lease is valid, before any user code runs; raises LeaseLost.

        Work assigned to one incarnation never begins under the next: it may run elsewhere by then.
        """
        asked_as = self.incarnation if self.joined.is_set() else None
        self._wanted.set()
        while self.incarnation == asked_as and not self.held:
            if self._renewing is None:
                self._renewing = asyncio.create_task(self._renew())
                self._renewing.add_done_callback(self._renewed)
            try:
                if not await asyncio.shield(self._renewing):
                    raise LeaseLost("fenced")
            except (QflowError, OSError, TimeoutError) as problem:
                log.warning("lease_not_renewed", fault=type(problem).__name__)
                await asyncio.sleep(_RETRY_S)
        if self.incarnation != asked_as:
            raise LeaseLost("another incarnation")

    async def keep(
        self,
        stop: asyncio.Event,
        *,
        busy: Callable[[], bool],
        on_lost: Callable[[], Awaitable[None]],
    ) -> None:
        """Renew while there are attempts; without any, rest without heartbeats."""
        while not (stop.is_set() and not busy()):
            await self._sleep(stop, busy)
            if stop.is_set() and not busy():
                break
            if not self._wanted.is_set():
                continue
            if not busy() and self._clock() - self._idle_since > self._ttl_s:
                await self._rest(busy)
                continue
            if busy():
                self._idle_since = self._clock()
            try:
                lost = not await self._renew()
            except (QflowError, OSError, TimeoutError) as problem:
                log.warning("lease_not_renewed", fault=type(problem).__name__)
                lost = False
            if lost or (busy() and not self.held):
                await self._begin_anew(on_lost, stop)

    def doubt(self) -> None:
        """Renew soon: this incarnation may be fenced, and the renewal finds out."""
        self._idle_since = self._clock()
        self._wanted.set()

    async def end(self, *, in_order: bool) -> None:
        """Record that this incarnation is over; `in_order` if it left nothing unanswered."""
        await members.leave(self._pool, self.incarnation, in_order=in_order)

    async def _sleep(self, stop: asyncio.Event, busy: Callable[[], bool]) -> None:
        """Wait until the next heartbeat; without a limit while nothing runs."""
        resting = not self._wanted.is_set()
        event = self._wanted if resting else stop
        if stop.is_set():
            await asyncio.sleep(min(self._heartbeat_s, 0.05))
            return
        # Wake by the safe time at the latest: a hanging renewal must not delay ending the attempts.
        seconds = None if resting else self._heartbeat_s
        if busy() and not resting:
            seconds = min(self._heartbeat_s, max(self._safe_until - self._clock(), 0.05))
        await wait_either(event, stop, seconds)
        if resting and self._wanted.is_set():
            self._idle_since = self._clock()

    async def _renew(self) -> bool:
        asked = self._clock()
        left = self._safe_until - asked
        # Past the safe time there is one short try, well within the rest of the lease.
        timeout_s = max(min(left, self._heartbeat_s), self._ttl_s * _LAST_TRY_SHARE)
        try:
            async with asyncio.timeout(timeout_s):
                renewed = await members.renew(self._pool, self.incarnation, self._ttl_s)
        except Exception as problem:
            fault = translate(problem)
            if fault is None and not isinstance(problem, (QflowError, OSError, TimeoutError)):
                raise
            raise fault or problem from None
        if renewed:
            self._safe_until = asked + self._ttl_s * _SAFE_SHARE
        return renewed

    def _renewed(self, task: asyncio.Task[bool]) -> None:
        self._renewing = None
        if not task.cancelled():
            task.exception()  # marks it as retrieved: whoever awaits it gets it

    async def _rest(self, busy: Callable[[], bool]) -> None:
        self._wanted.clear()
        self._safe_until = 0.0
        try:
            fenced = not await members.rest(self._pool, self.incarnation)
        except Exception as problem:  # noqa: BLE001 - the lease expires anyway
            # It is unknown whether the row is still ours: the next renewal finds out.
            log.warning("lease_not_rested", fault=type(problem).__name__)
            fenced = True
        if fenced or busy():
            self.doubt()

    async def _begin_anew(
        self, on_lost: Callable[[], Awaitable[None]], stop: asyncio.Event
    ) -> None:
        """End everything, then join again as a new incarnation."""
        before = self.incarnation
        log.error("lease_lost", incarnation=str(before))
        self._safe_until = 0.0
        self.joined.clear()
        self.incarnation = uuid.uuid4()
        await on_lost()
        while not stop.is_set():
            try:
                await members.leave(self._pool, before, in_order=False)
                await self._join()
            except Exception as problem:  # noqa: BLE001 - retried until the database is back
                log.warning("runner_not_joined", fault=type(problem).__name__)
                await asyncio.sleep(_RETRY_S)
                continue
            log.info("runner_joined", incarnation=str(self.incarnation))
            return

    async def _join(self) -> None:
        offer = self._offer
        await members.join(
            self._pool, self.incarnation, offer.host, offer.tier, offer.slots, offer.pythons
        )
        self.joined.set()
