"""Checks between nodes and the workflows that use them.

Storing a workflow takes share locks on its nodes, changing a node an exclusive one, and each side
checks the other only then: if a workflow takes a node while it is being deleted, one of the two
calls is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from services.kit.errors import FailedPrecondition, FieldViolation
from services.kit.pg import Db
from services.registry.storage import uses
from services.registry.storage.nodes import Node
from services.registry.storage.uses import UsedNode
from services.registry.storage.workflows import Workflow

_NAMED_MAX: Final = 20


async def check_nodes(db: Db, workflow: Workflow) -> None:
    """Lock the nodes of a workflow written in this transaction and check that it may use them.

    None of its tenant's may be deleted; those of a template must be public or templates.
    """
    await uses.hold_nodes(db, workflow.id)
    used = await uses.list_used(db, workflow.id)
    deleted = [each for each in used if each.deleted]
    if deleted:
        raise _refused("NODES_DELETED", "is deleted", deleted, "undelete them first")
    private = [each for each in used if not each.shared]
    if workflow.is_template and private:
        raise _refused(
            "NODES_NOT_SHARED", "is private", private, "a template's nodes are public or templates"
        )


def _refused(reason: str, what: str, nodes: Sequence[UsedNode], advice: str) -> FailedPrecondition:
    shown = [f"the {each.kind} {each.name} ({each.id}) {what}" for each in nodes[:_NAMED_MAX]]
    return FailedPrecondition(
        reason,
        f"{shown[0]}{_more(len(nodes))}; {advice}",
        fields=[FieldViolation("definition.nodes", each, reason) for each in shown],
    )


async def check_unused(db: Db, node: Node) -> None:
    """Raise if a workflow of the tenant uses a locked node; those of other tenants do not count."""
    await _check_users(
        db,
        node,
        reason="NODE_IN_USE",
        templates_only=False,
        say=lambda name: f"the workflow {name} uses the node",
    )


async def check_workflow_unused(db: Db, workflow: Workflow) -> None:
    """Raise if another workflow of the tenant runs a locked workflow."""
    await _check_users(
        db,
        workflow,
        kind="workflow",
        reason="WORKFLOW_IN_USE",
        templates_only=False,
        say=lambda name: f"the workflow {name} runs it",
    )


async def check_workflow_not_in_templates(db: Db, workflow: Workflow) -> None:
    """Raise if a template of the tenant runs a locked workflow that is to become private."""
    await _check_users(
        db,
        workflow,
        kind="workflow",
        reason="WORKFLOW_IN_TEMPLATES",
        templates_only=True,
        say=lambda name: f"the template {name} runs it, which so has to be a template",
    )


async def check_not_in_templates(db: Db, node: Node) -> None:
    """Raise if a template of the tenant uses a locked node that is to become private.

    Templates of other tenants do not count: naming a node in one must not keep it public.
    """
    await _check_users(
        db,
        node,
        reason="NODE_IN_TEMPLATES",
        templates_only=True,
        say=lambda name: f"the template {name} uses the node, which so has to be shared",
    )


async def _check_users(
    db: Db,
    used: Node | Workflow,
    *,
    reason: str,
    templates_only: bool,
    say: Callable[[str], str],
    kind: str = "node",
) -> None:
    users = await uses.list_users(
        db,
        used.id,
        tenant_id=used.tenant_id,
        templates_only=templates_only,
        limit=_NAMED_MAX + 1,
    )
    if not users:
        return
    shown = [say(f"{name} ({workflow_id})") for workflow_id, name in users[:_NAMED_MAX]]
    raise FailedPrecondition(
        reason,
        f"{shown[0]}{_more(len(users))}",
        fields=[FieldViolation(f"{kind}_id", each, reason) for each in shown],
        resource=(kind, str(used.id)),
    )


def _more(count: int) -> str:
    if count == 1:
        return ""
    return f"; and {'at least ' if count > _NAMED_MAX else ''}{min(count, _NAMED_MAX + 1) - 1} more"
