"""Python nodes, their versions, and the initial rows of those versions' locks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

import orjson

from services.kit.pg import Db, Row
from services.kit.updates import etag_of
from services.registry.domain.requirements import Requirement
from services.registry.domain.source import Output, Parameter
from services.registry.domain.stored import (
    inputs_from_json,
    inputs_to_json,
    outputs_from_json,
    outputs_to_json,
    requirements_from_json,
    requirements_to_json,
)
from services.registry.domain.tags import AttachedTag, attached_from_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node as shown by one of its versions."""

    id: UUID
    version_id: UUID
    version: int
    current_version: int
    name: str
    description: str
    code: str
    main_function: str
    is_async: bool
    python_version: str
    inputs: tuple[Parameter, ...]
    outputs: tuple[Output, ...]
    requirements: tuple[Requirement, ...]
    lock_state: str
    lock_error: str
    tenant_id: UUID
    created_by: UUID
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None
    is_public: bool = False
    is_template: bool = False
    cloned_from: tuple[UUID, int] | None = None  # a node id and its version
    tags: tuple[AttachedTag, ...] = ()

    @property
    def is_shared(self) -> bool:
        """Whether every tenant may read and run it."""
        return self.is_public or self.is_template

    @property
    def etag(self) -> str:
        """A tag that changes with each change of the node."""
        return etag_of(self.current_version, self.updated_at)


def _shown(node: Node) -> tuple[object, ...]:
    """Return the values of the columns from `name` to `is_async`, in order."""
    return (
        node.name,
        node.description,
        node.code,
        node.main_function,
        node.python_version,
        requirements_to_json(node.requirements),
        inputs_to_json(node.inputs),
        outputs_to_json(node.outputs),
        node.is_async,
    )


_INSERT_NODE: Final[LiteralString] = """
    INSERT INTO python_nodes
           (id, name, description, code, main_function, python_version, dependencies, input_types,
            output_types, is_async, tenant_id, created_by, cloned_from_id, cloned_from_version,
            version)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 1)
 RETURNING created_at, updated_at
"""


async def insert_node(db: Db, node: Node) -> tuple[datetime, datetime]:
    """Insert a node; returns its creation and update times."""
    row = await db.fetchrow(
        _INSERT_NODE,
        node.id,
        *_shown(node),
        node.tenant_id,
        node.created_by,
        *(node.cloned_from or (None, None)),
    )
    assert row is not None
    return row["created_at"], row["updated_at"]


_INSERT_VERSION: Final[LiteralString] = """
    WITH version AS (
        INSERT INTO python_node_versions
               (id, node_id, version, name, description, code, main_function, python_version,
                dependencies, input_types, output_types, is_async, created_by)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
     RETURNING id
    )
    SELECT id FROM version
"""

# A separate statement, since the row-level policy on locks looks up the version's row.
_INSERT_LOCK: Final[LiteralString] = """
    INSERT INTO node_version_locks (node_version_id, tenant_id, state)
    VALUES ($1, $2, $3)
"""


async def insert_version(db: Db, node: Node) -> None:
    """Insert the version that a node shows, and its lock in its initial state."""
    await insert_version_alone(db, node)
    await db.execute(_INSERT_LOCK, node.version_id, node.tenant_id, node.lock_state)


async def insert_version_alone(db: Db, node: Node) -> None:
    """Insert the version that a node shows; its lock must follow in the same transaction."""
    await db.fetchval(
        _INSERT_VERSION,
        node.version_id,
        node.id,
        node.version,
        *_shown(node),
        node.created_by,
    )


# Compares the version that the change is based on: of two concurrent changes, one updates no row.
_UPDATE_NODE: Final[LiteralString] = """
    UPDATE python_nodes
       SET name = $3, description = $4, code = $5, main_function = $6, python_version = $7,
           dependencies = $8, input_types = $9, output_types = $10, is_async = $11, version = $12,
           is_public = $13, is_template = $14
     WHERE id = $1 AND version = $2 AND deleted_at IS NULL
 RETURNING updated_at
"""


async def update_node(db: Db, node: Node, *, was: int) -> datetime | None:
    """Update a node; returns its update time, None if its version changed meanwhile."""
    updated_at: datetime | None = await db.fetchval(
        _UPDATE_NODE,
        node.id,
        was,
        *_shown(node),
        node.version,
        node.is_public,
        node.is_template,
    )
    return updated_at


# Types are read as JSON text, since most rows of a page of large ones are never decoded. A version
# shows its own name and description. The current version shows the node's, which may have changed
# since without a new version.
_GET_NODE: Final[LiteralString] = """
    SELECT n.id, n.tenant_id, n.created_by, n.created_at, n.updated_at,
           n.deleted_at, n.is_public, n.is_template, n.cloned_from_id, n.cloned_from_version,
           n.version AS current_version,
           v.id AS version_id, v.version,
           CASE WHEN v.version = n.version THEN n.name ELSE v.name END AS name,
           CASE WHEN v.version = n.version THEN n.description ELSE v.description END AS description,
           CASE WHEN $3 THEN v.code ELSE '' END AS code,
           v.main_function, v.is_async, v.python_version,
           v.input_types::json AS input_types, v.output_types::json AS output_types,
           v.dependencies, l.state AS lock_state, l.error AS lock_error,
           (SELECT json_agg(json_build_array(t.id, t.name, t.color) ORDER BY t.name)
              FROM python_node_tag_relations r JOIN python_node_tags t ON t.id = r.tag_id
             WHERE r.node_id = n.id) AS tags
      FROM python_nodes n
      JOIN python_node_versions v
        ON v.node_id = n.id AND v.version = COALESCE(NULLIF($2, 0), n.version)
      LEFT JOIN node_version_locks l ON l.node_version_id = v.id
     WHERE n.id = $1
"""


