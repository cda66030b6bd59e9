"""Event subscriptions of callers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import (
    NotFound,
    ResourceExhausted,
    invalid,
)
from services.kit.idempotency import Replayed, RequestKey, do_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.kit.updates import check_etag, check_mask
from services.kit.web_address import Refused, check_url
from services.orchestrator.domain import webhook
from services.orchestrator.storage import definitions
from services.orchestrator.storage import event_subscriptions as rows
from services.orchestrator.storage.event_subscriptions import Delivery, Subscription

log = structlog.get_logger()

SUBSCRIPTIONS_MAX: Final = 100
FIELDS: Final = ("name", "url", "event_types", "workflow_id", "paused", "pause_reason")


@dataclass(frozen=True, slots=True)
class Subscribing:
    """The dependencies of these use cases."""

    pool: Pool  # with row-level security
    key: bytes
    loopback: bool  # whether URLs may refer to this machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a caller sets of a subscription."""

    name: str
    url: str
    event_types: Sequence[str]
    workflow_id: UUID | None
    paused: bool = False
    pause_reason: str = ""


async def create(
    deps: Subscribing, caller: Caller, given: Given, *, key: RequestKey[Subscription] | None
) -> tuple[Subscription, str] | Replayed:
    """Create a subscription; returns it with its secret, which is never shown again."""
    _check(deps, given, FIELDS)
    now = datetime.now(UTC)
    made = Subscription(
        id=uuid7(),
        name=given.name,
        url=given.url,
        event_types=given.event_types,
        workflow_id=given.workflow_id,
        key_fingerprint=webhook.fingerprint(deps.key),
        created_by=caller.user_id,
        created_at=now,
        updated_at=now,
    )

    async def write(db: Db) -> Subscription:
        await _check_workflow(db, given.workflow_id)
        await rows.lock_tenant(db, caller.tenant_id)
        if await rows.count(db) >= SUBSCRIPTIONS_MAX:
            raise ResourceExhausted(
                "SUBSCRIPTIONS_TOO_MANY",
                f"a tenant has at most {SUBSCRIPTIONS_MAX} subscriptions; delete one",
            )
        return await rows.insert(db, made)

    return await _with_secret(deps, caller, key, write)


async def get(pool: Pool, caller: Caller, subscription_id: UUID) -> Subscription:
    """Return a subscription."""
    async with as_caller(pool, caller) as db:
        found = await rows.get(db, subscription_id)
    if found is None:
        raise _missing(subscription_id)
    return found


async def list_subscriptions(
    pool: Pool, caller: Caller, *, before: tuple[datetime, UUID] | None, limit: int
) -> list[Subscription]:
    """Return a page of the tenant's subscriptions."""
    async with as_caller(pool, caller) as db:
        return await rows.list_page(db, before=before, limit=limit)


async def update(
    deps: Subscribing,
    caller: Caller,
    subscription_id: UUID,
    given: Given,
    *,
    mask: Sequence[str],
    etag: str,
    key: RequestKey[Subscription] | None,
) -> Subscription | Replayed:
    """Update the fields in the mask."""
    check_mask(mask, FIELDS)
    _check(deps, given, mask)

    def changed(held: Subscription) -> Subscription:
        taken = {name: getattr(given, name) for name in mask if name != "paused"}
        after = replace(held, **taken)
        if "paused" not in mask:
            return after
        if given.paused:
            return replace(after, paused_at=held.paused_at or datetime.now(UTC))
        return replace(after, paused_at=None, pause_reason="")

    async def write(db: Db) -> Subscription:
        held = await _held(db, subscription_id, etag)
        if "workflow_id" in mask:
            await _check_workflow(db, given.workflow_id)
        await rows.wake(db)
        return await rows.update(db, changed(held))

    return await _write(deps.pool, caller, key, write)


async def delete(
    pool: Pool,
    caller: Caller,
    subscription_id: UUID,
    *,
    etag: str,
    key: RequestKey[Subscription] | None,
) -> Subscription | Replayed:
    """Delete a subscription; returns it as it was."""

    async def write(db: Db) -> Subscription:
        held = await _held(db, subscription_id, etag)
        await rows.delete(db, subscription_id)
        return held

    return await _write(pool, caller, key, write)


