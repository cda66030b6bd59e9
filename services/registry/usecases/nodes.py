"""Python nodes: created from source, changed by new versions, read and listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.errors import no_version
from services.kit.idempotency import (
    Replayed,
    RequestKey,
    rehearse,
    replay,
    write_once,
)
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.kit.updates import check_mask, stale
from services.registry.domain.source import Diagnostic
from services.registry.domain.texts import description_from, name_from
from services.registry.gateways.source_analyzer.child import SourceAnalyzer
from services.registry.storage import custom_types, nodes
from services.registry.storage.custom_types import CustomType
from services.registry.storage.locks import PendingLock
from services.registry.storage.nodes import Node
from services.registry.usecases.changes import (
    NOBODY,
    NODE,
    check_changeable,
    hold,
    not_found,
)
from services.registry.usecases.locks import Locks
from services.registry.usecases.node_source import Draft, Source, read_source, without_mark
from services.registry.usecases.node_uses import check_not_in_templates

log = structlog.get_logger()

# How long a call waits for a lock before it returns `pending`.
LOCK_WAIT_S: Final = 5.0
_FIELDS: Final = (
    *("name", "description", "code", "main_function", "python_version"),
    *("is_public", "is_template"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The dependencies of the use cases of nodes."""

    pool: Pool
    analyzer: SourceAnalyzer
    locks: Locks
    python_version: str  # by default
    search: Pool  # with a login that searches the indexes of all tenants for candidates


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """A node with the diagnostics of its source."""

    node: Node
    diagnostics: tuple[Diagnostic, ...] = ()
    custom_types: tuple[CustomType, ...] = ()


async def create_node(
    deps: Nodes,
    caller: Caller,
    draft: Draft,
    *,
    key: RequestKey[NodeAnswer] | None = None,
    validate_only: bool = False,
    guard: Callable[[NodeAnswer], None] = lambda _: None,
) -> NodeAnswer | Replayed:
    """Create version 1 of a node from its source, and start locking its requirements."""
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    answer = await drafted(deps, caller, draft, validate_only=validate_only)
    node = answer.node
    guard(answer)  # may refuse a response that is too large, before anything is stored
    if validate_only:
        return answer

    async def write(db: Db) -> NodeAnswer:
        return replace(answer, node=await insert_node(db, answer))

    written = await write_once(deps.pool, caller, key, write)
    if isinstance(written, Replayed):
        return written
    log.info("node_created", node_id=str(node.id), requirements=len(node.requirements))
    return await when_locked(deps, caller, written)


async def drafted(
    deps: Nodes, caller: Caller, draft: Draft, *, validate_only: bool = False
) -> NodeAnswer:
    """Return version 1 of a node from its source; stores nothing."""
    name_from(draft.name)
    description_from(draft.description)
    draft = without_mark(draft)
    source = await _source(deps, caller, draft)
    now = datetime.now(UTC)
    node = Node(
        id=NOBODY if validate_only else uuid7(),
        version_id=NOBODY if validate_only else uuid7(),
        version=1,
        current_version=1,
        name=draft.name,
        description=draft.description or source.function.docstring,
        code=draft.code,
        main_function=source.function.name,
        is_async=source.function.is_async,
        python_version=source.python_version,
        inputs=source.function.inputs,
        outputs=source.function.outputs,
        requirements=source.requirements,
        lock_state="pending" if source.requirements else "none",
        lock_error="",
        tenant_id=caller.tenant_id,
        created_by=caller.user_id,
        created_at=now,
        updated_at=now,
    )
    return NodeAnswer(node, source.diagnostics, source.custom_types)


async def insert_node(db: Db, draft: NodeAnswer) -> Node:
    """Store a drafted version 1 of a node."""
    created_at, updated_at = await nodes.insert_node(db, draft.node)
    stored = replace(draft.node, created_at=created_at, updated_at=updated_at)
    await nodes.insert_version(db, stored)
    await custom_types.insert_uses(db, stored.version_id, draft.custom_types)
    return stored


async def get_node(
    pool: Pool,
    caller: Caller,
    node_id: UUID,
    *,
    version: int = 0,
    with_code: bool = True,
    field: str = "version",
) -> Node:
    """Return a node at a version; raises `NotFound`, also for other tenants' nodes."""
    async with as_caller(pool, caller) as db:
        node = await nodes.get_node(db, node_id, version=version, with_code=with_code)
        if node is None and version:
            head = await nodes.get_node(db, node_id, with_code=False)
            if head is not None:
                kind, newest = NODE.name, head.version
                raise no_version(kind, node_id, version, newest=newest, field=field)
    if node is None:
        raise not_found(NODE.name, node_id)
    return node


