"""Triggers of callers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import (
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    invalid,
    no_version,
)
from services.kit.idempotency import Replayed, RequestKey, do_once, replay
from services.kit.ids import new_token, token_sha256, uuid7
from services.kit.pg import Db, Pool, as_caller
from services.kit.updates import check_etag, check_mask
from services.orchestrator.domain import firing
from services.orchestrator.storage import definitions, triggers
from services.orchestrator.storage.definitions import WorkflowHead
from services.orchestrator.storage.triggers import Trigger
from services.orchestrator.usecases.start import Starter
from services.orchestrator.usecases.versions import no_alias

log = structlog.get_logger()

TRIGGERS_MAX: Final = 1_000
FIELDS: Final = (
    *("name", "workflow_version", "workflow_alias", "input_json", "payload_input", "filter"),
    "paused",
)
# Checked only when they change: an alias may be deleted and created again.
_NAMING: Final = frozenset({"workflow_version", "workflow_alias"})
# The fields that the inputs of a start depend on.
_STARTING: Final = _NAMING | {"input_json", "payload_input"}
_PREFIX: Final = "qft"  # of secrets, so that people and scanners recognize them


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a caller sets of a trigger."""

    name: str
    workflow_version: int
    workflow_alias: str
    input_json: str
    payload_input: str
    filter: str
    paused: bool = False


async def create(
    starter: Starter,
    caller: Caller,
    workflow_id: UUID,
    given: Given,
    *,
    key: RequestKey[Trigger] | None,
) -> tuple[Trigger, str] | Replayed:
    """Create a trigger; returns it with its secret, of which only a digest is stored."""
    _check(given, FIELDS)
    earlier = await replay(starter.api_pool, caller, key)
    if earlier is not None:
        return earlier
    await _check_inputs(starter, caller, workflow_id, given)
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

    written = await _write(starter.api_pool, caller, key, write)
    return written if isinstance(written, Replayed) else (written, secret)


async def get(pool: Pool, caller: Caller, trigger_id: UUID) -> Trigger:
    """Return a trigger."""
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
    """Return a page of the tenant's triggers."""
    async with as_caller(pool, caller) as db:
        return await triggers.list_page(db, workflow_id=workflow_id, before=before, limit=limit)


async def update(
    starter: Starter,
    caller: Caller,
    trigger_id: UUID,
    given: Given,
    *,
    mask: Sequence[str],
    etag: str,
    key: RequestKey[Trigger] | None,
) -> Trigger | Replayed:
    """Update the fields in the mask."""
    check_mask(mask, FIELDS)
    earlier = await replay(starter.api_pool, caller, key)
    if earlier is not None:
        return earlier

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

    if _STARTING & set(mask):
        before = await get(starter.api_pool, caller, trigger_id)
        wanted = merged(before)
        _check(wanted, mask)
        await _check_inputs(starter, caller, before.workflow_id, wanted)

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

    return await _write(starter.api_pool, caller, key, write)


async def rotate(
    pool: Pool, caller: Caller, trigger_id: UUID, *, etag: str, key: RequestKey[Trigger] | None
) -> tuple[Trigger, str] | Replayed:
    """Rotate the secret of a trigger; the previous one is invalid at once."""
    secret = new_token(_PREFIX)

    async def write(db: Db) -> Trigger:
        await _held(db, trigger_id, etag)
        return await triggers.rotate(db, trigger_id, token_sha256(secret))

    written = await _write(pool, caller, key, write)
    return written if isinstance(written, Replayed) else (written, secret)


async def delete(
    pool: Pool, caller: Caller, trigger_id: UUID, *, etag: str, key: RequestKey[Trigger] | None
) -> Trigger | Replayed:
    """Delete a trigger; returns it as it was."""

    async def write(db: Db) -> Trigger:
        held = await _held(db, trigger_id, etag)
        await triggers.delete(db, trigger_id)
        return held

    return await _write(pool, caller, key, write)


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


async def _check_inputs(starter: Starter, caller: Caller, workflow_id: UUID, given: Given) -> None:
    """Refuse inputs that no start would accept; not checked if the workflow cannot be started."""
    with suppress(FailedPrecondition):
        await starter.check_some(
            caller,
            workflow_id,
            given.workflow_version,
            given.input_json,
            alias=given.workflow_alias,
            payload_input=given.payload_input,
        )


async def _check_version(db: Db, head: WorkflowHead, given: Given) -> None:
    """Refuse a version or alias that the workflow does not have."""
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
