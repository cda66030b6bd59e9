"""Triggers: made and changed by callers, fired by whoever shows a secret."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    QflowError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    invalid,
    no_version,
)
from services.kit.idempotency import Replayed, RequestKey, do_once
from services.kit.ids import new_token, token_sha256, uuid7
from services.kit.pg import Db, Pool, as_caller, transaction
from services.kit.updates import check_etag, check_mask
from services.orchestrator.domain import firing
from services.orchestrator.storage import definitions, trigger_calls, triggers
from services.orchestrator.storage.definitions import WorkflowHead
from services.orchestrator.storage.recovery import split_object
from services.orchestrator.storage.trigger_calls import Armed
from services.orchestrator.storage.triggers import Trigger
from services.orchestrator.usecases.on_behalf import caller_of
from services.orchestrator.usecases.start import Starter
from services.orchestrator.usecases.versions import no_alias

log = structlog.get_logger()

TRIGGERS_MAX: Final = 1_000
FIELDS: Final = (
    *("name", "workflow_version", "workflow_alias", "input_json", "payload_input", "filter"),
    "paused",
)
# Held against the workflow only where they change: an alias may go since, and come again.
_NAMING: Final = frozenset({"workflow_version", "workflow_alias"})
_PREFIX: Final = "qft"  # of secrets: tells people, and scanners, what they look at
# Compared with where there is no trigger: that must take as long.
_NOBODYS: Final = "0" * 64
# Of payloads that are read beside the loop.
_CHECK_INLINE_MAX: Final = 32 * 1024
# What passes by itself is no fault of the trigger.
_PASSING: Final = (Unavailable, ResourceExhausted, Conflict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a caller says of a trigger."""

    name: str
    workflow_version: int
    workflow_alias: str
    input_json: str
    payload_input: str
    filter: str
    paused: bool = False


async def create(
    pool: Pool,
    caller: Caller,
    workflow_id: UUID,
    given: Given,
    *,
    key: RequestKey[Trigger] | None,
) -> tuple[Trigger, str] | Replayed:
    """Make a trigger; gives its secret, of which only the digest is kept."""
    _check(given, FIELDS)
    secret = new_token(_PREFIX)
    now = datetime.now(UTC)
    made = Trigger(
        id=uuid7(),
        workflow_id=workflow_id,
        name=given.name,
        workflow_version=given.workflow_version,
        workflow_alias=given.workflow_alias,
        input_data=given.input_json,
        payload_input=given.payload_input,
        filter=given.filter,
        created_by=caller.user_id,
        created_at=now,
        updated_at=now,
    )

    async def write(db: Db) -> Trigger:
        head = await definitions.get_head(db, workflow_id)
        if head is None:
            raise NotFound(
                "WORKFLOW_NOT_FOUND",
                "no such workflow; ListWorkflows shows those you may start",
                resource=("workflow", str(workflow_id)),
            )
        await _check_version(db, head, given)
        await triggers.lock_tenant(db, caller.tenant_id)
        if await triggers.count(db) >= TRIGGERS_MAX:
            raise ResourceExhausted(
                "TRIGGERS_TOO_MANY", f"a tenant has at most {TRIGGERS_MAX} triggers; delete one"
            )
        return await triggers.insert(db, made, token_sha256(secret))

    written = await _write(pool, caller, key, write)
    return written if isinstance(written, Replayed) else (written, secret)


async def get(pool: Pool, caller: Caller, trigger_id: UUID) -> Trigger:
    """Give one trigger."""
    async with as_caller(pool, caller) as db:
        found = await triggers.get(db, trigger_id)
    if found is None:
        raise _missing(trigger_id)
    return found


async def list_triggers(
    pool: Pool,
    caller: Caller,
    *,
    workflow_id: UUID | None,
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Trigger]:
    """Give a page of the tenant's triggers."""
    async with as_caller(pool, caller) as db:
        return await triggers.list_page(db, workflow_id=workflow_id, before=before, limit=limit)


