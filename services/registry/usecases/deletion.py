"""Deletion and its return: a mark, under which everything that runs already goes on."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import structlog

from services.kit.caller import Caller
from services.kit.idempotency import Replayed, RequestKey, replay, write_once
from services.kit.pg import Db, Pool
from services.registry.storage import deletion
from services.registry.storage.nodes import Node
from services.registry.storage.workflows import Workflow
from services.registry.usecases.changes import NODE, WORKFLOW, hold
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
    """Delete a node that no workflow of its tenant uses, or take that back; twice is as once."""
    earlier = await replay(pool, caller, key)
    if earlier is not None:
        return earlier

    async def write(db: Db) -> Node:
        node = await hold(db, NODE, node_id, etag=etag)
        if deleted == (node.deleted_at is not None):
            return node
        if deleted:
            await check_unused(db, node)
        deleted_at, updated_at = await deletion.mark_node(db, node_id, deleted=deleted)
        return replace(node, deleted_at=deleted_at, updated_at=updated_at)

    written = await write_once(pool, caller, key, write)
    log.info("node_deleted" if deleted else "node_undeleted", node_id=str(node_id))
    return written


async def mark_workflow(
    pool: Pool,
    caller: Caller,
    workflow_id: UUID,
    *,
    deleted: bool,
    etag: str = "",
    key: RequestKey[Workflow] | None = None,
) -> Workflow | Replayed:
    """Delete a workflow that no other of its tenant runs, or take that back; twice is as once."""
    earlier = await replay(pool, caller, key)
    if earlier is not None:
        return earlier

    async def write(db: Db) -> Workflow:
        workflow = await hold(db, WORKFLOW, workflow_id, etag=etag)
        if deleted == (workflow.deleted_at is not None):
            return workflow
        if deleted:
            await check_workflow_unused(db, workflow)
        else:  # its nodes were free to go meanwhile
            await check_nodes(db, workflow)
        deleted_at, updated_at = await deletion.mark_workflow(db, workflow_id, deleted=deleted)
        return replace(workflow, deleted_at=deleted_at, updated_at=updated_at)

    written = await write_once(pool, caller, key, write)
    event = "workflow_deleted" if deleted else "workflow_undeleted"
    log.info(event, workflow_id=str(workflow_id))
    return written
