"""Transfers of definitions between tenants, under the identity login.

Only that login may change the tenant of a definition. Its policies allow it only from the tenant
that the caller acts for and administers, to one in which the caller may create definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.kit.updates import etag_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A node or a workflow of the caller's tenant."""

    id: UUID
    name: str
    version: int
    updated_at: datetime
    is_active: bool = False

    @property
    def etag(self) -> str:
        """The same etag as the reading calls return."""
        return etag_of(self.version, self.updated_at)


_MEMBER_ROLE: Final[LiteralString] = """
    SELECT member_role($1)
"""


async def get_role(db: Db, tenant_id: UUID) -> str | None:
    """Return the caller's role in a tenant; None if they are not a member."""
    role: str | None = await db.fetchval(_MEMBER_ROLE, tenant_id)
    return role


_GET_NODE: Final[LiteralString] = """
    SELECT id, name, version, updated_at FROM python_nodes WHERE id = $1 AND tenant_id = $2
"""
_GET_WORKFLOW: Final[LiteralString] = """
    SELECT id, name, version, updated_at, is_active
      FROM workflows
     WHERE id = $1 AND tenant_id = $2
"""
# Conflicts with the share locks of transactions that store a workflow: either the new use is seen
# here, or that transaction sees that the nodes were moved.
_HOLD_NODES: Final[LiteralString] = """
    SELECT id, name, version, updated_at
      FROM python_nodes
     WHERE id = ANY($1) AND tenant_id = $2
     ORDER BY id
       FOR UPDATE
"""
_HOLD_WORKFLOW: Final[LiteralString] = """
    SELECT id, name, version, updated_at, is_active
      FROM workflows
     WHERE id = $1 AND tenant_id = $2
       FOR UPDATE
"""


async def get_node(db: Db, node_id: UUID, tenant_id: UUID) -> Moved | None:
    """Return a node of a tenant."""
    return _to_moved(await db.fetchrow(_GET_NODE, node_id, tenant_id))


async def get_workflow(db: Db, workflow_id: UUID, tenant_id: UUID) -> Moved | None:
    """Return a workflow of a tenant."""
    return _to_moved(await db.fetchrow(_GET_WORKFLOW, workflow_id, tenant_id))


async def hold_nodes(db: Db, node_ids: Sequence[UUID], tenant_id: UUID) -> list[Moved]:
    """Lock those of these nodes that are the tenant's, until the transaction ends."""
    rows = await db.fetch(_HOLD_NODES, list(node_ids), tenant_id)
    return [Moved(**dict(row)) for row in rows]


async def hold_workflow(db: Db, workflow_id: UUID, tenant_id: UUID) -> Moved | None:
    """Lock a workflow of a tenant until the transaction ends."""
    return _to_moved(await db.fetchrow(_HOLD_WORKFLOW, workflow_id, tenant_id))


_USED_IDS: Final[LiteralString] = """
    SELECT node_id FROM workflow_node_uses WHERE workflow_id = $1 ORDER BY node_id
"""
_SUB_WORKFLOWS: Final[LiteralString] = """
    SELECT w.id, w.name
      FROM workflow_node_uses u
      JOIN workflows w ON w.id = u.node_id
     WHERE u.workflow_id = $1 AND w.tenant_id = $2
     ORDER BY w.id
     LIMIT 1
"""
_OTHER_USER: Final[LiteralString] = """
    SELECT w.id, w.name
      FROM workflow_node_uses u
      JOIN workflows w ON w.id = u.workflow_id
     WHERE u.node_id = ANY($1) AND u.tenant_id = $2 AND w.tenant_id = $2
       AND w.deleted_at IS NULL AND ($3::uuid IS NULL OR w.id <> $3)
     ORDER BY w.id
     LIMIT 1
"""
_CUSTOM_TYPES: Final[LiteralString] = """
    SELECT EXISTS (SELECT 1 FROM custom_type_uses c
                     JOIN python_node_versions v ON v.id = c.node_version_id
                    WHERE v.node_id = ANY($1))
"""


