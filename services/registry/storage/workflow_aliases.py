"""Aliases of workflows and their history."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A name for a version; `updated_by` is None for callers of other tenants."""

    workflow_id: UUID
    name: str
    version: int
    id: UUID
    promotion_id: UUID
    change_id: UUID
    created_by: UUID
    created_at: datetime
    updated_by: UUID | None = None
    updated_at: datetime | None = None

    @property
    def etag(self) -> str:
        """A tag that changes with each change of the alias."""
        return str(self.change_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An entry of an alias's history; `previous_id` is the entry that a rollback returns to."""

    id: UUID
    workflow_id: UUID
    alias: str
    kind: str  # set, roll_back, delete
    from_version: int | None
    to_version: int | None
    previous_id: UUID | None
    created_by: UUID
    created_at: datetime


# Serializes changes of a workflow's aliases, without blocking starts.
_LOCK: Final[LiteralString] = """
    SELECT id FROM workflows WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE
"""


async def lock_workflow(db: Db, workflow_id: UUID) -> bool:
    """Lock a workflow until the transaction ends; False if the caller may not change it."""
    return await db.fetchval(_LOCK, workflow_id) is not None


_GET: Final[LiteralString] = """
    SELECT alias.workflow_id, alias.name, alias.version, alias.id, alias.promotion_id,
           alias.change_id, alias.created_by, alias.created_at,
           change.created_by AS updated_by, change.created_at AS updated_at
      FROM workflow_aliases AS alias
      JOIN workflows ON workflows.id = alias.workflow_id AND workflows.deleted_at IS NULL
      LEFT JOIN workflow_alias_changes AS change ON change.id = alias.change_id
     WHERE alias.workflow_id = $1 AND alias.name = $2
"""


async def get_alias(db: Db, workflow_id: UUID, name: str) -> Alias | None:
    """Return an alias; None if there is none, or the caller cannot see its workflow."""
    row = await db.fetchrow(_GET, workflow_id, name)
    return None if row is None else Alias(**row)


_LIST: Final[LiteralString] = """
    SELECT alias.workflow_id, alias.name, alias.version, alias.id, alias.promotion_id,
           alias.change_id, alias.created_by, alias.created_at,
           change.created_by AS updated_by, change.created_at AS updated_at
      FROM workflow_aliases AS alias
      LEFT JOIN workflow_alias_changes AS change ON change.id = alias.change_id
     WHERE alias.workflow_id = $1
       AND ($2::timestamptz IS NULL OR (alias.created_at, alias.id) < ($2, $3::uuid))
     ORDER BY alias.created_at DESC, alias.id DESC
     LIMIT $4
"""


async def list_aliases(
    db: Db, workflow_id: UUID, *, after: tuple[datetime, UUID] | None, limit: int
) -> list[Alias]:
    """List the aliases of a workflow, newest first, after the last row of the page before."""
    moment, last_id = after or (None, None)
    return [Alias(**row) for row in await db.fetch(_LIST, workflow_id, moment, last_id, limit)]


_COUNT: Final[LiteralString] = "SELECT count(*) FROM workflow_aliases WHERE workflow_id = $1"


async def count_aliases(db: Db, workflow_id: UUID) -> int:
    """Count the aliases of a workflow."""
    counted: int = await db.fetchval(_COUNT, workflow_id)
    return counted


_GET_CHANGE: Final[LiteralString] = """
    SELECT id, workflow_id, alias, kind, from_version, to_version, previous_id, created_by,
           created_at
      FROM workflow_alias_changes WHERE id = $1
"""


async def get_change(db: Db, change_id: UUID) -> Change | None:
    """Return an entry of the history."""
    row = await db.fetchrow(_GET_CHANGE, change_id)
    return None if row is None else Change(**row)


_LIST_CHANGES: Final[LiteralString] = """
    SELECT id, workflow_id, alias, kind, from_version, to_version, previous_id, created_by,
           created_at
      FROM workflow_alias_changes
     WHERE workflow_id = $1 AND ($2::text IS NULL OR alias = $2)
       AND ($3::timestamptz IS NULL OR (created_at, id) < ($3, $4::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $5
"""


async def list_changes(
    db: Db,
    workflow_id: UUID,
    *,
    alias: str | None,
    after: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Change]:
    """List changes of a workflow's aliases, newest first."""
    moment, last_id = after or (None, None)
    rows = await db.fetch(_LIST_CHANGES, workflow_id, alias, moment, last_id, limit)
    return [Change(**row) for row in rows]


# The time is read under the workflow's lock, so that it orders the history.
_INSERT_CHANGE: Final[LiteralString] = """
    INSERT INTO workflow_alias_changes
           (id, workflow_id, alias, kind, from_version, to_version, previous_id, created_by)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
 RETURNING created_at
"""


async def insert_change(
    db: Db,
    change_id: UUID,
    *,
    workflow_id: UUID,
    alias: str,
    kind: str,
    from_version: int | None,
    to_version: int | None,
    previous_id: UUID | None,
    author: UUID,
) -> datetime:
    """Insert an entry of the history; returns its time."""
    created_at: datetime = await db.fetchval(
        _INSERT_CHANGE,
        change_id,
        workflow_id,
        alias,
        kind,
        from_version,
        to_version,
        previous_id,
        author,
    )
    return created_at


_INSERT_ALIAS: Final[LiteralString] = """
    INSERT INTO workflow_aliases
           (id, workflow_id, name, version, promotion_id, change_id, created_by, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""


async def insert_alias(db: Db, alias: Alias) -> None:
    """Insert an alias."""
    await db.execute(
        _INSERT_ALIAS,
        alias.id,
        alias.workflow_id,
        alias.name,
        alias.version,
        alias.promotion_id,
        alias.change_id,
        alias.created_by,
        alias.created_at,
    )


_MOVE_ALIAS: Final[LiteralString] = """
    UPDATE workflow_aliases SET version = $2, promotion_id = $3, change_id = $4 WHERE id = $1
"""


async def move_alias(db: Db, alias: Alias) -> None:
    """Point an alias at another version."""
    await db.execute(_MOVE_ALIAS, alias.id, alias.version, alias.promotion_id, alias.change_id)


_DELETE_ALIAS: Final[LiteralString] = "DELETE FROM workflow_aliases WHERE id = $1"


async def delete_alias(db: Db, alias_id: UUID) -> None:
    """Delete an alias; its history is kept."""
    await db.execute(_DELETE_ALIAS, alias_id)
