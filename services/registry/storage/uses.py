"""Which workflows use a node, and which nodes a workflow uses, in its current version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db
from services.registry.domain.builtins import BY_ID

_LIST_USERS: Final[LiteralString] = """
    SELECT w.id, w.name
      FROM workflow_node_uses u
      JOIN workflows w ON w.id = u.workflow_id
     WHERE u.node_id = $1 AND u.tenant_id = $2
       AND w.deleted_at IS NULL AND (w.is_template OR NOT $3)
     ORDER BY w.created_at, w.id
     LIMIT $4
"""


async def list_users(
    db: Db, node_id: UUID, *, tenant_id: UUID, templates_only: bool, limit: int
) -> list[tuple[UUID, str]]:
    """List the tenant's workflows whose current version uses a node: id and name, oldest first."""
    rows = await db.fetch(_LIST_USERS, node_id, tenant_id, templates_only, limit)
    return [(row["id"], row["name"]) for row in rows]


# In a fixed order, to avoid deadlocks. Conflicts with changes of such a node, but not with other
# transactions that use it.
_HOLD_NODES: Final[LiteralString] = """
    SELECT n.id
      FROM python_nodes n
      JOIN workflow_node_uses u ON u.node_id = n.id
     WHERE u.workflow_id = $1 AND n.tenant_id = u.tenant_id
     ORDER BY n.id
       FOR KEY SHARE OF n
"""
# A stronger lock: changes of a workflow take FOR NO KEY UPDATE, so that starts do not wait, and
# that does not conflict with KEY SHARE.
_HOLD_WORKFLOWS: Final[LiteralString] = """
    SELECT w.id
      FROM workflows w
      JOIN workflow_node_uses u ON u.node_id = w.id
     WHERE u.workflow_id = $1 AND w.tenant_id = u.tenant_id
     ORDER BY w.id
       FOR SHARE OF w
"""


async def hold_nodes(db: Db, workflow_id: UUID) -> None:
    """Lock what a workflow runs, as far as its own tenant owns it, until the transaction ends."""
    await db.execute(_HOLD_NODES, workflow_id)
    await db.execute(_HOLD_WORKFLOWS, workflow_id)


@dataclass(frozen=True, slots=True)
class UsedNode:
    """A node used by a workflow, or a workflow run as one.

    If the caller cannot see it, it has no name and is not shared.
    """

    id: UUID
    kind: str
    name: str
    deleted: bool
    shared: bool


_LIST_USED: Final[LiteralString] = """
    SELECT u.node_id, COALESCE(n.name, w.name, '') AS name,
           CASE WHEN w.id IS NULL THEN 'node' ELSE 'workflow' END AS kind,
           COALESCE(n.deleted_at, w.deleted_at) IS NOT NULL AS deleted,
           COALESCE(n.is_public OR n.is_template, w.is_template, false) AS shared
      FROM workflow_node_uses u
      LEFT JOIN python_nodes n ON n.id = u.node_id
      LEFT JOIN workflows w ON w.id = u.node_id
     WHERE u.workflow_id = $1 AND u.node_id <> ALL ($2)
     ORDER BY u.node_id
"""


async def list_used(db: Db, workflow_id: UUID) -> list[UsedNode]:
    """List what a workflow's current version uses, except the built-in nodes."""
    rows = await db.fetch(_LIST_USED, workflow_id, list(BY_ID))
    return [
        UsedNode(row["node_id"], row["kind"], row["name"], row["deleted"], row["shared"])
        for row in rows
    ]


_FOREIGN_VERSIONS: Final[LiteralString] = """
    SELECT id, version
      FROM python_nodes
     WHERE id = ANY($1) AND tenant_id <> $2 AND deleted_at IS NULL
"""


async def foreign_versions(db: Db, node_ids: Sequence[UUID], *, tenant_id: UUID) -> dict[UUID, int]:
    """Return the current versions of those nodes that belong to other tenants."""
    rows = await db.fetch(_FOREIGN_VERSIONS, node_ids, tenant_id)
    return {row["id"]: row["version"] for row in rows}
