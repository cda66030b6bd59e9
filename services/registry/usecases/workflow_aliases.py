"""Workflow aliases: promoted and rolled back in one call, under the workflow's lock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import (
    Conflict,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    no_such,
)
from services.kit.idempotency import Replayed, RequestKey, do_once, replay
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.kit.updates import check_etag
from services.registry.storage import workflow_aliases as stored
from services.registry.storage.workflow_aliases import Alias, Change
from services.registry.usecases.workflows import (
    Workflows,
    get_version,
    get_visible,
    require_runnable,
)

log = structlog.get_logger()

ALIASES_MAX: Final = 100
_NOBODY: Final = UUID(int=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a change is based on; an empty etag or a version of None is not checked."""

    etag: str = ""
    version: int | None = None  # 0: the alias must not exist


async def set_alias(
    deps: Workflows,
    caller: Caller,
    workflow_id: UUID,
    name: str,
    version: int,
    *,
    expected: Expected,
    key: RequestKey[Alias] | None = None,
    validate_only: bool = False,
) -> Alias | Replayed:
    """Create an alias, or promote it to a version that can run with its nodes as they are now."""
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    workflow = await get_version(deps.pool, caller, workflow_id, version)
    if workflow.tenant_id != caller.tenant_id:
        raise _not_yours()
    await require_runnable(deps, caller, workflow)

    async def write(db: Db) -> Alias:
        before = await _hold(db, workflow_id, name)
        _check(before, expected)
        if before is not None and before.version == version:
            return before
        if before is None and await stored.count_aliases(db, workflow_id) >= ALIASES_MAX:
            raise ResourceExhausted(
                "ALIASES_TOO_MANY", f"a workflow has at most {ALIASES_MAX} aliases; delete one"
            )
        after = _promoted(before, workflow_id, name, version, caller)
        return after if validate_only else await _save(db, before, after, caller, kind="set")

    if validate_only:
        async with as_caller(deps.pool, caller) as db:
            return await write(db)
    return await _written(deps.pool, caller, key, write, "workflow_alias_set")


async def roll_back_alias(
    pool: Pool,
    caller: Caller,
    workflow_id: UUID,
    name: str,
    *,
    expected: Expected,
    key: RequestKey[Alias] | None = None,
) -> Alias | Replayed:
    """Roll an alias back to its previous version; each further call goes one step further back."""

    async def write(db: Db) -> Alias:
        before = await _hold_existing(db, workflow_id, name)
        _check(before, expected)
        promotion = await stored.get_change(db, before.promotion_id)
        assert promotion is not None, "the history of an alias is never removed"
        target = promotion.previous_id and await stored.get_change(db, promotion.previous_id)
        if not target or target.to_version is None:
            raise FailedPrecondition(
                "ALIAS_NOTHING_BEFORE",
                f"alias {name} stood for no other version before; set it to the one you want",
                resource=("workflow", str(workflow_id)),
            )
        after = replace(before, version=target.to_version, promotion_id=target.id)
        return await _save(db, before, after, caller, kind="roll_back")

    return await _written(pool, caller, key, write, "workflow_alias_rolled_back")


async def delete_alias(
    pool: Pool,
    caller: Caller,
    workflow_id: UUID,
    name: str,
    *,
    expected: Expected,
    key: RequestKey[Alias] | None = None,
) -> Alias | Replayed:
    """Delete an alias; returns it as it was. Its history is kept."""

    async def write(db: Db) -> Alias:
        before = await _hold_existing(db, workflow_id, name)
        _check(before, expected)
        await stored.delete_alias(db, before.id)
        await stored.insert_change(
            db,
            uuid7(),
            workflow_id=workflow_id,
            alias=name,
            kind="delete",
            from_version=before.version,
            to_version=None,
            previous_id=None,
            author=caller.user_id,
        )
        return before

    return await _written(pool, caller, key, write, "workflow_alias_deleted")


async def get_alias(pool: Pool, caller: Caller, workflow_id: UUID, name: str) -> Alias:
    """Find an alias of a workflow that the caller may read."""
    async with as_caller(pool, caller) as db:
        await get_visible(db, workflow_id)
        found = await stored.get_alias(db, workflow_id, name)
    if found is None:
        raise _not_found(workflow_id, name)
    return found