async def get_node(
    db: Db, node_id: UUID, *, version: int = 0, with_code: bool = True
) -> Node | None:
    """Return a node at a version, 0 for the current one; None if the caller cannot see it.

    Deleted nodes are returned too; callers check `deleted_at`.
    """
    row = await db.fetchrow(_GET_NODE, node_id, version, with_code)
    return None if row is None else to_node(row)


# Row-level security lets a caller lock only rows that the caller may change. Conflicts with the
# share locks of transactions that store a workflow with the node.
_LOCK_NODE: Final[LiteralString] = """
    SELECT id FROM python_nodes WHERE id = $1 FOR UPDATE
"""


async def lock_node(db: Db, node_id: UUID) -> bool:
    """Lock a node until the transaction ends; False if the caller may not change it."""
    return await db.fetchval(_LOCK_NODE, node_id) is not None


_LIST_NODES: Final[LiteralString] = """
    SELECT n.id, n.tenant_id, n.created_by, n.created_at, n.updated_at,
           n.deleted_at, n.is_public, n.is_template, n.cloned_from_id, n.cloned_from_version,
           n.version AS current_version, v.id AS version_id, v.version, n.name, n.description,
           CASE WHEN $2 THEN v.code ELSE '' END AS code,
           v.main_function, v.is_async, v.python_version,
           v.input_types::json AS input_types, v.output_types::json AS output_types,
           v.dependencies, l.state AS lock_state, l.error AS lock_error,
           (SELECT json_agg(json_build_array(t.id, t.name, t.color) ORDER BY t.name)
              FROM python_node_tag_relations r JOIN python_node_tags t ON t.id = r.tag_id
             WHERE r.node_id = n.id) AS tags
      FROM unnest($1::uuid[]) WITH ORDINALITY AS asked (id, place)
      JOIN python_nodes n ON n.id = asked.id
      JOIN python_node_versions v ON v.node_id = n.id AND v.version = n.version
      LEFT JOIN node_version_locks l ON l.node_version_id = v.id
     WHERE n.deleted_at IS NULL OR $3
     ORDER BY asked.place
"""


async def list_nodes(
    db: Db, node_ids: Sequence[UUID], *, with_code: bool, with_deleted: bool = False
) -> Iterator[Node]:
    """Return nodes in the order of the ids; those deleted meanwhile are left out."""
    return map(to_node, await db.fetch(_LIST_NODES, node_ids, with_code, with_deleted))


# One row per requested pair; the columns are null if there is no such version.
_GET_SIGNATURES: Final[LiteralString] = """
    SELECT asked.node_id, asked.version, v.python_version, v.is_async,
           v.input_types::json AS input_types, v.output_types::json AS output_types
      FROM unnest($1::uuid[], $2::int[]) AS asked (node_id, version)
      LEFT JOIN python_nodes n ON n.id = asked.node_id AND n.deleted_at IS NULL
      LEFT JOIN python_node_versions v
        ON v.node_id = n.id AND v.version = COALESCE(NULLIF(asked.version, 0), n.version)
"""

# Types stay JSON text: the caller decides by length whether to decode them in a thread.
Signatures = dict[tuple[UUID, int], dict[str, str] | None]


async def get_signatures(db: Db, asked: Sequence[tuple[UUID, int]]) -> Signatures:
    """Return the types of node versions, 0 for the current one; None for a missing version."""
    rows = await db.fetch(
        _GET_SIGNATURES, [node_id for node_id, _ in asked], [version for _, version in asked]
    )
    return {
        (row["node_id"], row["version"]): None
        if row["input_types"] is None
        else {
            "python_version": row["python_version"],
            "input_types": row["input_types"],
            "output_types": row["output_types"],
            "is_async": "yes" if row["is_async"] else "",
        }
        for row in rows
    }


def to_node(row: Row) -> Node:
    """Build a node from the columns that every statement on nodes selects."""
    model = row["cloned_from_id"]
    return Node(
        id=row["id"],
        version_id=row["version_id"],
        version=row["version"],
        current_version=row["current_version"],
        name=row["name"],
        description=row["description"] or "",
        code=row["code"],
        main_function=row["main_function"],
        is_async=row["is_async"],
        python_version=row["python_version"],
        inputs=inputs_from_json(orjson.loads(row["input_types"])),
        outputs=outputs_from_json(orjson.loads(row["output_types"])),
        requirements=requirements_from_json(row["dependencies"] or ()),
        lock_state=row["lock_state"] or "none",
        lock_error=row["lock_error"] or "",
        tenant_id=row["tenant_id"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        deleted_at=row["deleted_at"],
        is_public=row["is_public"],
        is_template=row["is_template"],
        cloned_from=None if model is None else (model, row["cloned_from_version"]),
        tags=attached_from_json(row["tags"]),
    )
