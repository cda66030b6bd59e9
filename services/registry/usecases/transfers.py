"""Transfer nodes and workflows to another tenant, unless something left behind depends on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import structlog

from services.kit.caller import Caller, check_administers
from services.kit.errors import FailedPrecondition, PermissionDenied
from services.kit.idempotency import Replayed, RequestKey
from services.kit.pg import Db
from services.kit.updates import check_etag
from services.registry.domain import teams
from services.registry.storage import transfers as stored
from services.registry.storage.transfers import Moved
from services.registry.usecases.changes import not_found
from services.registry.usecases.identity import Identity, note, write

log = structlog.get_logger()

_WRITERS: Final = frozenset({"admin", "user"})


async def transfer_node(
    deps: Identity,
    caller: Caller,
    node_id: UUID,
    tenant_id: UUID,
    *,
    etag: str = "",
    key: RequestKey[None] | None = None,
) -> Replayed | None:
    """Transfer a node that no workflow of its tenant uses to another tenant."""

    async def change(db: Db) -> None:
        found = await stored.get_node(db, node_id, caller.tenant_id)
        await _check_may_move(db, caller, found, tenant_id, kind="node", thing_id=node_id)
        held = await stored.hold_nodes(db, [node_id], caller.tenant_id)
        check_etag("node", _one(held, node_id).etag, etag)
        await _check_nodes(db, caller, [node_id])
        await stored.move_nodes(db, [node_id], source=caller.tenant_id, target=tenant_id)
        await note(
            db,
            caller,
            "node.transfer",
            ("node", node_id),
            before={"tenant_id": str(caller.tenant_id)},
            after={"tenant_id": str(tenant_id)},
        )

    answer = await write(deps, caller, key, change)
    log.info("node_transferred", node_id=str(node_id), to_tenant_id=str(tenant_id))
    return answer


async def transfer_workflow(
    deps: Identity,
    caller: Caller,
    workflow_id: UUID,
    tenant_id: UUID,
    *,
    etag: str = "",
    key: RequestKey[list[UUID]] | None = None,
) -> list[UUID] | Replayed:
    """Transfer a workflow with its tenant's nodes to another tenant; returns those nodes' ids."""

    async def change(db: Db) -> list[UUID]:
        found = await stored.get_workflow(db, workflow_id, caller.tenant_id)
        await _check_may_move(db, caller, found, tenant_id, kind="workflow", thing_id=workflow_id)
        held = await stored.hold_workflow(db, workflow_id, caller.tenant_id)
        if held is None:  # deleted or moved meanwhile
            raise not_found("workflow", workflow_id)
        check_etag("workflow", held.etag, etag)
        await _check_workflow(db, caller, held)
        used = await stored.list_used(db, workflow_id)
        nodes = [each.id for each in await stored.hold_nodes(db, used, caller.tenant_id)]
        await _check_nodes(db, caller, nodes, but=workflow_id)
        await stored.move_nodes(db, nodes, source=caller.tenant_id, target=tenant_id)
        await stored.move_workflow(db, workflow_id, source=caller.tenant_id, target=tenant_id)
        await note(
            db,
            caller,
            "workflow.transfer",
            ("workflow", workflow_id),
            before={"tenant_id": str(caller.tenant_id)},
            after={"tenant_id": str(tenant_id), "node_ids": [str(each) for each in nodes]},
        )
        return nodes

    answer = await write(deps, caller, key, change)
    log.info("workflow_transferred", workflow_id=str(workflow_id), to_tenant_id=str(tenant_id))
    return answer


async def _check_may_move(
    db: Db, caller: Caller, found: Moved | None, target: UUID, *, kind: str, thing_id: UUID
) -> None:
    if found is None:
        raise not_found(kind, thing_id)
    role = await stored.get_role(db, target)
    if role is None:
        raise teams.not_found(target)
    check_administers(caller)
    if role not in _WRITERS:
        raise PermissionDenied("NOT_A_WRITER", "the caller may only read in the target tenant")
    if target == caller.tenant_id:
        raise FailedPrecondition("ALREADY_THERE", f"the {kind} is in this tenant already")


def _one(held: Sequence[Moved], node_id: UUID) -> Moved:
    if not held:  # deleted or moved meanwhile
        raise not_found("node", node_id)
    return held[0]


async def _check_workflow(db: Db, caller: Caller, held: Moved) -> None:
    if held.is_active:
        raise FailedPrecondition(
            "WORKFLOW_ACTIVE",
            "schedules and triggers may start it; deactivate it first",
            resource=("workflow", str(held.id)),
        )
    user = await stored.find_user(db, [held.id], caller.tenant_id, but=held.id)
    if user is not None:
        raise _in_use("WORKFLOW_IN_USE", f"the workflow {user[1]} ({user[0]}) runs it")
    runs = await stored.find_sub_workflow(db, held.id, caller.tenant_id)
    if runs is not None:
        raise _in_use("NODE_IN_USE", f"it runs the workflow {runs[1]} ({runs[0]}), which stays")


async def _check_nodes(
    db: Db, caller: Caller, node_ids: Sequence[UUID], *, but: UUID | None = None
) -> None:
    user = await stored.find_user(db, node_ids, caller.tenant_id, but=but)
    if user is not None:
        raise _in_use(
            "NODE_IN_USE", f"the workflow {user[1]} ({user[0]}) uses a node that would go"
        )
    if await stored.use_custom_types(db, node_ids):
        raise FailedPrecondition(
            "NODE_USES_CUSTOM_TYPES",
            "a node that would go is of types that its tenant made, which are not transferred",
        )


def _in_use(reason: str, what: str) -> FailedPrecondition:
    return FailedPrecondition(reason, f"{what}; change that first")
