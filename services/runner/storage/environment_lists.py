"""Environments as callers see them, and versions they may prepare, under row-level security."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEnvironment:
    """An environment, as callers see it."""

    id: UUID
    key: str
    python_version: str
    platform: str
    lock_digest: str
    state: str
    package_count: int
    size_bytes: int | None
    build_ms: int | None
    error: str
    has_bom: bool
    created_at: datetime
    ready_at: datetime | None
    last_used_at: datetime | None


_LIST: Final[LiteralString] = """
    SELECT id, key, python_version, platform, lock_digest, state, package_count, size_bytes,
           build_ms, coalesce(error, '') AS error, bom IS NOT NULL AS has_bom, created_at,
           ready_at, last_used_at
      FROM environments
     WHERE tenant_id = $1
       AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $4
"""


async def list_page(
    db: Db, tenant_id: UUID, *, after: tuple[datetime, UUID] | None, limit: int
) -> list[StoredEnvironment]:
    """Return a page of a tenant's environments, newest first."""
    created_at, last_id = after or (None, None)
    rows = await db.fetch(_LIST, tenant_id, created_at, last_id, limit)
    return [StoredEnvironment(**row) for row in rows]


_GET: Final[LiteralString] = """
    SELECT id, key, python_version, platform, lock_digest, state, package_count, size_bytes,
           build_ms, coalesce(error, '') AS error, bom IS NOT NULL AS has_bom, created_at,
           ready_at, last_used_at
      FROM environments
     WHERE tenant_id = $1 AND id = $2
"""


async def get(db: Db, tenant_id: UUID, environment_id: UUID) -> StoredEnvironment | None:
    """Return an environment of a tenant; None if it does not exist."""
    row = await db.fetchrow(_GET, tenant_id, environment_id)
    return None if row is None else StoredEnvironment(**row)


_BY_KEYS: Final[LiteralString] = """
    SELECT id, key, python_version, platform, lock_digest, state, package_count, size_bytes,
           build_ms, coalesce(error, '') AS error, bom IS NOT NULL AS has_bom, created_at,
           ready_at, last_used_at
      FROM environments
     WHERE tenant_id = $1 AND key = ANY($2::text[])
"""


async def by_keys(db: Db, tenant_id: UUID, keys: Sequence[str]) -> dict[str, StoredEnvironment]:
    """Return environments of a tenant by their keys."""
    rows = await db.fetch(_BY_KEYS, tenant_id, list(keys))
    return {row["key"]: StoredEnvironment(**row) for row in rows}


_BOM: Final[LiteralString] = """
    SELECT bom::text FROM environments WHERE tenant_id = $1 AND id = $2
"""


async def get_bom(db: Db, tenant_id: UUID, environment_id: UUID) -> str | None:
    """Return an environment's bill of materials; None without it, or without the environment."""
    found: str | None = await db.fetchval(_BOM, tenant_id, environment_id)
    return found


# Versions of nodes that the caller may read; version 0 means the current one. `position` is that in
# the request.
_WANTED: Final[LiteralString] = """
    SELECT asked.position, version.id
      FROM unnest($1::uuid[], $2::integer[]) WITH ORDINALITY AS asked(node_id, version, position)
      JOIN python_nodes AS node ON node.id = asked.node_id AND node.deleted_at IS NULL
      JOIN python_node_versions AS version
        ON version.node_id = node.id
       AND version.version = coalesce(nullif(asked.version, 0), node.version)
     ORDER BY asked.position
"""


async def wanted_versions(db: Db, asked: Sequence[tuple[UUID, int]]) -> list[UUID]:
    """Return the ids of node versions that the caller may read, in the order asked."""
    nodes, versions = [node for node, _ in asked], [version for _, version in asked]
    return [row["id"] for row in await db.fetch(_WANTED, nodes, versions)]


# Places without a node are built-in ones or other workflows.
_NODES_OF: Final[LiteralString] = """
    SELECT DISTINCT place.node_id, coalesce(place.version, 0) AS version
      FROM workflows AS workflow
      JOIN workflow_versions AS version
        ON version.workflow_id = workflow.id
       AND version.version = coalesce(nullif($2::integer, 0), workflow.version)
     CROSS JOIN jsonb_to_recordset(version.nodes) AS place (node_id uuid, version integer)
     WHERE workflow.id = $1 AND workflow.deleted_at IS NULL AND place.node_id IS NOT NULL
     ORDER BY 1, 2
"""


async def nodes_of(db: Db, workflow_id: UUID, version: int) -> list[tuple[UUID, int]]:
    """Return the nodes of a workflow version with their versions; 0 means the current one."""
    rows = await db.fetch(_NODES_OF, workflow_id, version)
    return [(row["node_id"], row["version"]) for row in rows]


_HAS_WORKFLOW: Final[LiteralString] = """
    SELECT EXISTS (
           SELECT FROM workflows AS workflow
             JOIN workflow_versions AS version
               ON version.workflow_id = workflow.id
              AND version.version = coalesce(nullif($2::integer, 0), workflow.version)
            WHERE workflow.id = $1 AND workflow.deleted_at IS NULL)
"""


async def has_workflow(db: Db, workflow_id: UUID, version: int) -> bool:
    """Return whether the caller may read a workflow's version."""
    found: bool = await db.fetchval(_HAS_WORKFLOW, workflow_id, version)
    return found
