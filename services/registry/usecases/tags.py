"""Tags: create, change, and attach to nodes and workflows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from services.kit.idempotency import Replayed, RequestKey, do_once, replay, write_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.kit.updates import check_mask
from services.registry.domain.tags import AttachedTag
from services.registry.domain.texts import description_from, name_from
from services.registry.storage import tags
from services.registry.storage.tags import NODE_TAGS, WORKFLOW_TAGS, Tag, TagTables

__all__ = ["NODE_TAGS", "WORKFLOW_TAGS", "change_tags", "create_tag", "delete_tag", "get_tag"]

log = structlog.get_logger()

# This many tags, with names of 100 characters, fit into one message along with the largest node.
TAGS_PER_SUBJECT_MAX: Final = 100
_NAME_CHARS_MAX: Final = 100
_NOBODY: Final = UUID(int=0)
_FIELDS: Final = ("name", "description", "color")
_SUBJECTS: Final = {"node_id": "node", "workflow_id": "workflow"}


async def create_tag(
    pool: Pool,
    caller: Caller,
    tables: TagTables,
    *,
    name: str,
    description: str,
    color: str,
    key: RequestKey[Tag] | None = None,
    validate_only: bool = False,
) -> Tag | Replayed:
    """Create a tag; raises AlreadyExists with the existing tag's id if the name is taken."""
    tag = Tag(
        id=_NOBODY if validate_only else uuid7(),
        name=_name(name),
        description=description_from(description),
        color=color,
        tenant_id=caller.tenant_id,
        created_by=caller.user_id,
        created_at=datetime.now(UTC),
    )
    earlier = await replay(pool, caller, key)
    if earlier is not None:
        return earlier
    if validate_only:
        async with as_caller(pool, caller) as db:
            await _check_free(db, tables, tag)
        return tag

    async def write(db: Db) -> Tag:
        made = await tags.insert_tag(db, tables, tag)
        if made is None:
            await _check_free(db, tables, tag)
            # The tag that held the name was deleted meanwhile.
            made = await tags.insert_tag(db, tables, tag)
        if made is None:
            raise _exists(tag.name, None)
        return made

    return await write_once(pool, caller, key, write)


async def get_tag(pool: Pool, caller: Caller, tables: TagTables, tag_id: UUID) -> Tag:
    """Return a tag; another tenant's is reported as not found."""
    async with as_caller(pool, caller) as db:
        return _there(await tags.get_tag(db, tables, tag_id), tag_id)


async def list_tags(
    pool: Pool, caller: Caller, tables: TagTables, *, after: str | None, limit: int
) -> list[Tag]:
    """List the tenant's tags by name."""
    async with as_caller(pool, caller) as db:
        return await tags.list_tags(
            db, tables, tenant_id=caller.tenant_id, after=after, limit=limit
        )


async def update_tag(
    pool: Pool,
    caller: Caller,
    tables: TagTables,
    tag_id: UUID,
    *,
    wanted: Mapping[str, str],
    mask: Sequence[str],
    key: RequestKey[Tag] | None = None,
    validate_only: bool = False,
) -> Tag | Replayed:
    """Change the fields in the mask; the last of concurrent writes wins."""
    check_mask(mask, _FIELDS)
    earlier = await replay(pool, caller, key)
    if earlier is not None:
        return earlier

    async def changed(db: Db) -> Tag:
        before = _there(await tags.get_tag(db, tables, tag_id), tag_id)
        after = replace(
            before,
            name=wanted["name"] if "name" in mask else before.name,
            description=wanted["description"] if "description" in mask else before.description,
            color=wanted["color"] if "color" in mask else before.color,
        )
        _name(after.name)
        description_from(after.description)
        if after.name != before.name:
            await _check_free(db, tables, after)
        return after

    async def write(db: Db) -> Tag:
        return _there(await tags.update_tag(db, tables, await changed(db)), tag_id)

    if validate_only:
        async with as_caller(pool, caller) as db:
            return await changed(db)
    return await write_once(pool, caller, key, write)


async def delete_tag(
    pool: Pool,
    caller: Caller,
    tables: TagTables,
    tag_id: UUID,
    *,
    key: RequestKey[Tag] | None = None,
) -> Tag | Replayed:
    """Delete a tag, detaching it from everything; returns it as it was."""

    async def write(db: Db) -> Tag:
        return _there(await tags.delete_tag(db, tables, tag_id), tag_id)

    deleted = await do_once(pool, caller, key, write)
    if isinstance(deleted, Tag):
        log.info("tag_deleted", tag_id=str(tag_id))
    return deleted


async def change_tags(
    pool: Pool,
    caller: Caller,
    tables: TagTables,
    subject_id: UUID,
    *,
    add: Sequence[UUID],
    remove: Sequence[UUID],
    key: RequestKey[tuple[AttachedTag, ...]] | None = None,
) -> tuple[AttachedTag, ...] | Replayed:
    """Detach and attach tags of a node or a workflow; returns all that it has then.

    Idempotent: attaching an attached tag, or detaching one that is not attached, is no error.
    """

    async def write(db: Db) -> tuple[AttachedTag, ...]:
        if not await tags.hold_subject(db, tables, subject_id):
            raise await _why_not(db, tables, subject_id)
        absent = set(add) - await tags.hold_tags(db, tables, add)
        if absent:
            raise _not_found(next(each for each in add if each in absent))
        attached = await tags.change_attached(db, tables, subject_id, add=add, remove=remove)
        if len(attached) > TAGS_PER_SUBJECT_MAX:
            raise FailedPrecondition(
                "TAGS_TOO_MANY",
                f"it would have {len(attached)} tags, the maximum is {TAGS_PER_SUBJECT_MAX}",
                fields=[FieldViolation("add_tag_ids", "would be too many", "TAGS_TOO_MANY")],
            )
        return attached

    return await do_once(pool, caller, key, write)


async def _why_not(db: Db, tables: TagTables, subject_id: UUID) -> NotFound | PermissionDenied:
    kind = _SUBJECTS[tables.subject]
    if await tags.sees_subject(db, tables, subject_id):
        return PermissionDenied(
            "NOT_YOURS", f"this {kind} may be read, not tagged; make a copy of your own"
        )
    return NotFound(
        f"{kind.upper()}_NOT_FOUND", f"there is no such {kind}", resource=(kind, str(subject_id))
    )


async def _check_free(db: Db, tables: TagTables, tag: Tag) -> None:
    taken = await tags.find_tag(db, tables, tag.name, tenant_id=tag.tenant_id)
    if taken is not None and taken != tag.id:
        raise _exists(tag.name, taken)


def _exists(name: str, tag_id: UUID | None) -> AlreadyExists:
    return AlreadyExists(
        "TAG_EXISTS",
        f"there is a tag {name!r} already",
        fields=[FieldViolation("name", "is the name of another tag", "TAG_EXISTS")],
        tag_id=tag_id or "",
    )


def _there(tag: Tag | None, tag_id: UUID) -> Tag:
    if tag is None:
        raise _not_found(tag_id)
    return tag


def _not_found(tag_id: UUID) -> NotFound:
    return NotFound("TAG_NOT_FOUND", "there is no such tag", resource=("tag", str(tag_id)))


def _name(text: str) -> str:
    if len(text) > _NAME_CHARS_MAX:
        description = f"must have 1 to {_NAME_CHARS_MAX} characters"
        raise InvalidArgument(
            "TEXT_INVALID", f"name {description}", fields=[FieldViolation("name", description)]
        )
    return name_from(text)
