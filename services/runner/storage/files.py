"""Rows of files; their bytes lie in the file store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Pool, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file as the table knows it."""

    id: UUID
    filename: str
    key: str
    size_bytes: int
    mime_type: str
    sha256: str
    execution_id: UUID | None
    created_at: datetime


# The bytes are on disk before this row is, and this row is committed before anyone hears of it.
# Its author is the execution's. It is written again when the answer was lost: the same id is the
# same file.
_INSERT_OUTPUT: Final[LiteralString] = """
    INSERT INTO files (id, filename, original_filename, file_path, file_size_bytes, mime_type,
           hash_sha256, workflow_execution_id, node_execution_id, tenant_id, created_by,
           element_counts)
    VALUES ($1, $2, $2, $3, $4, 'application/json', $5, $6, $7, $8,
            (SELECT created_by FROM workflow_executions WHERE id = $6), $9::text::jsonb)
        ON CONFLICT (id) DO NOTHING
"""


async def insert_output(  # noqa: PLR0917 - the row's columns
    pool: Pool,
    file_id: UUID,
    filename: str,
    key: str,
    size_bytes: int,
    sha256: str,
    execution_id: UUID,
    node_execution_id: UUID,
    tenant_id: UUID,
    element_counts: str,
) -> None:
    """Commit the row of a node's large output; that it is there already is fine."""
    await pool.execute(
        _INSERT_OUTPUT,
        file_id,
        filename,
        key,
        size_bytes,
        sha256,
        execution_id,
        node_execution_id,
        tenant_id,
        element_counts,
    )


_COLUMNS: Final[LiteralString] = """
    SELECT id, filename, file_path, file_size_bytes, coalesce(mime_type, '') AS mime_type,
           coalesce(hash_sha256, '') AS hash_sha256, workflow_execution_id, created_at
      FROM files
"""
_GET: Final[LiteralString] = (
    _COLUMNS + " WHERE id = $1 AND (expires_at IS NULL OR expires_at > now())"
)


async def get(db: Db | Pool, file_id: UUID) -> StoredFile | None:
    """Read one file that has not expired, as far as row-level security lets the caller see it."""
    row = await db.fetchrow(_GET, file_id)
    return None if row is None else _to_file(row)


_OF_TENANT: Final[LiteralString] = _COLUMNS + " WHERE id = ANY($1::uuid[]) AND tenant_id = $2"


async def of_tenant(pool: Pool, file_ids: Sequence[UUID], tenant_id: UUID) -> list[StoredFile]:
    """Read those of some files that are a tenant's: an attempt never gets another tenant's."""
    rows = await pool.fetch(_OF_TENANT, file_ids, tenant_id)
    return [_to_file(row) for row in rows]


_LOG_READ: Final[LiteralString] = """
    INSERT INTO file_access_logs (file_id, access_type, accessed_by) VALUES ($1, 'read', $2)
"""


async def log_read(db: Db, file_id: UUID, user_id: UUID) -> None:
    """Write down who read a file."""
    await db.execute(_LOG_READ, file_id, user_id)


@dataclass(frozen=True, slots=True)
class DeletedFile:
    """A file whose row is gone, and the event that says so."""

    event_id: UUID
    tenant_id: UUID
    file_id: UUID


_DELETED: Final[LiteralString] = """
    SELECT id, tenant_id, (payload ->> 'file_id')::uuid AS file_id
      FROM outbox_events
     WHERE kind = 'file_deleted' AND sent_at IS NULL
     ORDER BY created_at, id
     LIMIT $1
"""


async def deleted(pool: Pool, limit: int) -> list[DeletedFile]:
    """List files whose rows are gone and whose bytes are still to be removed."""
    rows = await pool.fetch(_DELETED, limit)
    return [DeletedFile(row["id"], row["tenant_id"], row["file_id"]) for row in rows]


_REMOVED: Final[LiteralString] = """
    UPDATE outbox_events SET sent_at = now() WHERE id = ANY($1::uuid[])
"""


async def removed(pool: Pool, events: Sequence[UUID]) -> None:
    """Say that the bytes are removed."""
    await pool.execute(_REMOVED, list(events))


def _to_file(row: Row) -> StoredFile:
    return StoredFile(
        id=row["id"],
        filename=row["filename"],
        key=row["file_path"],
        size_bytes=row["file_size_bytes"],
        mime_type=row["mime_type"],
        sha256=row["hash_sha256"],
        execution_id=row["workflow_execution_id"],
        created_at=row["created_at"],
    )
