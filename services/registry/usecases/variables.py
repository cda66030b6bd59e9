"""Variables: plain typed values that nodes of workflows read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog
from qflow.types import (
    Type,
    TypeFormatError,
    ValueTextError,
    check_value,
    contains_named,
    from_text,
    parse_strict,
)

from services.kit.caller import Caller
from services.kit.errors import (
    FailedPrecondition,
    FieldViolation,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    invalid,
    no_such,
)
from services.kit.idempotency import Replayed, RequestKey, do_once, replay, write_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.kit.updates import check_etag
from services.registry.domain.texts import description_from
from services.registry.domain.type_size import type_size
from services.registry.storage import variables as stored
from services.registry.storage.variables import Variable
from services.registry.usecases.workflows import get_visible

log = structlog.get_logger()

VARIABLES_MAX: Final = 1_000
TYPE_PARTS_MAX: Final = 100
_READERS_SHOWN_MAX: Final = 10
_NOBODY: Final = UUID(int=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A variable as given by a caller; an empty type keeps the existing one."""

    name: str
    type_json: str
    value_json: str
    description: str


async def set_variable(
    pool: Pool,
    caller: Caller,
    workflow_id: UUID | None,
    given: Given,
    *,
    etag: str = "",
    key: RequestKey[Variable] | None = None,
    validate_only: bool = False,
) -> Variable | Replayed:
    """Create or update a variable."""
    description_from(given.description)
    declared = _type_from(given.type_json) if given.type_json else None
    value = _value_from(given.value_json)
    if declared is not None:
        await _check_value(declared, value)
    earlier = await replay(pool, caller, key)
    if earlier is not None:
        return earlier

    async def write(db: Db) -> Variable:
        await _check_owner(db, caller, workflow_id)
        await stored.lock_tenant(db, caller.tenant_id)
        before = await stored.get_variable(db, given.name, workflow_id)
        check_etag("variable", before.etag if before else "", etag)
        of = declared or await _kept_type(before, value)
        after = _changed(before, workflow_id, given, of, caller)
        if before is None:
            await _check_room(db)
        if validate_only:
            return after
        if before is None:
            return await stored.insert_variable(db, replace(after, id=uuid7()))
        return await stored.update_variable(db, after)

    if validate_only:
        async with as_caller(pool, caller) as db:
            return await write(db)
    written = await write_once(pool, caller, key, write)
    if isinstance(written, Variable):
        log.info("variable_set", name=written.name, workflow_id=str(workflow_id or ""))
    return written


async def get_variable(pool: Pool, caller: Caller, workflow_id: UUID | None, name: str) -> Variable:
    """Return a variable of the caller's tenant, or of one of its workflows."""
    async with as_caller(pool, caller) as db:
        if workflow_id is not None:
            await get_visible(db, workflow_id)
        found = await stored.get_variable(db, name, workflow_id)
    if found is None:
        raise _not_found(name)
    return found


async def list_variables(
    pool: Pool,
    caller: Caller,
    workflow_id: UUID | None,
    *,
    after: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Variable]:
    """List the tenant's own variables, or those of one of its workflows, newest first."""
    async with as_caller(pool, caller) as db:
        if workflow_id is not None:
            await get_visible(db, workflow_id)
        return await stored.list_variables(db, workflow_id, after=after, limit=limit)


async def delete_variable(
    pool: Pool,
    caller: Caller,
    workflow_id: UUID | None,
    name: str,
    *,
    etag: str = "",
    key: RequestKey[Variable] | None = None,
) -> Variable | Replayed:
    """Delete a variable that no active workflow reads; returns it as it was.

    A workflow activated concurrently may miss it; its start then reports that.
    """

    async def write(db: Db) -> Variable:
        await _check_owner(db, caller, workflow_id)
        await stored.lock_tenant(db, caller.tenant_id)
        before = await stored.get_variable(db, name, workflow_id)
        if before is None:
            raise _not_found(name)
        check_etag("variable", before.etag, etag)
        readers = await stored.find_readers(db, name, workflow_id, limit=_READERS_SHOWN_MAX + 1)
        if readers:
            raise _in_use(name, readers)
        await stored.delete_variable(db, before.id)
        return before

    written = await do_once(pool, caller, key, write)
    if isinstance(written, Variable):
        log.info("variable_deleted", name=name, workflow_id=str(workflow_id or ""))
    return written


