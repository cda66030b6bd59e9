"""What workflows owe to their nodes, and nodes to the workflows that use them.

The one side holds nodes by a share lock, the other by an exclusive one, and each looks at the other
only then: of a workflow that takes a node and a call that deletes it, one is refused.
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
    """Hold the nodes of a workflow that this transaction wrote, and see that it may have them.

    None of its tenant's is deleted; those of a template are public or templates.
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
    """See that no workflow of the tenant uses a node that is held; others keep what they have."""
    await _check_users(
        db,
        node,
        reason="NODE_IN_USE",
        templates_only=False,
        say=lambda name: f"the workflow {name} uses the node",
    )


async def check_workflow_unused(db: Db, workflow: Workflow) -> None:
    """See that no other workflow of the tenant runs a workflow that is held."""
    await _check_users(
        db,
        workflow,
        kind="workflow",
        reason="WORKFLOW_IN_USE",
        templates_only=False,
        say=lambda name: f"the workflow {name} runs it",
    )


async def check_workflow_not_in_templates(db: Db, workflow: Workflow) -> None:
    """See that no template of the tenant runs a workflow that is held and is to be private."""
    await _check_users(
        db,
        workflow,
        kind="workflow",
        reason="WORKFLOW_IN_TEMPLATES",
        templates_only=True,
        say=lambda name: f"the template {name} runs it, which so has to be a template",
    )


async def check_not_in_templates(db: Db, node: Node) -> None:
    """See that no template of the tenant uses a node that is held and is to be private.

    Another tenant's template hinders nobody: else whoever names a node in one could keep it public.
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
