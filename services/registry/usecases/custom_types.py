"""Custom types: defined by callers, used by name in sources, copied into node versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog
from qflow.types import Type, TypeFormatError, contains_named, from_json, to_json

from services.kit.caller import Caller
from services.kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    invalid,
)
from services.kit.idempotency import Replayed, RequestKey, do_once, replay, write_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.kit.updates import check_etag
from services.registry.domain.custom_type import RESERVED, Written, record_of
from services.registry.domain.json_schema import SchemaError, type_from_schema
from services.registry.domain.source import SourceReport
from services.registry.domain.texts import description_from
from services.registry.gateways.source_analyzer.child import SourceAnalyzer
from services.registry.storage import custom_types
from services.registry.storage.custom_types import CustomType

log = structlog.get_logger()

_NOBODY: Final = UUID(int=0)
# Read in front of annotations that come without a source, so that typing's names resolve.
_PRELUDE: Final = """from typing import *
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID
def read(
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Types:
    """What the use cases of types depend on."""

    pool: Pool
    analyzer: SourceAnalyzer
    python_version: str  # the grammar that annotations are parsed with


async def read_with_custom_types(
    pool: Pool,
    analyzer: SourceAnalyzer,
    caller: Caller,
    code: str,
    *,
    main_function: str,
    python_version: str,
) -> tuple[SourceReport, tuple[CustomType, ...]]:
    """Analyze a source; names it does not define may be custom types of the caller's tenant.

    Only a source with such names is analyzed a second time.
    """
    analysis = await analyzer.analyze(
        code, main_function=main_function, python_version=python_version
    )
    if not analysis.report.unknown_types:
        return analysis.report, ()
    async with as_caller(pool, caller) as db:
        known = await custom_types.find_types(db, caller.tenant_id, analysis.report.unknown_types)
    if not known:
        return analysis.report, ()
    analysis = await analyzer.analyze(
        code,
        main_function=main_function,
        python_version=python_version,
        types={name: each.type for name, each in known.items()},
    )
    return analysis.report, tuple(known[name] for name in analysis.report.custom_types)


async def read_expressions(
    deps: Types, caller: Caller, expressions: Sequence[str], *, fields: Sequence[str], own: str = ""
) -> list[Type]:
    """Parse type annotations; `fields` holds the request field of each, for errors.

    `own` is the name of the type being defined, which must not contain itself.
    """
    lines = [f"    p{at}: {each!r}," for at, each in enumerate(expressions)]
    code = _PRELUDE + "\n".join([*lines, ") -> None: ..."])
    report, used = await read_with_custom_types(
        deps.pool,
        deps.analyzer,
        caller,
        code,
        main_function="read",
        python_version=deps.python_version,
    )
    first = _PRELUDE.count("\n") + 1
    violations = [
        FieldViolation(
            fields[min(max(0, each.line - first), len(fields) - 1)], each.message, each.code
        )
        for each in report.diagnostics
        if each.severity == "error"
    ]
    if own and own in (*report.unknown_types, *(each.name for each in used)):
        raise invalid(fields[0], "TYPE_RECURSIVE", f"the type {own} contains itself")
    if violations or report.function is None:
        first_one = violations[0]
        raise InvalidArgument(
            first_one.reason, f"{first_one.field}: {first_one.description}", fields=violations
        )
    return [each.type for each in report.function.inputs]


async def create_custom_type(
    deps: Types,
    caller: Caller,
    *,
    name: str,
    description: str,
    written: Written,
    key: RequestKey[CustomType] | None = None,
    validate_only: bool = False,
    guard: Callable[[CustomType], None] = lambda _: None,
) -> CustomType | Replayed:
    """Create a custom type in the caller's tenant."""
    if name in RESERVED:
        raise invalid("name", "TYPE_NAME_RESERVED", f"{name} already has a meaning in Python")
    description_from(description)
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    now = datetime.now(UTC)
    custom = CustomType(
        id=_NOBODY if validate_only else uuid7(),
        name=name,
        description=description,
        written=written,
        type=await _defined(deps, caller, name, written),
        version=1,
        node_count=0,
        tenant_id=caller.tenant_id,
        created_by=caller.user_id,
        created_at=now,
        updated_at=now,
    )
    guard(custom)
    if validate_only:
        return custom

    async def write(db: Db) -> CustomType:
        moments = await custom_types.insert_type(db, custom)
        if moments is None:
            raise AlreadyExists(
                "CUSTOM_TYPE_EXISTS",
                f"there is a custom type {name} already; change that, or take another name",
                fields=[FieldViolation("name", "is taken", "CUSTOM_TYPE_EXISTS")],
            )
        return replace(custom, created_at=moments[0], updated_at=moments[1])

    stored = await write_once(deps.pool, caller, key, write)
    if isinstance(stored, CustomType):
        log.info("custom_type_created", custom_type_id=str(stored.id))
    return stored


async def get_custom_type(pool: Pool, caller: Caller, type_id: UUID) -> CustomType:
    """Return a type; another tenant's is reported as not found."""
    async with as_caller(pool, caller) as db:
        return await _find(db, type_id)


async def list_custom_types(
    pool: Pool, caller: Caller, *, after: tuple[datetime, UUID] | None, limit: int
) -> Iterator[CustomType]:
    """List the types of the caller's tenant, newest first."""
    async with as_caller(pool, caller) as db:
        return await custom_types.list_types(db, caller.tenant_id, after=after, limit=limit)


async def update_custom_type(
    deps: Types,
    caller: Caller,
    type_id: UUID,
    *,
    description: str | None,
    written: Written | None,
    etag: str = "",
    key: RequestKey[CustomType] | None = None,
    validate_only: bool = False,
    guard: Callable[[CustomType], None] = lambda _: None,
) -> CustomType | Replayed:
    """Update a type; node versions that used it keep the form they were checked against."""
    if description is None and written is None:
        raise invalid("definition", "NOTHING_TO_CHANGE", "neither it nor a description is given")
    if description is not None:
        description_from(description)
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    before = await get_custom_type(deps.pool, caller, type_id)
    check_etag("type", before.etag, etag)
    after = before if description is None else replace(before, description=description)
    if written is not None and written != before.written:
        made = await _defined(deps, caller, before.name, written)
        after = replace(after, written=written, type=made, version=before.version + 1)
    guard(after)
    if validate_only:
        return after

    async def write(db: Db) -> CustomType:
        await _hold(db, before)
        return replace(after, updated_at=await custom_types.update_type(db, after))

    stored = await write_once(deps.pool, caller, key, write)
    log.info("custom_type_updated", custom_type_id=str(type_id), version=after.version)
    return stored


async def delete_custom_type(
    deps: Types,
    caller: Caller,
    type_id: UUID,
    *,
    etag: str = "",
    key: RequestKey[None] | None = None,
) -> Replayed | None:
    """Delete a type that the current version of no node uses."""

    async def write(db: Db) -> None:
        before = await _find(db, type_id)
        check_etag("type", before.etag, etag)
        await _hold(db, before)
        # Counted again under the lock, to include a node created concurrently.
        now = await _find(db, type_id)
        if now.node_count:
            raise FailedPrecondition(
                "CUSTOM_TYPE_IN_USE",
                f"{now.node_count} nodes were made with {now.name}; change or delete them first",
                resource=("custom_type", str(type_id)),
                node_count=now.node_count,
            )
        await custom_types.delete_type(db, type_id)

    answer = await do_once(deps.pool, caller, key, write)
    if answer is None:
        log.info("custom_type_deleted", custom_type_id=str(type_id))
    return answer


async def _defined(deps: Types, caller: Caller, name: str, written: Written) -> Type:
    """Return the structural form of a definition, or raise what is wrong with it."""
    if written.json_schema:
        field = "definition.json_schema"
        try:
            made = type_from_schema(written.json_schema, name=name)
        except SchemaError as error:
            raise invalid(field, error.reason, str(error)) from None
    else:
        field = "definition.record.fields"
        names = [each.name for each in written.fields]
        if len(set(names)) != len(names):
            raise invalid(field, "DUPLICATE_FIELD", "two fields have the same name")
        places = [f"{field}[{at}].type_expression" for at in range(len(names))]
        expressions = [each.expression for each in written.fields]
        types = await read_expressions(deps, caller, expressions, fields=places, own=name)
        made = record_of(name, written.fields, types)
    opaque = contains_named(made)
    if opaque is not None:
        raise invalid(field, "TYPE_NOT_CARRIED", f"values of {opaque} stay within a node")
    try:
        return from_json(to_json(made))  # checks the size limits of the whole type
    except TypeFormatError as error:
        raise invalid(field, "TYPE_TOO_LARGE", str(error)) from None


async def _hold(db: Db, before: CustomType) -> None:
    """Lock the type and check that it has not changed since it was read."""
    if not await custom_types.lock_type(db, before.id):
        raise _not_found(before.id)
    check_etag("type", (await _find(db, before.id)).etag, before.etag)


async def _find(db: Db, type_id: UUID) -> CustomType:
    found = await custom_types.get_type(db, type_id)
    if found is None:
        raise _not_found(type_id)
    return found


def _not_found(type_id: UUID) -> NotFound:
    return NotFound(
        "CUSTOM_TYPE_NOT_FOUND",
        "there is no such custom type",
        resource=("custom_type", str(type_id)),
    )
