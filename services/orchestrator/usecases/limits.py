"""Limits of a tenant; the engine knows of a change before the call returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.cel import ExpressionError, compile_new
from services.kit.cel_shape import members_of
from services.kit.errors import (
    AlreadyExists,
    FieldViolation,
    InvalidArgument,
    ResourceExhausted,
    no_such,
)
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller, transaction
from services.kit.updates import check_etag
from services.orchestrator.domain.limits import INPUT
from services.orchestrator.engine.engine import Engine
from services.orchestrator.storage import definitions, limit_slots, quota_usage
from services.orchestrator.storage import limits as stored
from services.orchestrator.storage.limits import StoredLimit, Subject

log = structlog.get_logger()

LIMITS_MAX: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """The amounts of a limit, and the request that sets them."""

    max_running: int | None
    max_starts: int | None
    period_ms: int | None
    key_expression: str
    request_id: UUID | None
    request_digest: str


async def read_limits(engine: Engine, pool: Pool) -> None:
    """Reload the limits and quotas into the engine."""
    async with engine.limits_reading:
        engine.limits_changed = False
        try:
            async with transaction(pool) as db:
                limits = await limit_slots.get_limits(db)
                quotas = await quota_usage.get_quotas(db)
        except BaseException:
            engine.limits_changed = True
            raise
        engine.quotas_known(quotas)
        engine.limits_known(limits)


class LimitKeeper:
    """Manages limits for callers."""

    def __init__(self, api_pool: Pool, engine_pool: Pool, engine: Engine) -> None:
        self._api_pool = api_pool
        self._engine_pool = engine_pool
        self._engine = engine

    async def create(
        self,
        caller: Caller,
        name: str,
        allowed: Allowed,
        *,
        subject: Subject,
    ) -> StoredLimit:
        """Create a limit."""
        _check_key(allowed.key_expression)
        async with as_caller(self._api_pool, caller) as db:
            await stored.lock_tenant(db, caller.tenant_id)
            before = await stored.get_limit(db, name)
            if before is not None:
                if _is_repeated(before, allowed):
                    return before
                raise _exists(name)
            await _check_subject(db, subject)
            await _check_inputs(db, subject.workflow_id, allowed.key_expression)
            if await stored.count_limits(db) >= LIMITS_MAX:
                fault = f"a tenant has at most {LIMITS_MAX} limits; delete one"
                raise ResourceExhausted("LIMITS_TOO_MANY", fault)
            made = await stored.insert_limit(db, _new(caller, name, allowed, subject))
            if made is None:
                raise _exists(name)
        log.info("limit_created", name=name, limit_id=str(made.id))
        await self._heard()
        return made

    async def get(self, caller: Caller, name: str) -> StoredLimit:
        """Return a limit of the caller's tenant."""
        async with as_caller(self._api_pool, caller) as db:
            return await _get(db, name)

    async def list(
        self, caller: Caller, *, after: tuple[datetime, UUID] | None, limit: int
    ) -> list[StoredLimit]:
        """List the limits of the caller's tenant, newest first."""
        async with as_caller(self._api_pool, caller) as db:
            return await stored.list_limits(db, after=after, limit=limit)

    async def update(
        self, caller: Caller, name: str, allowed: Allowed, *, etag: str
    ) -> StoredLimit:
        """Change the amounts of a limit."""
        _check_key(allowed.key_expression)
        async with as_caller(self._api_pool, caller) as db:
            await stored.lock_tenant(db, caller.tenant_id)
            before = await _get(db, name)
            if _is_repeated(before, allowed):
                return before
            check_etag("limit", before.etag, etag)
            await _check_inputs(db, before.workflow_id, allowed.key_expression)
            await stored.lock(db, before.id)
            after = await stored.update_limit(
                db,
                replace(
                    before,
                    max_running=allowed.max_running,
                    max_starts=allowed.max_starts,
                    period_ms=allowed.period_ms,
                    key_expression=allowed.key_expression,
                    request_id=allowed.request_id,
                    request_digest=allowed.request_digest,
                ),
            )
        log.info("limit_changed", name=name, limit_id=str(after.id))
        await self._heard()
        return after

    async def delete(self, caller: Caller, name: str, *, etag: str) -> None:
        """Delete a limit; what waits for it continues."""
        async with as_caller(self._api_pool, caller) as db:
            await stored.lock_tenant(db, caller.tenant_id)
            before = await _get(db, name)
            check_etag("limit", before.etag, etag)
            await stored.lock(db, before.id)
            await stored.delete_limit(db, before.id)
        log.info("limit_deleted", name=name, limit_id=str(before.id))
        await self._heard()

    async def _heard(self) -> None:
        """Reload limits here, and notify the other members."""
        await read_limits(self._engine, self._engine_pool)
        async with transaction(self._engine_pool) as db:
            await limit_slots.tell_changed(db)


