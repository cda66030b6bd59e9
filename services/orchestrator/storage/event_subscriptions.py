"""Event subscriptions and their deliveries for callers, under row-level security."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db
from services.kit.updates import etag_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One row of event_subscriptions."""

    id: UUID
    name: str
    url: str
    event_types: Sequence[str]
    workflow_id: UUID | None
    key_fingerprint: str
    created_by: UUID
    created_at: datetime
    updated_at: datetime
    paused_at: datetime | None = None
    pause_reason: str = ""
    secret_generation: int = 1
    rotated_at: datetime | None = None
    revision: int = 1

    @property
    def etag(self) -> str:
        """Changes with every change by a caller."""
        return etag_of(self.revision, self.created_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One row of event_deliveries."""

    id: UUID
    subscription_id: UUID
    event_id: UUID
    event_type: str
    execution_id: UUID | None
    body: str
    state: str
    attempts: int
    due_at: datetime | None
    status_code: int | None
    error: str
    created_at: datetime
    updated_at: datetime


_WAKE: Final[LiteralString] = "SELECT pg_notify('qflow_events', '')"


async def wake(db: Db) -> None:
    """Wake the couriers when this transaction commits."""
    await db.execute(_WAKE)


_LOCK: Final[LiteralString] = """
    SELECT pg_advisory_xact_lock(hashtextextended('event_subscriptions ' || $1::text, 0))
"""


async def lock_tenant(db: Db, tenant_id: UUID) -> None:
    """Lock the number of a tenant's subscriptions until the transaction ends."""
    await db.execute(_LOCK, str(tenant_id))


_COUNT: Final[LiteralString] = """
    SELECT count(*) FROM event_subscriptions WHERE tenant_id = current_tenant_id()
"""


async def count(db: Db) -> int:
    """Count the tenant's subscriptions."""
    return int(await db.fetchval(_COUNT))


_INSERT: Final[LiteralString] = """
    INSERT INTO event_subscriptions (id, name, url, event_types, workflow_id, key_fingerprint)
    VALUES ($1, $2, $3, $4, $5, $6)
 RETURNING id, name, url, event_types, workflow_id, key_fingerprint, paused_at, pause_reason,
           secret_generation, rotated_at, revision, updated_at, created_by, created_at
"""


async def insert(db: Db, subscription: Subscription) -> Subscription:
    """Add a subscription."""
    row = await db.fetchrow(
        _INSERT,
        subscription.id,
        subscription.name,
        subscription.url,
        list(subscription.event_types),
        subscription.workflow_id,
        subscription.key_fingerprint,
    )
    assert row is not None
    return Subscription(**dict(row))


_GET: Final[LiteralString] = """
    SELECT id, name, url, event_types, workflow_id, key_fingerprint, paused_at, pause_reason,
           secret_generation, rotated_at, revision, updated_at, created_by, created_at
      FROM event_subscriptions WHERE id = $1
"""


async def get(db: Db, subscription_id: UUID) -> Subscription | None:
    """Return a subscription that the caller can read."""
    row = await db.fetchrow(_GET, subscription_id)
    return None if row is None else Subscription(**dict(row))


_HOLD: Final[LiteralString] = """
    SELECT id, name, url, event_types, workflow_id, key_fingerprint, paused_at, pause_reason,
           secret_generation, rotated_at, revision, updated_at, created_by, created_at
      FROM event_subscriptions WHERE id = $1 FOR UPDATE
"""


async def hold(db: Db, subscription_id: UUID) -> Subscription | None:
    """Return a subscription that the caller may change, locked until the transaction ends."""
    row = await db.fetchrow(_HOLD, subscription_id)
    return None if row is None else Subscription(**dict(row))


_LIST: Final[LiteralString] = """
    SELECT id, name, url, event_types, workflow_id, key_fingerprint, paused_at, pause_reason,
           secret_generation, rotated_at, revision, updated_at, created_by, created_at
      FROM event_subscriptions
     WHERE tenant_id = current_tenant_id()
       AND ($1::timestamptz IS NULL OR (created_at, id) < ($1, $2::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $3
"""


async def list_page(
    db: Db, *, before: tuple[datetime, UUID] | None, limit: int
) -> list[Subscription]:
    """Return the tenant's subscriptions, newest first."""
    created_at, row_id = before or (None, None)
    rows = await db.fetch(_LIST, created_at, row_id, limit)
    return [Subscription(**dict(row)) for row in rows]


_UPDATE: Final[LiteralString] = """
    UPDATE event_subscriptions
       SET name = $2, url = $3, event_types = $4, workflow_id = $5, paused_at = $6,
           pause_reason = $7, key_fingerprint = $8, secret_generation = $9, rotated_at = $10,
           revision = revision + 1, updated_at = clock_timestamp()
     WHERE id = $1
 RETURNING id, name, url, event_types, workflow_id, key_fingerprint, paused_at, pause_reason,
           secret_generation, rotated_at, revision, updated_at, created_by, created_at
"""


async def update(db: Db, subscription: Subscription) -> Subscription:
    """Update a locked subscription."""
    row = await db.fetchrow(
        _UPDATE,
        subscription.id,
        subscription.name,
        subscription.url,
        list(subscription.event_types),
        subscription.workflow_id,
        subscription.paused_at,
        subscription.pause_reason,
        subscription.key_fingerprint,
        subscription.secret_generation,
        subscription.rotated_at,
    )
    assert row is not None, "it is held"
    return Subscription(**dict(row))


_DELETE: Final[LiteralString] = "DELETE FROM event_subscriptions WHERE id = $1"


async def delete(db: Db, subscription_id: UUID) -> None:
    """Delete a subscription and its deliveries."""
    await db.execute(_DELETE, subscription_id)


_TEST: Final[LiteralString] = """
    INSERT INTO event_deliveries (id, subscription_id, event_id, event_type, body, due_at)
    VALUES ($1, $2, $3, 'test', $4, clock_timestamp())
 RETURNING id, subscription_id, event_id, event_type, execution_id, body, state, attempts, due_at,
           status_code, error, created_at, updated_at
"""


async def insert_test(
    db: Db, delivery_id: UUID, subscription_id: UUID, event_id: UUID, body: str
) -> Delivery:
    """Add a test delivery."""
    row = await db.fetchrow(_TEST, delivery_id, subscription_id, event_id, body)
    assert row is not None
    return Delivery(**dict(row))


_LIST_DELIVERIES: Final[LiteralString] = """
    SELECT id, subscription_id, event_id, event_type, execution_id, body, state, attempts, due_at,
           status_code, error, created_at, updated_at
      FROM event_deliveries
     WHERE subscription_id = $1 AND (cardinality($2::text[]) = 0 OR state = ANY ($2))
       AND ($3::timestamptz IS NULL OR (created_at, id) < ($3, $4::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $5
"""


async def list_deliveries(
    db: Db,
    subscription_id: UUID,
    *,
    states: Sequence[str],
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Delivery]:
    """Return the deliveries of a subscription, newest first."""
    created_at, row_id = before or (None, None)
    rows = await db.fetch(
        _LIST_DELIVERIES, subscription_id, list(states), created_at, row_id, limit
    )
    return [Delivery(**dict(row)) for row in rows]


_RESEND: Final[LiteralString] = """
    UPDATE event_deliveries SET state = 'pending', attempts = 0, due_at = clock_timestamp()
     WHERE id = $1
 RETURNING id, subscription_id, event_id, event_type, execution_id, body, state, attempts, due_at,
           status_code, error, created_at, updated_at
"""


async def resend(db: Db, delivery_id: UUID) -> Delivery | None:
    """Restart a delivery; None if the caller cannot read it."""
    row = await db.fetchrow(_RESEND, delivery_id)
    return None if row is None else Delivery(**dict(row))
