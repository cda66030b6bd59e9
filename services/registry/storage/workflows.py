"""Workflows and their versions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.kit.updates import etag_of
from services.registry.domain.definition import Definition
from services.registry.domain.stored import definition_from_json, definition_to_json
from services.registry.domain.tags import AttachedTag, attached_from_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """A workflow as shown by one of its versions."""

    id: UUID
    version: int
    current_version: int
    name: str
    description: str
    definition: Definition
    python_version: str
    is_active: bool
    tenant_id: UUID
    created_by: UUID
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None
    is_template: bool = False
    cloned_from: tuple[UUID, int] | None = None  # a workflow id and its version
    tags: tuple[AttachedTag, ...] = ()

    @property
    def etag(self) -> str:
        """A tag that changes with each change of the workflow."""
        return etag_of(self.current_version, self.updated_at)


def _graph(workflow: Workflow) -> tuple[object, ...]:
    """Return the values of the columns from `nodes` to `python_version`, in order."""
    stored = definition_to_json(workflow.definition)
    columns = ("nodes", "connections", "settings", "input_types", "output_types")
    return (*(stored[column] for column in columns), workflow.python_version)


_INSERT_WORKFLOW: Final[LiteralString] = """
    INSERT INTO workflows
           (id, name, description, nodes, connections, settings, input_types, output_types,
            python_version, is_active, tenant_id, created_by, cloned_from_id, cloned_from_version,
            version)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 1)
 RETURNING created_at, updated_at
"""


async def insert_workflow(db: Db, workflow: Workflow) -> tuple[datetime, datetime]:
    """Insert a workflow; returns its creation and update times."""
    row = await db.fetchrow(
        _INSERT_WORKFLOW,
        workflow.id,
        workflow.name,
        workflow.description,
        *_graph(workflow),
        workflow.is_active,
        workflow.tenant_id,
        workflow.created_by,
        *(workflow.cloned_from or (None, None)),
    )
    assert row is not None
    return row["created_at"], row["updated_at"]


_INSERT_VERSION: Final[LiteralString] = """
    INSERT INTO workflow_versions
           (id, workflow_id, version, name, nodes, connections, settings, input_types,
            output_types, python_version, created_by)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""


async def insert_version(db: Db, version_id: UUID, workflow: Workflow, *, author: UUID) -> None:
    """Insert the version that a workflow shows."""
    await db.execute(
        _INSERT_VERSION,
        version_id,
        workflow.id,
        workflow.version,
        workflow.name,
        *_graph(workflow),
        author,
    )


# Compares the version that the change is based on: of two concurrent changes, one updates no row.
_UPDATE_WORKFLOW: Final[LiteralString] = """
    UPDATE workflows
       SET name = $3, description = $4, nodes = $5, connections = $6, settings = $7,
           input_types = $8, output_types = $9, python_version = $10, is_active = $11,
           version = $12, is_template = $13
     WHERE id = $1 AND version = $2 AND deleted_at IS NULL
 RETURNING updated_at
"""


async def update_workflow(db: Db, workflow: Workflow, *, was: int) -> datetime | None:
    """Update a workflow; returns its update time, None if its version changed meanwhile."""
    updated_at: datetime | None = await db.fetchval(
        _UPDATE_WORKFLOW,
        workflow.id,
        was,
        workflow.name,
        workflow.description,
        *_graph(workflow),
        workflow.is_active,
        workflow.version,
        workflow.is_template,
    )
    return updated_at


# Definitions are large, so a change of other fields does not write them again.
_UPDATE_HEAD: Final[LiteralString] = """
    UPDATE workflows
       SET name = $3, description = $4, is_active = $5, is_template = $6
     WHERE id = $1 AND version = $2 AND deleted_at IS NULL
 RETURNING updated_at
"""


async def update_head(db: Db, workflow: Workflow) -> datetime | None:
    """Update the fields without versions; returns the update time, None if it changed meanwhile."""
    updated_at: datetime | None = await db.fetchval(
        _UPDATE_HEAD,
        workflow.id,
        workflow.version,
        workflow.name,
        workflow.description,
        workflow.is_active,
        workflow.is_template,
    )
    return updated_at


