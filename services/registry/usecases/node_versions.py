"""The versions of a node: list them, roll back to one, clone one into a new node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.idempotency import Replayed, RequestKey, replay, write_once
from services.kit.ids import uuid7
from services.kit.pg import Db, Pool, as_caller
from services.kit.updates import stale
from services.registry.domain.texts import name_from
from services.registry.storage import custom_types, nodes, versions
from services.registry.storage.nodes import Node
from services.registry.storage.versions import Version
from services.registry.usecases.changes import (
    NOBODY,
    NODE,
    check_changeable,
    check_live,
    copied,
    hold,
    not_found,
)
from services.registry.usecases.nodes import NodeAnswer, Nodes, get_node, when_locked

log = structlog.get_logger()


async def list_node_versions(
    pool: Pool, caller: Caller, node_id: UUID, *, before: int, limit: int, with_code: bool
) -> Iterator[Version[Node]]:
    """List the versions of a node that the caller may read, newest first."""
    async with as_caller(pool, caller) as db:
        if await NODE.get(db, node_id) is None:
            raise not_found(NODE.name, node_id)
        return await versions.list_node_versions(
            db, node_id, before=before, limit=limit, with_code=with_code
        )


async def rollback_node(
    deps: Nodes,
    caller: Caller,
    node_id: UUID,
    *,
    version: int,
    etag: str = "",
    key: RequestKey[NodeAnswer] | None = None,
    validate_only: bool = False,
    guard: Callable[[NodeAnswer], None] = lambda _: None,
) -> NodeAnswer | Replayed:
    """Create a new version with the content of an older one, without analyzing it again."""
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    before = await get_node(deps.pool, caller, node_id)
    check_changeable(NODE.name, before, caller, etag=etag)
    model = await get_node(deps.pool, caller, node_id, version=version)
    if version == before.version:
        return NodeAnswer(before)
    after = replace(
        model,
        version_id=uuid7(),
        version=before.version + 1,
        current_version=before.version + 1,
        name=before.name,
        description=before.description,
    )
    guard(NodeAnswer(after))
    if validate_only:
        return NodeAnswer(after)

    async def write(db: Db) -> NodeAnswer:
        await hold(db, NODE, node_id, etag=before.etag)
        updated_at = await nodes.update_node(db, after, was=before.version)
        if updated_at is None:
            raise stale(NODE.name, before.etag)
        stored = replace(after, updated_at=updated_at)
        return NodeAnswer(await _publish(db, stored, model, author=caller.user_id))

    written = await write_once(deps.pool, caller, key, write)
    if isinstance(written, Replayed):
        return written
    log.info("node_rolled_back", node_id=str(node_id), to=version, version=after.version)
    return await when_locked(deps, caller, written)


async def clone_node(
    deps: Nodes,
    caller: Caller,
    node_id: UUID,
    *,
    version: int,
    name: str,
    key: RequestKey[NodeAnswer] | None = None,
    validate_only: bool = False,
    guard: Callable[[NodeAnswer], None] = lambda _: None,
) -> NodeAnswer | Replayed:
    """Clone a version of a node into a private node of the caller's tenant."""
    if name:
        name_from(name)
    earlier = await replay(deps.pool, caller, key)
    if earlier is not None:
        return earlier
    model = await get_node(deps.pool, caller, node_id, version=version)
    check_live(NODE.name, model)
    copy = replace(
        copied(model, caller, name=name, validate_only=validate_only),
        version_id=NOBODY if validate_only else uuid7(),
        is_public=False,
    )
    guard(NodeAnswer(copy))
    if validate_only:
        return NodeAnswer(copy)

    async def write(db: Db) -> NodeAnswer:
        created_at, updated_at = await nodes.insert_node(db, copy)
        stored = replace(copy, created_at=created_at, updated_at=updated_at)
        return NodeAnswer(await _publish(db, stored, model, author=caller.user_id))

    written = await write_once(deps.pool, caller, key, write)
    if isinstance(written, Replayed):
        return written
    log.info("node_cloned", node_id=str(copy.id), model_id=str(node_id), version=model.version)
    return await when_locked(deps, caller, written)


async def _publish(db: Db, node: Node, model: Node, *, author: UUID) -> Node:
    """Insert the version that a node shows, with the lock of the version it was copied from."""
    await nodes.insert_version_alone(db, replace(node, created_by=author))
    if node.tenant_id == model.tenant_id:  # custom types, and so their uses, belong to one tenant
        await custom_types.copy_uses(db, model=model.version_id, version_id=node.version_id)
    state = await versions.copy_lock(
        db, model=model.version_id, version_id=node.version_id, tenant_id=node.tenant_id
    )
    return replace(node, lock_state=state, lock_error="")
