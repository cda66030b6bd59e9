"""Deliveries of events, as the engine sees them across tenants.

The outbox has one row per event, which becomes one delivery per matching subscription. A claimed
delivery is due again when its attempt should be over: if the claimant dies, another member retries
it with the same event id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db

_SPREAD: Final[LiteralString] = """
    WITH taken AS MATERIALIZED (
        SELECT id, tenant_id, payload, payload ->> 'type' AS event_type,
               (payload -> 'data' ->> 'execution_id')::uuid AS execution_id,
               (payload -> 'data' ->> 'workflow_id')::uuid AS workflow_id
          FROM outbox_events
         WHERE kind = 'execution_event' AND sent_at IS NULL
         ORDER BY created_at, id LIMIT $1
           FOR UPDATE SKIP LOCKED),
    made AS (
        INSERT INTO event_deliveries
               (subscription_id, event_id, event_type, execution_id, body, due_at, tenant_id)
        SELECT wanted.id, taken.id, taken.event_type, taken.execution_id, taken.payload::text,
               clock_timestamp(), taken.tenant_id
          FROM taken
          JOIN event_subscriptions AS wanted
            ON wanted.tenant_id = taken.tenant_id AND wanted.paused_at IS NULL
           AND taken.event_type = ANY (wanted.event_types)
           AND (wanted.workflow_id IS NULL OR wanted.workflow_id = taken.workflow_id)
            ON CONFLICT (subscription_id, event_id) DO NOTHING)
    UPDATE outbox_events SET sent_at = clock_timestamp()
      FROM taken WHERE outbox_events.id = taken.id
 RETURNING outbox_events.id
"""


async def spread(db: Db, *, limit: int) -> int:
    """Turn events of the outbox into deliveries; returns the number of events."""
    return len(await db.fetch(_SPREAD, limit))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A delivery to attempt now, and what that needs."""

    id: UUID
    subscription_id: UUID
    tenant_id: UUID
    event_id: UUID
    body: str
    attempts: int  # including this one
    url: str
    key_fingerprint: str
    secret_generation: int
    rotated_at: datetime | None
    now: datetime


# A few per subscription that has none in flight here, and no more than its share per tenant, so
# that slow receivers delay only themselves. Tenants with the fewest in flight come first.
_CLAIM: Final[LiteralString] = """
    WITH waiting AS (
        SELECT delivery.id, delivery.due_at,
               coalesce(under_way.count, 0) + row_number()
                   OVER (PARTITION BY subscription.tenant_id ORDER BY delivery.due_at) AS turn
          FROM event_subscriptions AS subscription
         CROSS JOIN LATERAL (
               SELECT id, due_at FROM event_deliveries
                WHERE subscription_id = subscription.id AND state = 'pending'
                  AND due_at <= clock_timestamp()
                ORDER BY due_at LIMIT $2) AS delivery
          LEFT JOIN unnest($5::uuid[], $6::int[]) AS under_way (tenant_id, count)
            ON under_way.tenant_id = subscription.tenant_id
         WHERE subscription.paused_at IS NULL AND subscription.id <> ALL ($3::uuid[])),
    due AS MATERIALIZED (
        SELECT id FROM waiting WHERE turn <= $7 ORDER BY turn, due_at LIMIT $1),
    held AS MATERIALIZED (
        SELECT id FROM event_deliveries
         WHERE id IN (SELECT id FROM due) AND state = 'pending' AND due_at <= clock_timestamp()
         ORDER BY id
           FOR UPDATE SKIP LOCKED)
    UPDATE event_deliveries AS delivery
       SET attempts = delivery.attempts + 1, due_at = clock_timestamp() + $4
      FROM held, event_subscriptions AS subscription
     WHERE delivery.id = held.id AND subscription.id = delivery.subscription_id
 RETURNING delivery.id, delivery.subscription_id, delivery.tenant_id, delivery.event_id,
           delivery.body,
           delivery.attempts, subscription.url, subscription.key_fingerprint,
           subscription.secret_generation, subscription.rotated_at, clock_timestamp() AS now
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """What is in flight here, and how much may be."""

    subscriptions: Sequence[UUID]
    tenants: Mapping[UUID, int]  # deliveries in flight by tenant
    of_tenant_max: int

    @property
    def full(self) -> list[UUID]:
        """Tenants with as many in flight as allowed."""
        return [each for each, count in self.tenants.items() if count >= self.of_tenant_max]


async def claim(
    db: Db, *, limit: int, each: int, under_way: UnderWay, lasting: timedelta
) -> list[Parcel]:
    """Claim due deliveries for as long as an attempt may take."""
    rows = await db.fetch(
        _CLAIM,
        limit,
        each,
        list(under_way.subscriptions),
        lasting,
        list(under_way.tenants),
        list(under_way.tenants.values()),
        under_way.of_tenant_max,
    )
    return [Parcel(**dict(row)) for row in rows]


# A resend requested meanwhile has reset the count: this answer does not belong to it.
_DELIVERED: Final[LiteralString] = """
    UPDATE event_deliveries
       SET state = 'delivered', due_at = NULL, status_code = $3, error = ''
     WHERE id = $1 AND attempts = $2 AND state = 'pending'
"""
_FAILED: Final[LiteralString] = """
    UPDATE event_deliveries
       SET state = CASE WHEN $5::interval IS NULL THEN 'dead' ELSE 'pending' END,
           due_at = clock_timestamp() + $5, status_code = $3, error = $4
     WHERE id = $1 AND attempts = $2 AND state = 'pending'
"""
_PAUSE: Final[LiteralString] = """
    UPDATE event_subscriptions SET paused_at = clock_timestamp(), pause_reason = $3
     WHERE id = $1 AND url = $2 AND paused_at IS NULL
"""


async def delivered(db: Db, parcel: Parcel, status: int) -> None:
    """Record a successful attempt."""
    await db.execute(_DELIVERED, parcel.id, parcel.attempts, status)


async def failed(
    db: Db, parcel: Parcel, *, status: int, error: str, pause: timedelta | None
) -> None:
    """Record a failed attempt; it was the last one if `pause` is None."""
    await db.execute(_FAILED, parcel.id, parcel.attempts, status or None, error, pause)


async def pause_subscription(db: Db, parcel: Parcel, reason: str) -> None:
    """Pause a subscription whose URL is gone for good, unless the URL has been changed."""
    await db.execute(_PAUSE, parcel.subscription_id, parcel.url, reason)


_NEXT: Final[LiteralString] = """
    SELECT EXTRACT(epoch FROM min(delivery.due_at) - clock_timestamp())::float8
      FROM event_subscriptions AS subscription
     CROSS JOIN LATERAL (
           SELECT due_at FROM event_deliveries
            WHERE subscription_id = subscription.id AND state = 'pending'
            ORDER BY due_at LIMIT 1) AS delivery
     WHERE subscription.paused_at IS NULL AND subscription.id <> ALL ($1::uuid[])
       AND subscription.tenant_id <> ALL ($2::uuid[])
"""


async def next_s(db: Db, under_way: UnderWay) -> float | None:
    """Return the seconds until a delivery is due that may be attempted; None if there is none."""
    left: float | None = await db.fetchval(_NEXT, list(under_way.subscriptions), under_way.full)
    return left