async def update(
    pool: Pool,
    caller: Caller,
    trigger_id: UUID,
    given: Given,
    *,
    mask: Sequence[str],
    etag: str,
    key: RequestKey[Trigger] | None,
) -> Trigger | Replayed:
    """Take what the mask names."""
    check_mask(mask, FIELDS)

    def merged(held: Trigger) -> Given:
        before = Given(
            name=held.name,
            workflow_version=held.workflow_version,
            workflow_alias=held.workflow_alias,
            input_json=held.input_data,
            payload_input=held.payload_input,
            filter=held.filter,
            paused=held.paused_at is not None,
        )
        return replace(before, **{name: getattr(given, name) for name in mask})

    async def write(db: Db) -> Trigger:
        held = await _held(db, trigger_id, etag)
        said = merged(held)
        _check(said, mask)
        head = await definitions.get_head(db, held.workflow_id)
        if head is not None and _NAMING & set(mask):
            await _check_version(db, head, said)
        paused_at = (held.paused_at or datetime.now(UTC)) if said.paused else None
        after = replace(
            held,
            name=said.name,
            workflow_version=said.workflow_version,
            workflow_alias=said.workflow_alias,
            input_data=said.input_json,
            payload_input=said.payload_input,
            filter=said.filter,
            paused_at=paused_at,
        )
        return await triggers.update(db, after)

    return await _write(pool, caller, key, write)


async def rotate(
    pool: Pool, caller: Caller, trigger_id: UUID, *, etag: str, key: RequestKey[Trigger] | None
) -> tuple[Trigger, str] | Replayed:
    """Give a trigger another secret; the one before ends at once."""
    secret = new_token(_PREFIX)

    async def write(db: Db) -> Trigger:
        await _held(db, trigger_id, etag)
        return await triggers.rotate(db, trigger_id, token_sha256(secret))

    written = await _write(pool, caller, key, write)
    return written if isinstance(written, Replayed) else (written, secret)


async def delete(
    pool: Pool, caller: Caller, trigger_id: UUID, *, etag: str, key: RequestKey[Trigger] | None
) -> Trigger | Replayed:
    """Remove a trigger; gives it as it was."""

    async def write(db: Db) -> Trigger:
        held = await _held(db, trigger_id, etag)
        await triggers.delete(db, trigger_id)
        return held

    return await _write(pool, caller, key, write)


async def fire(
    starter: Starter,
    trigger_id: UUID,
    *,
    secret: str,
    sent_at: datetime,
    payload: str,
    idempotency_key: str,
) -> UUID | None:
    """Start the workflow of a trigger; gives the run's id, None where its filter does not hold.

    A trigger that is not there and a wrong secret are told by nothing, not even by time; only
    whoever has the secret learns anything more.
    """
    async with transaction(starter.engine_pool) as db:
        armed = await trigger_calls.find(db, trigger_id)
    expected = armed.secret_sha256 if armed else _NOBODYS
    if not hmac.compare_digest(expected, token_sha256(secret)) or armed is None:
        raise Unauthenticated("TRIGGER_REFUSED", "there is no such trigger, or the secret is wrong")
    firing.check_time(sent_at, armed.now)
    if armed.is_paused:
        raise FailedPrecondition("TRIGGER_PAUSED", "the trigger is paused")
    payload = payload or "{}"
    if len(payload) > _CHECK_INLINE_MAX:
        text = await asyncio.to_thread(_inputs, armed, payload)
    else:
        text = _inputs(armed, payload)
    if not await _passes(starter, armed, payload):
        return None
    request_id = firing.request_id(
        trigger_id, idempotency_key=idempotency_key, sent_at=sent_at, payload=payload
    )
    try:
        caller = await caller_of(starter.engine_pool, armed.created_by, armed.tenant_id)
        run, *_ = await starter.start(
            caller,
            armed.workflow_id,
            armed.workflow_version,
            text,
            request_id,
            alias=armed.workflow_alias,
        )
    except QflowError as error:
        told = _as_sent(error, armed, keyed=bool(idempotency_key))
        await _note_refusal(starter.engine_pool, trigger_id, told)
        if isinstance(error, PermissionDenied | NotFound):
            # Whoever fires is not the user who lacks it.
            raise FailedPrecondition(error.reason, error.message) from None
        raise told from None
    async with transaction(starter.engine_pool, durable=False) as db:
        await trigger_calls.fired(db, trigger_id)
    log.info("trigger_fired", trigger_id=str(trigger_id), execution_id=str(run.id))
    return run.id


