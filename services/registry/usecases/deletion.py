"""Soft deletion of nodes and workflows, and undeletion; running executions are not affected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.idempotency import Replayed, RequestKey, do_once
from services.kit.pg import Db, Pool
from services.registry.storage.nodes import Node
from services.registry.storage.workflows import Workflow
from services.registry.usecases.changes import NODE, WORKFLOW, Kind, T, hold
from services.registry.usecases.node_uses import (
    check_nodes,
    check_unused,
    check_workflow_unused,
)

log = structlog.get_logger()


async def mark_node(
    pool: Pool,
    caller: Caller,
    node_id: UUID,
    *,
    deleted: bool,
    etag: str = "",
    key: RequestKey[Node] | None = None,
) -> Node | Replayed:
    """Delete a node that no workflow of its tenant uses, or undelete it; idempotent."""

    async def check(db: Db, node: Node) -> None:
        if deleted:
            await check_unused(db, node)

    return await _mark(
        pool, caller, NODE, node_id, deleted=deleted, etag=etag, key=key, check=check
    )


async def mark_workflow(
    pool: Pool,
    caller: Caller,
    workflow_id: UUID,
    *,
    deleted: bool,
    etag: str = "",
    key: RequestKey[Workflow] | None = None,
) -> Workflow | Replayed:
    """Delete a workflow that no other workflow of its tenant runs, or undelete it; idempotent."""

    async def check(db: Db, workflow: Workflow) -> None:
        if deleted:
            await check_workflow_unused(db, workflow)
        else:  # its nodes may have been deleted meanwhile
            await check_nodes(db, workflow)

    return await _mark(
        pool, caller, WORKFLOW, workflow_id, deleted=deleted, etag=etag, key=key, check=check
    )


async def _mark(
    pool: Pool,
    caller: Caller,
    kind: Kind[T],
    thing_id: UUID,
    *,
    deleted: bool,
    etag: str,
    key: RequestKey[T] | None,
    check: Callable[[Db, T], Awaitable[None]],
) -> T | Replayed:
    async def write(db: Db) -> T:
        held = await hold(db, kind, thing_id, etag=etag)
        if deleted == (held.deleted_at is not None):
            return held
        await check(db, held)
        deleted_at, updated_at = await kind.mark(db, thing_id, deleted=deleted)
        return replace(held, deleted_at=deleted_at, updated_at=updated_at)

    written = await do_once(pool, caller, key, write)
    if not isinstance(written, Replayed):
        event = f"{kind.name}_{'deleted' if deleted else 'undeleted'}"
        log.info(event, **{f"{kind.name}_id": str(thing_id)})
    return written