async def read_nodes(
    pool: Pool,
    caller: Caller,
    node_ids: Sequence[UUID],
    *,
    with_code: bool,
    with_deleted: bool = False,
) -> Iterator[Node]:
    """Return found nodes in the order of their ids, decoded lazily."""
    async with as_caller(pool, caller) as db:
        return await nodes.list_nodes(db, node_ids, with_code=with_code, with_deleted=with_deleted)


async def update_node(
    deps: Nodes,
    caller: Caller,
    node_id: UUID,
    draft: Draft,
    *,
    mask: Sequence[str],
    etag: str = "",
    key: RequestKey[NodeAnswer] | None = None,
    validate_only: bool = False,
    guard: Callable[[NodeAnswer], None] = lambda _: None,
) -> NodeAnswer | Replayed:
    """Change a node; another source, main function or Python version makes a new version."""
    check_mask(mask, _FIELDS)
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    before = await get_node(deps.pool, caller, node_id)
    check_changeable(NODE.name, before, caller, etag=etag)
    answer = await proposed(deps, caller, before, draft, mask=mask)
    after = answer.node
    guard(answer)

    async def write(db: Db) -> NodeAnswer:
        await hold(db, NODE, node_id, etag=before.etag)
        if before.is_shared and not after.is_shared:
            await check_not_in_templates(db, before)
        updated_at = await nodes.update_node(db, after, was=before.version)
        if updated_at is None:
            raise stale(NODE.name, before.etag)
        stored = replace(after, updated_at=updated_at)
        if after.version != before.version:
            await nodes.insert_version(db, replace(stored, created_by=caller.user_id))
            await custom_types.insert_uses(db, stored.version_id, answer.custom_types)
        return replace(answer, node=stored)

    if validate_only:
        await rehearse(deps.pool, caller, write)
        return answer
    written = await write_once(deps.pool, caller, key, write)
    if isinstance(written, Replayed):
        return written
    log.info("node_updated", node_id=str(node_id), version=after.version)
    if after.version == before.version:
        return written
    return await when_locked(deps, caller, written)


async def proposed(
    deps: Nodes, caller: Caller, before: Node, draft: Draft, *, mask: Sequence[str]
) -> NodeAnswer:
    """Return a node as it would be after a change; stores nothing."""
    return await _changed(deps, before, _merged(before, draft, mask), caller)


def _merged(before: Node, draft: Draft, mask: Sequence[str]) -> Draft:
    known = Draft(
        name=before.name,
        description=before.description,
        code=before.code,
        main_function=before.main_function,
        python_version=before.python_version,
        is_public=before.is_public,
        is_template=before.is_template,
    )
    merged = without_mark(replace(known, **{name: getattr(draft, name) for name in mask}))
    name_from(merged.name)
    description_from(merged.description)
    return merged


async def _changed(deps: Nodes, before: Node, wanted: Draft, caller: Caller) -> NodeAnswer:
    head = replace(
        before,
        name=wanted.name,
        description=wanted.description,
        is_public=wanted.is_public,
        is_template=wanted.is_template,
    )
    same_source = (wanted.code, wanted.main_function, wanted.python_version) == (
        before.code,
        before.main_function,
        before.python_version,
    )
    if same_source:
        return NodeAnswer(head)
    source = await _source(deps, caller, wanted)
    after = replace(
        head,
        version_id=uuid7(),
        version=before.version + 1,
        current_version=before.version + 1,
        description=wanted.description or source.function.docstring,
        code=wanted.code,
        main_function=source.function.name,
        is_async=source.function.is_async,
        python_version=source.python_version,
        inputs=source.function.inputs,
        outputs=source.function.outputs,
        requirements=source.requirements,
        lock_state="pending" if source.requirements else "none",
        lock_error="",
        tenant_id=caller.tenant_id,
    )
    return NodeAnswer(after, source.diagnostics, source.custom_types)


async def _source(deps: Nodes, caller: Caller, draft: Draft) -> Source:
    return await read_source(
        draft, caller, pool=deps.pool, analyzer=deps.analyzer, default=deps.python_version
    )


async def when_locked(deps: Nodes, caller: Caller, answer: NodeAnswer) -> NodeAnswer:
    """Wait a moment for the lock, and return its state."""
    node = answer.node
    if node.lock_state != "pending":
        return answer
    pending = PendingLock(
        node.version_id,
        node.tenant_id,
        node.python_version,
        tuple(each.requirement for each in node.requirements),
        0,
    )
    await deps.locks.resolve_soon(pending, wait_s=LOCK_WAIT_S)
    now = await get_node(deps.pool, caller, node.id, version=node.version, with_code=False)
    shown = replace(node, lock_state=now.lock_state, lock_error=now.lock_error)
    return replace(answer, node=shown)
