"""Calls of triggers, authenticated by a secret."""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog

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
)
from services.kit.ids import token_sha256
from services.kit.pg import Pool, transaction
from services.orchestrator.domain import firing
from services.orchestrator.storage import trigger_calls
from services.orchestrator.storage.recovery import join_object, split_object
from services.orchestrator.storage.trigger_calls import Armed
from services.orchestrator.usecases.on_behalf import caller_of
from services.orchestrator.usecases.start import Starter

log = structlog.get_logger()

# Compared with for unknown triggers, so that those take as long.
_NOBODYS: Final = "0" * 64
# Larger payloads are decoded in a thread.
_CHECK_INLINE_MAX: Final = 32 * 1024
# Transient errors, which are not recorded at the trigger.
_PASSING: Final = (Unavailable, ResourceExhausted, Conflict)


async def fire(
    starter: Starter,
    trigger_id: UUID,
    *,
    secret: str,
    sent_at: datetime,
    payload: str,
    idempotency_key: str,
) -> UUID | None:
    """Start the workflow of a trigger; returns the run's id, None if its filter does not match.

    An unknown trigger and a wrong secret cannot be told apart, not even by timing; only a caller
    with the secret gets any other error.
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
            # The missing permission is the trigger user's, not the caller's.
            raise FailedPrecondition(error.reason, error.message) from None
        raise told from None
    async with transaction(starter.engine_pool, durable=False) as db:
        await trigger_calls.fired(db, trigger_id)
    log.info("trigger_fired", trigger_id=str(trigger_id), execution_id=str(run.id))
    return run.id


async def _passes(starter: Starter, armed: Armed, payload: str) -> bool:
    """Evaluate the trigger's filter in a thread, and record calls that do not match."""
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
    """Merge the exact texts of the inputs; the trigger's own take precedence."""
    if armed.payload_input:
        firing.check_value(payload, field="payload_json")
        given = {armed.payload_input: payload.encode()}
    else:
        firing.check_object(payload, field="payload_json")
        given = split_object(payload)
    return join_object(given | split_object(armed.input_data))


def _as_sent(error: QflowError, armed: Armed, *, keyed: bool) -> QflowError:
    """Translate an error of the start into fields of the trigger call."""
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
    """Record the error at the trigger, for its user."""
    if isinstance(error, (*_PASSING, AlreadyExists)):
        return
    async with transaction(pool, durable=False) as db:
        await trigger_calls.refused(
            db, trigger_id, reason=error.reason, message=error.message[:1000]
        )
