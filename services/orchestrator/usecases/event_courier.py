"""Delivers events at least once, a bounded number at a time, per subscription.

Attempts take as long as receivers let them, so each tenant has a limited share of those in flight.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Final

import structlog

from services.kit import crash
from services.kit.errors import QflowError
from services.kit.pg import LINK_FAULTS, Pool, transaction, translate
from services.orchestrator.domain import webhook
from services.orchestrator.gateways.webhooks import TIMEOUT_S, Answer, Poster
from services.orchestrator.storage import event_courier as rows
from services.orchestrator.storage.event_courier import Parcel, UnderWay

log = structlog.get_logger()

SAFETY_S: Final = 3600.0  # lost notifications are noticed by the survey, once a minute
_CROWDED_S: Final = 0.2
_EVENTS_MAX: Final = 200
_AT_ONCE_MAX: Final = 32
_OF_TENANT_MAX: Final = 8
_OF_ONE_MAX: Final = 4
# Longer than an attempt takes: after this, deliveries of a dead claimant are due again.
_CLAIM: Final = timedelta(seconds=3 * TIMEOUT_S)
_TAKEN: Final = range(200, 300)
_GONE: Final = 410


class Courier:
    """Attempts due deliveries, and tracks those in flight."""

    def __init__(self, pool: Pool, poster: Poster, key: bytes, *, done: Callable[[], None]) -> None:
        self._pool = pool
        self._poster = poster
        self._key = key
        self._done = done  # called when an attempt ends, as there is room again
        self._under_way: dict[asyncio.Task[None], Parcel] = {}

    async def step(self) -> float:
        """Start attempts of what is due; returns the seconds until more is."""
        async with transaction(self._pool) as db:
            spread = await rows.spread(db, limit=_EVENTS_MAX)
        room = _AT_ONCE_MAX - len(self._under_way)
        if not room:
            return SAFETY_S  # `done` wakes the loop
        under_way = self._known()
        async with transaction(self._pool) as db:
            parcels = await rows.claim(
                db, limit=room, each=_OF_ONE_MAX, under_way=under_way, lasting=_CLAIM
            )
        for parcel in parcels:
            task = asyncio.create_task(self._try(parcel))
            self._under_way[task] = parcel
            task.add_done_callback(self._ended)
        if spread or parcels:
            return 0.0
        async with transaction(self._pool) as db:
            left_s = await rows.next_s(db, under_way)
        return SAFETY_S if left_s is None else min(max(left_s, _CROWDED_S), SAFETY_S)

    def _known(self) -> UnderWay:
        parcels = self._under_way.values()
        return UnderWay(
            subscriptions=list({each.subscription_id for each in parcels}),
            tenants=Counter(each.tenant_id for each in parcels),
            of_tenant_max=_OF_TENANT_MAX,
        )

    async def stop(self) -> None:
        """Cancel the attempts in flight: their deliveries are due again later."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.pop(task, None)
        self._done()

    async def _try(self, parcel: Parcel) -> None:
        answer = await self._answer(parcel)
        try:
            if answer.status in _TAKEN:
                crash.reach("event_posted")
            await self._write(parcel, answer)
        except Exception as error:
            known = isinstance(error, (QflowError, *LINK_FAULTS)) or translate(error) is not None
            if not known:
                log.exception("delivery_not_written", delivery_id=str(parcel.id))
                return
            # It is due again when its claim expires.
            log.warning("delivery_not_written", delivery_id=str(parcel.id))

    async def _answer(self, parcel: Parcel) -> Answer:
        if webhook.fingerprint(self._key) != parcel.key_fingerprint:
            return Answer(0, "not sent: its secret is from another key; call RotateEventSecret")
        secrets = [
            webhook.secret_of(self._key, parcel.subscription_id, generation)
            for generation in webhook.generations(
                parcel.secret_generation, parcel.rotated_at, parcel.now
            )
        ]
        headers = webhook.headers(
            parcel.body,
            event_id=parcel.event_id,
            timestamp=int(parcel.now.timestamp()),
            secrets=secrets,
        )
        try:
            return await self._poster.post(parcel.url, parcel.body, headers)
        except Exception:
            log.exception("delivery_not_tried", delivery_id=str(parcel.id))
            return Answer(0, "not sent: internal error; see the orchestrator's log")

    async def _write(self, parcel: Parcel, answer: Answer) -> None:
        async with transaction(self._pool) as db:
            if answer.status in _TAKEN:
                await rows.delivered(db, parcel, answer.status)
                return
            error = answer.error or f"answered {answer.status}"
            asked = webhook.asked_pause(answer.status, answer.retry_after, now=parcel.now)
            pause = webhook.pause_after(parcel.attempts, asked)
            await rows.failed(db, parcel, status=answer.status, error=error, pause=pause)
            if answer.status == _GONE:
                reason = "the address answered 410: it is gone"
                await rows.pause_subscription(db, parcel, reason)
        log.info(
            "delivery_failed",
            delivery_id=str(parcel.id),
            status=answer.status,
            attempts=parcel.attempts,
            dead=pause is None,
        )
