"""Variables of tenants and workflows, and which workflows read them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID

from qflow.types import Type, from_json, to_json

from services.kit.pg import Db, Row
from services.kit.updates import etag_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A named value of a workflow, or of the whole tenant if `workflow_id` is None."""

    id: UUID
    workflow_id: UUID | None
    name: str
    type: Type
    value_json: str  # the exact text
    description: str
    revision: int
    created_by: UUID
    created_at: datetime
    updated_by: UUID
    updated_at: datetime

    @property
    def etag(self) -> str:
        """A tag that changes with each change, and differs for a variable that is created again."""
        return etag_of(self.revision, self.updated_at)


# Serializes changes of a tenant's variables, so that the count is exact.
_LOCK: Final[LiteralString] = """
    SELECT pg_advisory_xact_lock(hashtextextended('variables ' || $1::text, 0))
"""


async def lock_tenant(db: Db, tenant_id: UUID) -> None:
    """Lock the variables of a tenant until the transaction ends."""
    await db.execute(_LOCK, str(tenant_id))


_GET: Final[LiteralString] = """
    SELECT id, workflow_id, name, type, value, description, revision, created_by, created_at,
           updated_by, updated_at
      FROM variables
     WHERE tenant_id = current_tenant_id() AND name = $1 AND workflow_id IS NOT DISTINCT FROM $2
"""


async def get_variable(db: Db, name: str, workflow_id: UUID | None) -> Variable | None:
    """Return a variable of the tenant, or of one of its workflows."""
    row = await db.fetchrow(_GET, name, workflow_id)
    return None if row is None else _to_variable(row)


_LIST: Final[LiteralString] = """
    SELECT id, workflow_id, name, type, value, description, revision, created_by, created_at,
           updated_by, updated_at
      FROM variables
     WHERE tenant_id = current_tenant_id() AND workflow_id IS NOT DISTINCT FROM $1
       AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $4
"""


async def list_variables(
    db: Db, workflow_id: UUID | None, *, after: tuple[datetime, UUID] | None, limit: int
) -> list[Variable]:
    """List variables, newest first, after the last row of the page before."""
    moment, last_id = after or (None, None)
    rows = await db.fetch(_LIST, workflow_id, moment, last_id, limit)
    return [_to_variable(row) for row in rows]


_COUNT: Final[LiteralString] = """
    SELECT count(*) FROM variables WHERE tenant_id = current_tenant_id()
"""


async def count_variables(db: Db) -> int:
    """Count the variables of the tenant and of its workflows."""
    counted: int = await db.fetchval(_COUNT)
    return counted


_GET_TYPES: Final[LiteralString] = """
    SELECT DISTINCT ON (name) name, type
      FROM variables
     WHERE tenant_id = current_tenant_id() AND name = ANY($1)
       AND (workflow_id IS NULL OR workflow_id = $2)
     ORDER BY name, workflow_id NULLS LAST
"""


async def get_types(db: Db, names: Iterable[str], workflow_id: UUID | None) -> dict[str, Type]:
    """Return the types of the variables that a workflow would read; its own take precedence."""
    rows = await db.fetch(_GET_TYPES, sorted(names), workflow_id)
    return {row["name"]: from_json(row["type"]) for row in rows}


_INSERT: Final[LiteralString] = """
    INSERT INTO variables (id, workflow_id, name, type, value, description, created_by, updated_by)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
 RETURNING id, workflow_id, name, type, value, description, revision, created_by, created_at,
           updated_by, updated_at
"""


async def insert_variable(db: Db, variable: Variable) -> Variable:
    """Insert a variable; returns it with its times."""
    row = await db.fetchrow(
        _INSERT,
        variable.id,
        variable.workflow_id,
        variable.name,
        to_json(variable.type),
        variable.value_json,
        variable.description,
        variable.updated_by,
    )
    assert row is not None
    return _to_variable(row)


_UPDATE: Final[LiteralString] = """
    UPDATE variables
       SET type = $2, value = $3, description = $4, updated_by = $5, revision = revision + 1
     WHERE id = $1
 RETURNING id, workflow_id, name, type, value, description, revision, created_by, created_at,
           updated_by, updated_at
"""


async def update_variable(db: Db, variable: Variable) -> Variable:
    """Update a variable; returns it with its times."""
    row = await db.fetchrow(
        _UPDATE,
        variable.id,
        to_json(variable.type),
        variable.value_json,
        variable.description,
        variable.updated_by,
    )
    assert row is not None
    return _to_variable(row)


_DELETE: Final[LiteralString] = "DELETE FROM variables WHERE id = $1"


async def delete_variable(db: Db, variable_id: UUID) -> None:
    """Delete a variable."""
    await db.execute(_DELETE, variable_id)


# Considers versions that may start without being asked for by number: current and aliased ones. A
# workflow's own variable hides the tenant's.
_READERS: Final[LiteralString] = """
    SELECT w.id, w.name
      FROM workflows w
     WHERE w.tenant_id = current_tenant_id() AND w.is_active AND w.deleted_at IS NULL
       AND ($2::uuid IS NULL OR w.id = $2)
       AND EXISTS (
           SELECT 1 FROM workflow_versions v
            WHERE v.workflow_id = w.id AND v.settings -> 'variables' ? $1
              AND (v.version = w.version OR EXISTS (
                   SELECT 1 FROM workflow_aliases a
                    WHERE a.workflow_id = w.id AND a.version = v.version)))
       AND ($2::uuid IS NOT NULL OR NOT EXISTS (
           SELECT 1 FROM variables own WHERE own.workflow_id = w.id AND own.name = $1))
     ORDER BY w.created_at DESC, w.id DESC
     LIMIT $3
"""


async def find_readers(
    db: Db, name: str, workflow_id: UUID | None, *, limit: int
) -> list[tuple[UUID, str]]:
    """Return the active workflows that read a variable, by id and name."""
    rows = await db.fetch(_READERS, name, workflow_id, limit)
    return [(row["id"], row["name"]) for row in rows]


def _to_variable(row: Row) -> Variable:
    values: dict[str, Any] = dict(row)
    values["type"] = from_json(values["type"])
    values["value_json"] = values.pop("value")
    return Variable(**values)