async def _check_owner(db: Db, caller: Caller, workflow_id: UUID | None) -> None:
    """Raise if the caller may only read the workflow."""
    if workflow_id is None:
        return
    workflow = await get_visible(db, workflow_id)
    if workflow.tenant_id != caller.tenant_id:
        raise PermissionDenied(
            "NOT_YOURS", "this workflow may be read, not changed; make a copy of your own"
        )


def _type_from(text: str) -> Type:
    try:
        of = from_text(text)
    except TypeFormatError as error:
        raise invalid("type_json", "TYPE_INVALID", str(error)) from None
    opaque = contains_named(of)
    if opaque is not None:
        raise invalid(
            "type_json", "TYPE_NOT_CARRIED", f"values of {opaque} cannot be written as JSON"
        )
    if type_size(of) > TYPE_PARTS_MAX:
        raise invalid("type_json", "TYPE_TOO_LARGE", f"has more than {TYPE_PARTS_MAX} parts")
    return of


def _value_from(text: str) -> object:
    try:
        return parse_strict(text)
    except ValueTextError as error:
        raise invalid("value_json", "VALUE_INVALID", str(error)) from None


async def _check_value(of: Type, value: object) -> None:
    # Checking 64 KiB of values against a union of up to a hundred types takes long: in a thread.
    fault = await asyncio.to_thread(check_value, of, value)
    if fault is not None:
        where = f"{fault.path}: " if fault.path else ""
        raise invalid("value_json", "VALUE_NOT_OF_TYPE", f"{where}{fault.message}")


async def _kept_type(before: Variable | None, value: object) -> Type:
    """Return the type of the existing variable, after checking the new value against it."""
    if before is None:
        raise invalid("type_json", "TYPE_MISSING", "a new variable needs a type")
    await _check_value(before.type, value)
    return before.type


async def _check_room(db: Db) -> None:
    if await stored.count_variables(db) >= VARIABLES_MAX:
        raise ResourceExhausted(
            "VARIABLES_TOO_MANY", f"a tenant has at most {VARIABLES_MAX} variables; delete one"
        )


def _changed(
    before: Variable | None, workflow_id: UUID | None, given: Given, of: Type, caller: Caller
) -> Variable:
    now = datetime.now(UTC)
    base = before or Variable(
        id=_NOBODY,
        workflow_id=workflow_id,
        name=given.name,
        type=of,
        value_json=given.value_json,
        description=given.description,
        revision=1,
        created_by=caller.user_id,
        created_at=now,
        updated_by=caller.user_id,
        updated_at=now,
    )
    return replace(
        base,
        type=of,
        value_json=given.value_json,
        description=given.description,
        updated_by=caller.user_id,
    )


def _in_use(name: str, readers: list[tuple[UUID, str]]) -> FailedPrecondition:
    shown = ", ".join(f"{title} ({key})" for key, title in readers[:_READERS_SHOWN_MAX])
    more = ", …" if len(readers) > _READERS_SHOWN_MAX else ""
    fault = f"the variable {name} is read by active workflows: {shown}{more}"
    return FailedPrecondition(
        "VARIABLE_IN_USE",
        f"{fault}; deactivate them, or connect their inputs to something else",
        fields=[FieldViolation("name", fault, "VARIABLE_IN_USE")],
        resource=("variable", name),
    )


def _not_found(name: str) -> NotFound:
    fault = "there is no such variable; ListVariables shows those there are"
    return no_such("name", name, "VARIABLE_NOT_FOUND", fault, resource=("variable", name))
