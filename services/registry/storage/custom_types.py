"""Custom types, and the node versions that use them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID

from qflow.types import Type, from_json, to_json

from services.kit.pg import Db, Row
from services.kit.updates import etag_of
from services.registry.domain.custom_type import Written, written_from_json, written_to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomType:
    """A custom type in its current version."""

    id: UUID
    name: str
    description: str
    written: Written
    type: Type
    version: int
    node_count: int
    tenant_id: UUID
    created_by: UUID
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """A tag that changes with each change of the type."""
        return etag_of(self.version, self.updated_at)


_INSERT_TYPE: Final[LiteralString] = """
    INSERT INTO custom_types (id, name, description, definition, tenant_id, created_by)
    VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT DO NOTHING
 RETURNING created_at, updated_at
"""


async def insert_type(db: Db, custom: CustomType) -> tuple[datetime, datetime] | None:
    """Insert a type; returns its creation and update times, None if the name is taken."""
    row = await db.fetchrow(
        _INSERT_TYPE,
        custom.id,
        custom.name,
        custom.description,
        _definition(custom),
        custom.tenant_id,
        custom.created_by,
    )
    return None if row is None else (row["created_at"], row["updated_at"])


# Counts nodes whose current version uses the type: older versions keep their form anyway.
_GET_TYPE: Final[LiteralString] = """
    SELECT t.id, t.name, t.description, t.definition, t.version, t.tenant_id, t.created_by,
           t.created_at, t.updated_at,
           (SELECT count(*) FROM custom_type_uses u
              JOIN python_node_versions v ON v.id = u.node_version_id
              JOIN python_nodes n ON n.id = v.node_id AND n.version = v.version
             WHERE u.custom_type_id = t.id AND n.deleted_at IS NULL) AS node_count
      FROM custom_types t
     WHERE t.id = $1
"""


async def get_type(db: Db, type_id: UUID) -> CustomType | None:
    """Return a type; None if the caller cannot see it."""
    row = await db.fetchrow(_GET_TYPE, type_id)
    return None if row is None else _to_type(row)


_LIST_TYPES: Final[LiteralString] = """
    SELECT t.id, t.name, t.description, t.definition, t.version, t.tenant_id, t.created_by,
           t.created_at, t.updated_at,
           (SELECT count(*) FROM custom_type_uses u
              JOIN python_node_versions v ON v.id = u.node_version_id
              JOIN python_nodes n ON n.id = v.node_id AND n.version = v.version
             WHERE u.custom_type_id = t.id AND n.deleted_at IS NULL) AS node_count
      FROM custom_types t
     WHERE t.tenant_id = $1
       AND ($2::timestamptz IS NULL OR (t.created_at, t.id) < ($2, $3::uuid))
     ORDER BY t.created_at DESC, t.id DESC
     LIMIT $4
"""


async def list_types(
    db: Db, tenant_id: UUID, *, after: tuple[datetime, UUID] | None, limit: int
) -> Iterator[CustomType]:
    """List a tenant's types, newest first, after the last row of the page before."""
    moment, last_id = after or (None, None)
    return map(_to_type, await db.fetch(_LIST_TYPES, tenant_id, moment, last_id, limit))


_FIND_TYPES: Final[LiteralString] = """
    SELECT t.id, t.name, t.description, t.definition, t.version, t.tenant_id, t.created_by,
           t.created_at, t.updated_at, 0::bigint AS node_count
      FROM custom_types t
     WHERE t.tenant_id = $1 AND t.name = ANY ($2::text[])
"""


async def find_types(db: Db, tenant_id: UUID, names: Sequence[str]) -> dict[str, CustomType]:
    """Find a tenant's types by name; `node_count` is not computed."""
    rows = await db.fetch(_FIND_TYPES, tenant_id, list(names))
    return {row["name"]: _to_type(row) for row in rows}


# Row-level security lets a caller lock only what the caller may change.
_LOCK_TYPE: Final[LiteralString] = """
    SELECT id FROM custom_types WHERE id = $1 FOR UPDATE
"""


async def lock_type(db: Db, type_id: UUID) -> bool:
    """Lock a type until the transaction ends, so that nothing starts to use it.

    Returns False if the caller may not change it.
    """
    return await db.fetchval(_LOCK_TYPE, type_id) is not None


_UPDATE_TYPE: Final[LiteralString] = """
    UPDATE custom_types
       SET description = $2, definition = $3, version = $4
     WHERE id = $1
 RETURNING updated_at
"""


async def update_type(db: Db, custom: CustomType) -> datetime:
    """Update a type that the caller has locked; returns its update time."""
    updated_at: datetime = await db.fetchval(
        _UPDATE_TYPE, custom.id, custom.description, _definition(custom), custom.version
    )
    return updated_at


_DELETE_TYPE: Final[LiteralString] = """
    DELETE FROM custom_types WHERE id = $1
"""


async def delete_type(db: Db, type_id: UUID) -> None:
    """Delete a type that the caller has locked, with its recorded uses."""
    await db.execute(_DELETE_TYPE, type_id)


# Waits for a concurrent deletion of a type, and then skips it: the node does not need the row.
_INSERT_USES: Final[LiteralString] = """
    INSERT INTO custom_type_uses (custom_type_id, node_version_id, custom_type_version, tenant_id)
    SELECT t.id, $1, used.version, t.tenant_id
      FROM unnest($2::uuid[], $3::int[]) AS used (id, version)
      JOIN custom_types t ON t.id = used.id
     ORDER BY t.id
       FOR KEY SHARE OF t
"""


async def insert_uses(db: Db, node_version_id: UUID, used: Sequence[CustomType]) -> None:
    """Record the types, with their versions, that a node version was made with."""
    if used:
        await db.execute(
            _INSERT_USES,
            node_version_id,
            [each.id for each in used],
            [each.version for each in used],
        )


_COPY_USES: Final[LiteralString] = """
    INSERT INTO custom_type_uses (custom_type_id, node_version_id, custom_type_version, tenant_id)
    SELECT u.custom_type_id, $2, u.custom_type_version, u.tenant_id
      FROM custom_type_uses u JOIN custom_types t ON t.id = u.custom_type_id
     WHERE u.node_version_id = $1
     ORDER BY t.id
       FOR KEY SHARE OF t
"""


async def copy_uses(db: Db, *, model: UUID, version_id: UUID) -> None:
    """Copy the recorded type uses of one node version to another."""
    await db.execute(_COPY_USES, model, version_id)


def _definition(custom: CustomType) -> dict[str, Any]:
    return {**written_to_json(custom.written), "form": to_json(custom.type)}


def _to_type(row: Row) -> CustomType:
    stored = row["definition"]
    return CustomType(
        id=row["id"],
        name=row["name"],
        description=row["description"],
        written=written_from_json(stored),
        type=from_json(stored["form"]),
        version=row["version"],
        node_count=row["node_count"],
        tenant_id=row["tenant_id"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