def _new(caller: Caller, name: str, allowed: Allowed, subject: Subject) -> StoredLimit:
    now = datetime.now(UTC)
    return StoredLimit(
        id=uuid7(),
        name=name,
        workflow_id=subject.workflow_id,
        node_id=subject.node_id,
        owner_id=subject.owner_id,
        per_owner=subject.per_owner,
        max_running=allowed.max_running,
        max_starts=allowed.max_starts,
        period_ms=allowed.period_ms,
        key_expression=allowed.key_expression,
        revision=1,
        request_id=allowed.request_id,
        request_digest=allowed.request_digest,
        created_by=caller.user_id,
        created_at=now,
        updated_by=caller.user_id,
        updated_at=now,
    )


def _check_key(text: str) -> None:
    try:
        if text:
            compile_new(text, {INPUT})
    except ExpressionError as error:
        raise _no_key(error) from None


async def _check_inputs(db: Db, workflow_id: UUID | None, text: str) -> None:
    """Refuse a key of inputs that the workflow does not have: all its runs would share a count."""
    head = await definitions.get_head(db, workflow_id) if workflow_id and text else None
    definition = head and await definitions.get_definition(db, head.id, head.version)
    if not definition:
        return
    names = [each["name"] for each in definition.input_types]
    for read in members_of(text, INPUT):
        if read.text not in names:
            there = ", ".join(names) or "none"
            fault = f"the workflow has no input {read.text!r} (there: {there})"
            raise _no_key(ExpressionError(fault, read.place + 1))


def _no_key(error: ExpressionError) -> InvalidArgument:
    violation = FieldViolation("key_expression", str(error), "EXPRESSION_INVALID")
    return InvalidArgument("EXPRESSION_INVALID", f"key_expression: {error}", fields=[violation])


async def _check_subject(db: Db, subject: Subject) -> None:
    seen = await stored.sees(db, subject)
    for field, kind, of, fault in (
        ("workflow", "workflow", subject.workflow_id, "there is no such workflow to read"),
        ("node", "node", subject.node_id, "there is no such node to read"),
        ("owner", "member", subject.owner_id, "no such user is in the tenant; name one who is"),
    ):
        if not seen[field]:
            resource = "user" if kind == "member" else kind, str(of)
            raise no_such(f"{field}_id", of, f"{kind.upper()}_NOT_FOUND", fault, resource=resource)


def _is_repeated(before: StoredLimit, allowed: Allowed) -> bool:
    if allowed.request_id is None or before.request_id != allowed.request_id:
        return False
    if before.request_digest != allowed.request_digest:
        raise AlreadyExists(
            "REQUEST_ID_REUSED",
            "request_id was used for something else; use a new one",
            fields=[FieldViolation("request_id", "was used for another request")],
        )
    return True


async def _get(db: Db, name: str) -> StoredLimit:
    found = await stored.get_limit(db, name)
    if found is None:
        fault = "there is no such limit; ListLimits shows those there are"
        raise no_such("name", name, "LIMIT_NOT_FOUND", fault, resource=("limit", name))
    return found


def _exists(name: str) -> AlreadyExists:
    return AlreadyExists(
        "LIMIT_EXISTS",
        f"limit {name} exists already; change it, or use another name",
        fields=[FieldViolation("name", "is taken", "LIMIT_EXISTS")],
        resource=("limit", name),
    )