async def _passes(starter: Starter, armed: Armed, payload: str) -> bool:
    """Work the trigger's filter out, beside the loop, and count what does not pass."""
    if not armed.filter:
        return True
    try:
        if await asyncio.to_thread(firing.passes, armed.filter, payload):
            return True
    except InvalidArgument as error:
        await _note_refusal(starter.engine_pool, armed.id, error)
        raise
    async with transaction(starter.engine_pool, durable=False) as db:
        await trigger_calls.filtered(db, armed.id)
    return False


def _inputs(armed: Armed, payload: str) -> str:
    """Put the inputs of a run together of exact texts: the trigger's own stand first."""
    if armed.payload_input:
        firing.check_value(payload, field="payload_json")
        given = {armed.payload_input: payload.encode()}
    else:
        firing.check_object(payload, field="payload_json")
        given = split_object(payload)
    values = given | split_object(armed.input_data)
    fields = [f"{json.dumps(name)}:{text.decode()}" for name, text in values.items()]
    return "{" + ",".join(fields) + "}"


def _as_sent(error: QflowError, armed: Armed, *, keyed: bool) -> QflowError:
    """Tell a refusal of a start in the words of whoever fires, who sees no field of a start."""
    if error.reason == "REQUEST_ID_REUSED":
        fault = (
            "idempotency_key was used with another payload; use a new one"
            if keyed
            else "the same call started something else before the trigger was changed; send it anew"
        )
        started = error.facts.get("execution_id", "")
        return AlreadyExists(error.reason, fault, resource=error.resource, execution_id=started)
    if not isinstance(error, InvalidArgument):
        return error
    own = split_object(armed.input_data)
    fields, message = [], error.message
    for each in error.fields:
        place = firing.place_of(each.field, payload_input=armed.payload_input, own=own)
        message = message.replace(f"{each.field}:", f"{place}:")
        fields.append(replace(each, field=place))
    return InvalidArgument(error.reason, message, fields=fields)


async def _note_refusal(pool: Pool, trigger_id: UUID, error: QflowError) -> None:
    """Show at the trigger what its user has to mend."""
    if isinstance(error, (*_PASSING, AlreadyExists)):
        return
    async with transaction(pool, durable=False) as db:
        await trigger_calls.refused(
            db, trigger_id, reason=error.reason, message=error.message[:1000]
        )


async def _write(
    pool: Pool,
    caller: Caller,
    key: RequestKey[Trigger] | None,
    write: Callable[[Db], Awaitable[Trigger]],
) -> Trigger | Replayed:
    written = await do_once(pool, caller, key, write)
    if isinstance(written, Trigger):
        log.info("trigger_changed", trigger_id=str(written.id))
    return written


async def _held(db: Db, trigger_id: UUID, etag: str) -> Trigger:
    held = await triggers.hold(db, trigger_id)
    if held is None:
        raise _missing(trigger_id)
    check_etag("trigger", held.etag, etag)
    return held


def _check(given: Given, fields: Sequence[str]) -> None:
    if "name" in fields and not given.name.strip():
        raise invalid("name", "NAME_MISSING", "must have 1 to 255 characters")
    if given.workflow_alias and given.workflow_version:
        fault = "name a version or an alias, not both"
        raise invalid("workflow_alias", "VERSION_NAMED_TWICE", fault)
    if "filter" in fields:
        firing.check_filter(given.filter)
    if "input_json" in fields:
        firing.check_object(given.input_json, field="input_json")


async def _check_version(db: Db, head: WorkflowHead, given: Given) -> None:
    """Refuse what names no version of the workflow: nothing that fires could start it."""
    version, alias = given.workflow_version, given.workflow_alias
    if version > head.version:
        raise no_version(
            "workflow", head.id, version, newest=head.version, field="workflow_version"
        )
    if alias and await definitions.get_aliased(db, head.id, alias) is None:
        raise no_alias(alias, workflow_id=head.id)


def _missing(trigger_id: UUID) -> NotFound:
    return NotFound(
        "TRIGGER_NOT_FOUND",
        "no such trigger; ListTriggers shows those there are",
        resource=("trigger", str(trigger_id)),
    )
