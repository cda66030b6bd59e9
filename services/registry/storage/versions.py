"""The versions of nodes and workflows, and copies of lock files between versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, LiteralString, TypeVar
from uuid import UUID

from services.kit.pg import Db
from services.registry.storage.nodes import Node, to_node
from services.registry.storage.workflows import Workflow, to_workflow

Shown = TypeVar("Shown", Node, Workflow)


@dataclass(frozen=True, slots=True)
class Version(Generic[Shown]):
    """The content of one version, its author and its creation time."""

    shown: Shown
    author: UUID
    made_at: datetime


_LIST_NODE_VERSIONS: Final[LiteralString] = """
    SELECT n.id, n.tenant_id, n.created_by, n.created_at, n.updated_at,
           n.deleted_at, n.is_public, n.is_template, n.cloned_from_id, n.cloned_from_version,
           n.version AS current_version, v.id AS version_id, v.version,
           CASE WHEN v.version = n.version THEN n.name ELSE v.name END AS name,
           CASE WHEN v.version = n.version THEN n.description ELSE v.description END AS description,
           CASE WHEN $4 THEN v.code ELSE '' END AS code,
           v.main_function, v.is_async, v.python_version,
           v.input_types::json AS input_types, v.output_types::json AS output_types,
           v.dependencies, l.state AS lock_state, l.error AS lock_error,
           v.created_by AS author, v.created_at AS made_at,
           (SELECT json_agg(json_build_array(t.id, t.name, t.color) ORDER BY t.name)
              FROM python_node_tag_relations r JOIN python_node_tags t ON t.id = r.tag_id
             WHERE r.node_id = n.id) AS tags
      FROM python_nodes n
      JOIN python_node_versions v ON v.node_id = n.id
      LEFT JOIN node_version_locks l ON l.node_version_id = v.id
     WHERE n.id = $1 AND ($2 = 0 OR v.version < $2)
     ORDER BY v.version DESC
     LIMIT $3
"""


async def list_node_versions(
    db: Db, node_id: UUID, *, before: int, limit: int, with_code: bool
) -> Iterator[Version[Node]]:
    """List a node's versions, newest first, below `before`; 0 starts with the newest."""
    rows = await db.fetch(_LIST_NODE_VERSIONS, node_id, before, limit, with_code)
    return (Version(to_node(row), row["author"], row["made_at"]) for row in rows)


_LIST_WORKFLOW_VERSIONS: Final[LiteralString] = """
    SELECT w.id, w.tenant_id, w.created_by, w.created_at, w.updated_at, w.is_active,
           w.deleted_at, w.is_template, w.cloned_from_id, w.cloned_from_version,
           w.version AS current_version, w.description,
           CASE WHEN v.version = w.version THEN w.name ELSE v.name END AS name,
           v.version, v.python_version,
           CASE WHEN $4 THEN v.nodes ELSE '[]' END AS nodes,
           CASE WHEN $4 THEN v.connections ELSE '[]' END AS connections,
           v.settings, v.input_types, v.output_types,
           v.created_by AS author, v.created_at AS made_at,
           (SELECT json_agg(json_build_array(t.id, t.name, t.color) ORDER BY t.name)
              FROM workflow_tag_relations r JOIN workflow_tags t ON t.id = r.tag_id
             WHERE r.workflow_id = w.id) AS tags
      FROM workflows w
      JOIN workflow_versions v ON v.workflow_id = w.id
     WHERE w.id = $1 AND ($2 = 0 OR v.version < $2)
     ORDER BY v.version DESC
     LIMIT $3
"""


async def list_workflow_versions(
    db: Db, workflow_id: UUID, *, before: int, limit: int, with_graph: bool
) -> Iterator[Version[Workflow]]:
    """List a workflow's versions, newest first, below `before`; 0 starts with the newest."""
    rows = await db.fetch(_LIST_WORKFLOW_VERSIONS, workflow_id, before, limit, with_graph)
    return (Version(to_workflow(row), row["author"], row["made_at"]) for row in rows)


# A failed or pending lock is not copied; the new version resolves its own.
_COPY_LOCK: Final[LiteralString] = """
    INSERT INTO node_version_locks (node_version_id, tenant_id, state, lock, lock_digest)
    SELECT $2, $3,
           CASE WHEN model.state IN ('locked', 'none') THEN model.state ELSE 'pending' END,
           CASE WHEN model.state = 'locked' THEN model.lock END,
           CASE WHEN model.state = 'locked' THEN model.lock_digest END
      FROM node_version_locks model
     WHERE model.node_version_id = $1
 RETURNING state
"""


async def copy_lock(db: Db, *, model: UUID, version_id: UUID, tenant_id: UUID) -> str:
    """Copy the lock of a version with the same requirements to another one; returns its state."""
    state: str | None = await db.fetchval(_COPY_LOCK, model, version_id, tenant_id)
    assert state is not None, "a version is stored with its lock"
    return state
