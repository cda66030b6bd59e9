"""Events on their way, as the engine sees them across tenants.

The outbox has one row per event; each becomes a delivery per subscription that asks for it. A
delivery that somebody tries is due again when the time of that try is over: whoever dies in between
leaves it to the next, with the same event id.
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
    """Make deliveries of events; gives how many events there were."""
    return len(await db.fetch(_SPREAD, limit))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A delivery to try now, and what that takes."""

    id: UUID
    subscription_id: UUID
    tenant_id: UUID
    event_id: UUID
    body: str
    attempts: int  # this one counts
    url: str
    key_fingerprint: str
    secret_generation: int
    rotated_at: datetime | None
    now: datetime


# A few of each subscription that has none under way here, and of each tenant no more than its
# share: slow ones hold up themselves alone. Tenants with the fewest under way come first.
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
    """What is being tried here, and how much may be."""

    subscriptions: Sequence[UUID]
    tenants: Mapping[UUID, int]  # how many deliveries of each
    of_tenant_max: int

    @property
    def full(self) -> list[UUID]:
        """Tenants that have all that they may have."""
        return [each for each, count in self.tenants.items() if count >= self.of_tenant_max]


async def claim(
    db: Db, *, limit: int, each: int, under_way: UnderWay, lasting: timedelta
) -> list[Parcel]:
    """Take deliveries that are due, for as long as a try may take."""
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


# Whoever asked meanwhile for another try has set the count back: the answer to this one is not that
# one's.
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
    """Write that a try was taken."""
    await db.execute(_DELIVERED, parcel.id, parcel.attempts, status)


async def failed(
    db: Db, parcel: Parcel, *, status: int, error: str, pause: timedelta | None
) -> None:
    """Write that a try failed; without a pause it was the last."""
    await db.execute(_FAILED, parcel.id, parcel.attempts, status or None, error, pause)


async def pause_subscription(db: Db, parcel: Parcel, reason: str) -> None:
    """Stop sending to an address that is gone for good, unless there is another by now."""
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
    """Give how many seconds nothing is due that may be tried; None when nothing comes at all."""
    left: float | None = await db.fetchval(_NEXT, list(under_way.subscriptions), under_way.full)
    return left
