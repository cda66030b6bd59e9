"""Tags of nodes and of workflows: two sets of tables that differ only in their names.

Each statement is written once, with placeholders for the names of the tables; both variants are
prepared in `tests/contracts/test_sql.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.registry.domain.tags import AttachedTag


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A tag of a tenant."""

    id: UUID
    name: str
    description: str
    color: str  # `#rrggbb`, or empty
    tenant_id: UUID
    created_by: UUID
    created_at: datetime


_COLUMNS: Final = "id, name, description, color, tenant_id, created_by, created_at"


@dataclass(frozen=True, slots=True)
class TagTables:
    """One pair of tag tables, and the table of what the tags are attached to."""

    tags: LiteralString
    relations: LiteralString
    subject: LiteralString
    subjects: LiteralString

    @property
    def insert(self) -> LiteralString:
        """Insert a tag, unless the tenant has one with that name."""
        return f"""
            INSERT INTO {self.tags} (id, name, description, color, tenant_id, created_by)
            VALUES ($1, $2, $3, NULLIF($4::text, ''), $5, $6)
            ON CONFLICT (tenant_id, name) DO NOTHING
         RETURNING {_COLUMNS}
        """

    @property
    def get(self) -> LiteralString:
        """Select a tag by its id."""
        return f"SELECT {_COLUMNS} FROM {self.tags} WHERE id = $1"

    @property
    def find(self) -> LiteralString:
        """Select a tag by its name."""
        return f"SELECT id FROM {self.tags} WHERE tenant_id = $1 AND name = $2"

    @property
    def first_page(self) -> LiteralString:
        """Select the first page of a tenant's tags, by name."""
        return f"""
            SELECT {_COLUMNS} FROM {self.tags}
             WHERE tenant_id = $1 ORDER BY name LIMIT $2
        """

    @property
    def next_page(self) -> LiteralString:
        """Select a tenant's tags after a name."""
        return f"""
            SELECT {_COLUMNS} FROM {self.tags}
             WHERE tenant_id = $1 AND name > $3 ORDER BY name LIMIT $2
        """

    @property
    def update(self) -> LiteralString:
        """Update a tag."""
        return f"""
            UPDATE {self.tags}
               SET name = $2, description = $3, color = NULLIF($4::text, '')
             WHERE id = $1
         RETURNING {_COLUMNS}
        """

    @property
    def delete(self) -> LiteralString:
        """Delete a tag; its relations are deleted with it."""
        return f"DELETE FROM {self.tags} WHERE id = $1 RETURNING {_COLUMNS}"

    @property
    def hold_subject(self) -> LiteralString:
        """Lock what is tagged, if the caller may change it, to serialize changes of its tags.

        The lock does not block starts, which only reference the row.
        """
        return f"""
            SELECT id FROM {self.subjects} WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE
        """

    @property
    def see_subject(self) -> LiteralString:
        """Select what is tagged, if the caller may read it."""
        return f"SELECT id FROM {self.subjects} WHERE id = $1 AND deleted_at IS NULL"

    @property
    def hold_tags(self) -> LiteralString:
        """Lock tags against deletion until they are attached."""
        return f"SELECT id FROM {self.tags} WHERE id = ANY ($1::uuid[]) ORDER BY id FOR KEY SHARE"

    @property
    def detach(self) -> LiteralString:
        """Detach tags."""
        return f"""
            DELETE FROM {self.relations} WHERE {self.subject} = $1 AND tag_id = ANY ($2::uuid[])
        """

    @property
    def attach(self) -> LiteralString:
        """Attach tags that are not attached yet."""
        return f"""
            INSERT INTO {self.relations} ({self.subject}, tag_id)
            SELECT $1, asked.id FROM unnest($2::uuid[]) AS asked (id) ORDER BY asked.id
            ON CONFLICT DO NOTHING
        """

    @property
    def attached(self) -> LiteralString:
        """Select the attached tags, by name."""
        return f"""
            SELECT t.id, t.name, t.color
              FROM {self.relations} r JOIN {self.tags} t ON t.id = r.tag_id
             WHERE r.{self.subject} = $1
             ORDER BY t.name
        """