_GET_WORKFLOW: Final[LiteralString] = """
    SELECT w.id, w.tenant_id, w.created_by, w.created_at, w.updated_at, w.is_active,
           w.deleted_at, w.is_template, w.cloned_from_id, w.cloned_from_version,
           w.version AS current_version, w.description,
           CASE WHEN v.version = w.version THEN w.name ELSE v.name END AS name,
           v.version, v.python_version,
           CASE WHEN $3 THEN v.nodes ELSE '[]' END AS nodes,
           CASE WHEN $3 THEN v.connections ELSE '[]' END AS connections,
           v.settings, v.input_types, v.output_types,
           (SELECT json_agg(json_build_array(t.id, t.name, t.color) ORDER BY t.name)
              FROM workflow_tag_relations r JOIN workflow_tags t ON t.id = r.tag_id
             WHERE r.workflow_id = w.id) AS tags
      FROM workflows w
      JOIN workflow_versions v
        ON v.workflow_id = w.id AND v.version = COALESCE(NULLIF($2, 0), w.version)
     WHERE w.id = $1
"""


async def get_workflow(
    db: Db, workflow_id: UUID, *, version: int = 0, with_graph: bool = True
) -> Workflow | None:
    """Return a workflow at a version, 0 for the current one; None if the caller cannot see it.

    Deleted workflows are returned too; callers check `deleted_at`.
    """
    row = await db.fetchrow(_GET_WORKFLOW, workflow_id, version, with_graph)
    return None if row is None else to_workflow(row)


# The weaker lock does not block starts, which only reference the row; the engine writes them all in
# one queue, which must not wait.
_LOCK_WORKFLOW: Final[LiteralString] = """
    SELECT id FROM workflows WHERE id = $1 FOR NO KEY UPDATE
"""


async def lock_workflow(db: Db, workflow_id: UUID) -> bool:
    """Lock a workflow until the transaction ends; False if the caller may not change it."""
    return await db.fetchval(_LOCK_WORKFLOW, workflow_id) is not None


_LIST_WORKFLOWS: Final[LiteralString] = """
    SELECT w.id, w.tenant_id, w.created_by, w.created_at, w.updated_at, w.is_active,
           w.deleted_at, w.is_template, w.cloned_from_id, w.cloned_from_version,
           w.version AS current_version, w.version, w.name, w.description, w.python_version,
           CASE WHEN $2 THEN w.nodes ELSE '[]' END AS nodes,
           CASE WHEN $2 THEN w.connections ELSE '[]' END AS connections,
           w.settings, w.input_types, w.output_types,
           (SELECT json_agg(json_build_array(t.id, t.name, t.color) ORDER BY t.name)
              FROM workflow_tag_relations r JOIN workflow_tags t ON t.id = r.tag_id
             WHERE r.workflow_id = w.id) AS tags
      FROM unnest($1::uuid[]) WITH ORDINALITY AS asked (id, place)
      JOIN workflows w ON w.id = asked.id
     WHERE w.deleted_at IS NULL OR $3
     ORDER BY asked.place
"""


async def list_workflows(
    db: Db, workflow_ids: Sequence[UUID], *, with_graph: bool, with_deleted: bool = False
) -> Iterator[Workflow]:
    """Return workflows in the order of the ids; those deleted meanwhile are left out."""
    return map(to_workflow, await db.fetch(_LIST_WORKFLOWS, workflow_ids, with_graph, with_deleted))


def to_workflow(row: Row) -> Workflow:
    """Build a workflow from the columns that every statement on workflows selects."""
    model = row["cloned_from_id"]
    return Workflow(
        id=row["id"],
        version=row["version"],
        current_version=row["current_version"],
        name=row["name"],
        description=row["description"] or "",
        definition=definition_from_json(dict(row)),
        python_version=row["python_version"],
        is_active=row["is_active"],
        tenant_id=row["tenant_id"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        deleted_at=row["deleted_at"],
        is_template=row["is_template"],
        cloned_from=None if model is None else (model, row["cloned_from_version"]),
        tags=attached_from_json(row["tags"]),
    )