async def list_aliases(
    pool: Pool,
    caller: Caller,
    workflow_id: UUID,
    *,
    after: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Alias]:
    """List the aliases of a workflow that the caller may read, newest first."""
    async with as_caller(pool, caller) as db:
        await get_visible(db, workflow_id)
        return await stored.list_aliases(db, workflow_id, after=after, limit=limit)


async def list_changes(
    pool: Pool,
    caller: Caller,
    workflow_id: UUID,
    *,
    alias: str | None,
    after: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Change]:
    """List changes of a workflow's aliases, newest first; other tenants see none."""
    async with as_caller(pool, caller) as db:
        await get_visible(db, workflow_id)
        return await stored.list_changes(db, workflow_id, alias=alias, after=after, limit=limit)


async def _hold(db: Db, workflow_id: UUID, name: str) -> Alias | None:
    """Lock the workflow and return the alias as of now."""
    if not await stored.lock_workflow(db, workflow_id):
        await get_visible(db, workflow_id)
        raise _not_yours()
    return await stored.get_alias(db, workflow_id, name)


async def _hold_existing(db: Db, workflow_id: UUID, name: str) -> Alias:
    found = await _hold(db, workflow_id, name)
    if found is None:
        raise _not_found(workflow_id, name)
    return found


def _check(before: Alias | None, expected: Expected) -> None:
    """Raise if the alias is not as the caller expects."""
    current = before.etag if before else ""
    check_etag("alias", current, expected.etag)
    version = before.version if before else 0
    if expected.version is not None and expected.version != version:
        stands = f"stands for version {version}" if before else "does not exist"
        raise Conflict(
            "ALIAS_MOVED",
            f"the alias {stands}; the call expects {expected.version or 'that it does not exist'}",
            etag=current,
            version=version,
        )


def _promoted(
    before: Alias | None, workflow_id: UUID, name: str, version: int, caller: Caller
) -> Alias:
    if before is not None:
        return replace(before, version=version)
    return Alias(
        workflow_id=workflow_id,
        name=name,
        version=version,
        id=_NOBODY,
        promotion_id=_NOBODY,
        change_id=_NOBODY,
        created_by=caller.user_id,
        created_at=datetime.now(UTC),
    )


async def _save(db: Db, before: Alias | None, after: Alias, caller: Caller, *, kind: str) -> Alias:
    """Insert the history entry and save the alias."""
    change_id = uuid7()
    previous = before.promotion_id if before else None
    moment = await stored.insert_change(
        db,
        change_id,
        workflow_id=after.workflow_id,
        alias=after.name,
        kind=kind,
        from_version=before.version if before else None,
        to_version=after.version,
        previous_id=previous if kind == "set" else None,
        author=caller.user_id,
    )
    saved = replace(after, change_id=change_id, updated_by=caller.user_id, updated_at=moment)
    if kind == "set":
        saved = replace(saved, promotion_id=change_id)
    if before is None:
        saved = replace(saved, id=uuid7(), created_at=moment)
        await stored.insert_alias(db, saved)
    else:
        await stored.move_alias(db, saved)
    return saved


async def _written(
    pool: Pool,
    caller: Caller,
    key: RequestKey[Alias] | None,
    write: Callable[[Db], Awaitable[Alias]],
    event: str,
) -> Alias | Replayed:
    written = await do_once(pool, caller, key, write)
    if isinstance(written, Alias):
        log.info(
            event,
            workflow_id=str(written.workflow_id),
            alias=written.name,
            version=written.version,
        )
    return written


def _not_yours() -> PermissionDenied:
    return PermissionDenied(
        "NOT_YOURS", "this workflow may be read, not changed; make a copy of your own"
    )


def _not_found(workflow_id: UUID, name: str) -> NotFound:
    fault = "the workflow has no such alias; ListWorkflowAliases shows those it has"
    return no_such("alias", name, "ALIAS_NOT_FOUND", fault, resource=("workflow", str(workflow_id)))