async def list_used(db: Db, workflow_id: UUID) -> list[UUID]:
    """List the ids that a workflow uses: nodes, and workflows that it runs."""
    return [row["node_id"] for row in await db.fetch(_USED_IDS, workflow_id)]


async def find_sub_workflow(db: Db, workflow_id: UUID, tenant_id: UUID) -> tuple[UUID, str] | None:
    """Return the id and name of a workflow of the tenant that this workflow runs."""
    return _named(await db.fetchrow(_SUB_WORKFLOWS, workflow_id, tenant_id))


async def find_user(
    db: Db, ids: Sequence[UUID], tenant_id: UUID, *, but: UUID | None = None
) -> tuple[UUID, str] | None:
    """Return id and name of a workflow of the tenant, not `but`, that uses any of these ids."""
    return _named(await db.fetchrow(_OTHER_USER, list(ids), tenant_id, but))


async def use_custom_types(db: Db, node_ids: Sequence[UUID]) -> bool:
    """Return whether any version of these nodes uses a custom type of its tenant."""
    found: bool = await db.fetchval(_CUSTOM_TYPES, list(node_ids))
    return found


_UNTAG_NODES: Final[LiteralString] = """
    DELETE FROM python_node_tag_relations WHERE node_id = ANY($1)
"""
_MOVE_LOCKS: Final[LiteralString] = """
    UPDATE node_version_locks AS l SET tenant_id = $2
      FROM python_node_versions AS v
     WHERE v.id = l.node_version_id AND v.node_id = ANY($1) AND l.tenant_id = $3
"""
_MOVE_NODES: Final[LiteralString] = """
    UPDATE python_nodes SET tenant_id = $2 WHERE id = ANY($1) AND tenant_id = $3
"""


async def move_nodes(db: Db, node_ids: Sequence[UUID], *, source: UUID, target: UUID) -> None:
    """Move locked nodes to another tenant, with the lock files of their versions."""
    ids = list(node_ids)
    await db.execute(_UNTAG_NODES, ids)
    await db.execute(_MOVE_LOCKS, ids, target, source)  # first, while versions are still visible
    await db.execute(_MOVE_NODES, ids, target, source)


_UNTAG_WORKFLOW: Final[LiteralString] = """
    DELETE FROM workflow_tag_relations WHERE workflow_id = $1
"""
_MOVE_USES: Final[LiteralString] = """
    UPDATE workflow_node_uses SET tenant_id = $2 WHERE workflow_id = $1 AND tenant_id = $3
"""
_MOVE_ALIASES: Final[LiteralString] = """
    UPDATE workflow_aliases SET tenant_id = $2 WHERE workflow_id = $1 AND tenant_id = $3
"""
_MOVE_CHANGES: Final[LiteralString] = """
    UPDATE workflow_alias_changes SET tenant_id = $2 WHERE workflow_id = $1 AND tenant_id = $3
"""
_MOVE_VARIABLES: Final[LiteralString] = """
    UPDATE variables SET tenant_id = $2 WHERE workflow_id = $1 AND tenant_id = $3
"""
_MOVE_WORKFLOW: Final[LiteralString] = """
    UPDATE workflows SET tenant_id = $2 WHERE id = $1 AND tenant_id = $3
"""


async def move_workflow(db: Db, workflow_id: UUID, *, source: UUID, target: UUID) -> None:
    """Move a locked workflow to another tenant, with everything that belongs to it."""
    await db.execute(_UNTAG_WORKFLOW, workflow_id)
    await db.execute(_MOVE_USES, workflow_id, target, source)
    await db.execute(_MOVE_ALIASES, workflow_id, target, source)
    await db.execute(_MOVE_CHANGES, workflow_id, target, source)
    await db.execute(_MOVE_VARIABLES, workflow_id, target, source)
    await db.execute(_MOVE_WORKFLOW, workflow_id, target, source)


def _to_moved(row: Row | None) -> Moved | None:
    return None if row is None else Moved(**dict(row))


def _named(row: Row | None) -> tuple[UUID, str] | None:
    return None if row is None else (row["id"], row["name"])