NODE_TAGS: Final = TagTables(
    "python_node_tags", "python_node_tag_relations", "node_id", "python_nodes"
)
WORKFLOW_TAGS: Final = TagTables(
    "workflow_tags", "workflow_tag_relations", "workflow_id", "workflows"
)


async def insert_tag(db: Db, tables: TagTables, tag: Tag) -> Tag | None:
    """Insert a tag; None if its tenant has one with that name."""
    row = await db.fetchrow(
        tables.insert,
        tag.id,
        tag.name,
        tag.description,
        tag.color,
        tag.tenant_id,
        tag.created_by,
    )
    return None if row is None else _to_tag(row)


async def get_tag(db: Db, tables: TagTables, tag_id: UUID) -> Tag | None:
    """Return a tag; None if the caller cannot see it."""
    row = await db.fetchrow(tables.get, tag_id)
    return None if row is None else _to_tag(row)


async def find_tag(db: Db, tables: TagTables, name: str, *, tenant_id: UUID) -> UUID | None:
    """Return the id of a tenant's tag by its name."""
    found: UUID | None = await db.fetchval(tables.find, tenant_id, name)
    return found


async def list_tags(
    db: Db, tables: TagTables, *, tenant_id: UUID, after: str | None, limit: int
) -> list[Tag]:
    """List a tenant's tags by name, after the last name of the page before."""
    if after is None:
        rows = await db.fetch(tables.first_page, tenant_id, limit)
    else:
        rows = await db.fetch(tables.next_page, tenant_id, limit, after)
    return [_to_tag(row) for row in rows]


async def update_tag(db: Db, tables: TagTables, tag: Tag) -> Tag | None:
    """Update a tag; None if it does not exist any more."""
    row = await db.fetchrow(tables.update, tag.id, tag.name, tag.description, tag.color)
    return None if row is None else _to_tag(row)


async def delete_tag(db: Db, tables: TagTables, tag_id: UUID) -> Tag | None:
    """Delete a tag; returns it as it was, None if there is none that the caller may delete."""
    row = await db.fetchrow(tables.delete, tag_id)
    return None if row is None else _to_tag(row)


async def hold_subject(db: Db, tables: TagTables, subject_id: UUID) -> bool:
    """Lock what is tagged until the transaction ends; False if the caller may not change it."""
    return await db.fetchval(tables.hold_subject, subject_id) is not None


async def sees_subject(db: Db, tables: TagTables, subject_id: UUID) -> bool:
    """Return whether the caller may read what is to be tagged."""
    return await db.fetchval(tables.see_subject, subject_id) is not None


async def hold_tags(db: Db, tables: TagTables, tag_ids: Sequence[UUID]) -> set[UUID]:
    """Lock the caller's tags until the transaction ends; returns the ids that exist."""
    return {row["id"] for row in await db.fetch(tables.hold_tags, tag_ids)}


async def change_attached(
    db: Db,
    tables: TagTables,
    subject_id: UUID,
    *,
    add: Sequence[UUID],
    remove: Sequence[UUID],
) -> tuple[AttachedTag, ...]:
    """Detach and attach tags; returns all that are attached then, by name."""
    await db.execute(tables.detach, subject_id, remove)
    await db.execute(tables.attach, subject_id, add)
    return tuple(
        AttachedTag(str(row["id"]), row["name"], row["color"] or "")
        for row in await db.fetch(tables.attached, subject_id)
    )


def _to_tag(row: Row) -> Tag:
    return Tag(
        id=row["id"],
        name=row["name"],
        description=row["description"] or "",
        color=row["color"] or "",
        tenant_id=row["tenant_id"],
        created_by=row["created_by"],
        created_at=row["created_at"],
    )