async def rotate(
    deps: Subscribing,
    caller: Caller,
    subscription_id: UUID,
    *,
    etag: str,
    key: RequestKey[Subscription] | None,
) -> tuple[Subscription, str] | Replayed:
    """Rotate the secret; the previous one also signs for a day, if derived from the same key."""
    known = webhook.fingerprint(deps.key)

    async def write(db: Db) -> Subscription:
        held = await _held(db, subscription_id, etag)
        same = held.key_fingerprint == known
        after = replace(
            held,
            secret_generation=held.secret_generation + 1,
            rotated_at=datetime.now(UTC) if same else None,
            key_fingerprint=known,
        )
        return await rows.update(db, after)

    return await _with_secret(deps, caller, key, write)


async def send_test(
    pool: Pool, caller: Caller, subscription_id: UUID, *, key: RequestKey[Delivery] | None
) -> Delivery | Replayed:
    """Send a test event."""
    body = {
        "type": "test",
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "data": {},
    }

    async def write(db: Db) -> Delivery:
        await _held(db, subscription_id, "")
        await rows.wake(db)
        return await rows.insert_test(db, uuid7(), subscription_id, uuid7(), json.dumps(body))

    return await do_once(pool, caller, key, write)


async def list_deliveries(
    pool: Pool,
    caller: Caller,
    subscription_id: UUID,
    *,
    states: Sequence[str],
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Delivery]:
    """Return a page of a subscription's deliveries."""
    async with as_caller(pool, caller) as db:
        return await rows.list_deliveries(
            db, subscription_id, states=states, before=before, limit=limit
        )


async def resend(
    pool: Pool, caller: Caller, delivery_id: UUID, *, key: RequestKey[Delivery] | None
) -> Delivery | Replayed:
    """Restart a delivery."""

    async def write(db: Db) -> Delivery:
        found = await rows.resend(db, delivery_id)
        if found is None:
            raise NotFound(
                "DELIVERY_NOT_FOUND",
                "no such delivery; ListEventDeliveries shows those of a subscription",
                resource=("event_delivery", str(delivery_id)),
            )
        await rows.wake(db)
        return found

    return await do_once(pool, caller, key, write)


async def _write(
    pool: Pool,
    caller: Caller,
    key: RequestKey[Subscription] | None,
    write: Callable[[Db], Awaitable[Subscription]],
) -> Subscription | Replayed:
    written = await do_once(pool, caller, key, write)
    if isinstance(written, Subscription):
        log.info("event_subscription_changed", subscription_id=str(written.id))
    return written


async def _with_secret(
    deps: Subscribing,
    caller: Caller,
    key: RequestKey[Subscription] | None,
    write: Callable[[Db], Awaitable[Subscription]],
) -> tuple[Subscription, str] | Replayed:
    """Write, and return the secret to the first call only: it is not stored with the response."""
    written = await _write(deps.pool, caller, key, write)
    if isinstance(written, Replayed):
        return written
    secret = webhook.secret_of(deps.key, written.id, written.secret_generation)
    return written, webhook.shown(secret)


async def _held(db: Db, subscription_id: UUID, etag: str) -> Subscription:
    held = await rows.hold(db, subscription_id)
    if held is None:
        raise _missing(subscription_id)
    check_etag("subscription", held.etag, etag)
    return held


async def _check_workflow(db: Db, workflow_id: UUID | None) -> None:
    if workflow_id is not None and await definitions.get_head(db, workflow_id) is None:
        raise NotFound(
            "WORKFLOW_NOT_FOUND",
            "no such workflow; ListWorkflows shows those there are",
            resource=("workflow", str(workflow_id)),
        )


def _check(deps: Subscribing, given: Given, fields: Sequence[str]) -> None:
    if "name" in fields and not given.name.strip():
        raise invalid("name", "NAME_MISSING", "must have 1 to 255 characters")
    if "event_types" in fields and not given.event_types:
        raise invalid("event_types", "EVENT_TYPES_MISSING", "must name at least one")
    if "url" in fields:
        try:
            check_url(given.url, loopback=deps.loopback)
        except Refused as refused:
            raise invalid("url", "URL_REFUSED", str(refused)) from None


def _missing(subscription_id: UUID) -> NotFound:
    return NotFound(
        "SUBSCRIPTION_NOT_FOUND",
        "no such subscription; ListEventSubscriptions shows those there are",
        resource=("event_subscription", str(subscription_id)),
    )
