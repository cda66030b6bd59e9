"""Rows of files; their contents are in the file store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, LiteralString, TypeAlias
from uuid import UUID

from services.kit.pg import Db, Pool, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file, as stored."""

    id: UUID
    filename: str
    key: str
    size_bytes: int
    mime_type: str
    sha256: str
    execution_id: UUID | None
    created_at: datetime
    expires_at: datetime | None = None
    created_by: UUID | None = None


# The bytes are durable before this row is inserted, and nobody learns of the file before the
# commit. The author is that of the execution. A retry inserts the same id again, which is ignored.
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
    """Insert the row of a node's large output; idempotent."""
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


_ROW: Final[LiteralString] = """
           id, filename, file_path, file_size_bytes, coalesce(mime_type, '') AS mime_type,
           coalesce(hash_sha256, '') AS hash_sha256, workflow_execution_id, created_at, expires_at,
           created_by
"""
RETURNED: Final[LiteralString] = " RETURNING" + _ROW
_COLUMNS: Final[LiteralString] = "SELECT" + _ROW + " FROM files "
_GET: Final[LiteralString] = (
    _COLUMNS + " WHERE id = $1 AND (expires_at IS NULL OR expires_at > now())"
)


async def get(db: Db | Pool, file_id: UUID) -> StoredFile | None:
    """Return a file that has not expired and that row-level security lets the caller see."""
    row = await db.fetchrow(_GET, file_id)
    return None if row is None else to_file(row)


_OF_TENANT: Final[LiteralString] = _COLUMNS + " WHERE id = ANY($1::uuid[]) AND tenant_id = $2"


async def of_tenant(pool: Pool, file_ids: Sequence[UUID], tenant_id: UUID) -> list[StoredFile]:
    """Return those of the files that belong to the tenant: attempts never get another tenant's."""
    rows = await pool.fetch(_OF_TENANT, file_ids, tenant_id)
    return [to_file(row) for row in rows]


# A null parameter is no condition; the order is that of an index on the tenant.
_LIST: Final[LiteralString] = (
    _COLUMNS
    + """
     WHERE tenant_id = current_tenant_id() AND (expires_at IS NULL OR expires_at > now())
       AND ($1::timestamptz IS NULL OR (created_at, id) < ($1, $2::uuid))
       AND ($3::uuid IS NULL OR workflow_execution_id = $3)
       AND starts_with(filename, $4)
       AND (NOT $5 OR workflow_execution_id IS NULL)
     ORDER BY created_at DESC, id DESC
     LIMIT $6
"""
)


async def list_files(
    db: Db,
    *,
    after: tuple[datetime, UUID] | None,
    execution_id: UUID | None,
    filename_prefix: str,
    uploaded_only: bool,
    limit: int,
) -> list[StoredFile]:
    """Return a page of the caller's tenant's files that have not expired, newest first."""
    moment, file_id = after or (None, None)
    rows = await db.fetch(
        _LIST, moment, file_id, execution_id, filename_prefix, uploaded_only, limit
    )
    return [to_file(row) for row in rows]


_DELETE: Final[LiteralString] = """
    DELETE FROM files WHERE id = $1 AND workflow_execution_id IS NULL RETURNING id
"""


async def delete(db: Db, file_id: UUID) -> bool:
    """Delete an uploaded file's row; its bytes follow through the outbox. False if none exists."""
    return await db.fetchval(_DELETE, file_id) is not None


AccessKind: TypeAlias = Literal["read", "write", "delete"]

_LOG_ACCESS: Final[LiteralString] = """
    INSERT INTO file_access_logs (file_id, access_type, accessed_by) VALUES ($1, $2, $3)
"""


async def log_access(db: Db, file_id: UUID, kind: AccessKind, user_id: UUID) -> None:
    """Record who accessed a file, and how."""
    await db.execute(_LOG_ACCESS, file_id, kind, user_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """An access to a file."""

    id: UUID
    file_id: UUID | None
    kind: AccessKind
    accessed_by: UUID | None
    accessed_at: datetime
    sha256: str


_LIST_ACCESSES: Final[LiteralString] = """
    SELECT id, file_id, access_type, accessed_by, accessed_at,
           coalesce(file_hash, '') AS file_hash
      FROM file_access_logs
     WHERE tenant_id = current_tenant_id()
       AND ($1::timestamptz IS NULL OR (accessed_at, id) < ($1, $2::uuid))
       AND ($3::uuid IS NULL OR file_id = $3)
     ORDER BY accessed_at DESC, id DESC
     LIMIT $4
"""


async def list_accesses(
    db: Db, *, after: tuple[datetime, UUID] | None, file_id: UUID | None, limit: int
) -> list[Access]:
    """Return a page of accesses to files of the caller's tenant, newest first."""
    moment, access_id = after or (None, None)
    rows = await db.fetch(_LIST_ACCESSES, moment, access_id, file_id, limit)
    return [
        Access(
            id=row["id"],
            file_id=row["file_id"],
            kind=row["access_type"],
            accessed_by=row["accessed_by"],
            accessed_at=row["accessed_at"],
            sha256=row["file_hash"],
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How much the files of a tenant use, and their quota."""

    bytes: int
    bytes_max: int
    files: int
    files_max: int


# A tenant without files has no row of usage: then the defaults below apply. The tenant's own quota
# has precedence over that of the deployment.
_GET_USAGE: Final[LiteralString] = """
    SELECT coalesce(max(used.bytes), 0) AS bytes, coalesce(max(used.files), 0) AS files,
           coalesce(max(quota.stored_bytes), max(used.bytes_max)) AS bytes_max,
           coalesce(max(quota.stored_files), max(used.files_max)) AS files_max
      FROM (SELECT current_tenant_id() AS id) AS tenant
      LEFT JOIN file_usage AS used ON used.tenant_id = tenant.id
      LEFT JOIN tenant_quotas AS quota ON quota.tenant_id = tenant.id
"""
_BYTES_MAX: Final = 107_374_182_400
_FILES_MAX: Final = 1_000_000


async def get_usage(db: Db) -> Usage:
    """Return what the caller's tenant uses of its quota."""
    row = await db.fetchrow(_GET_USAGE)
    assert row is not None
    return Usage(
        bytes=row["bytes"],
        bytes_max=_BYTES_MAX if row["bytes_max"] is None else row["bytes_max"],
        files=row["files"],
        files_max=_FILES_MAX if row["files_max"] is None else row["files_max"],
    )


@dataclass(frozen=True, slots=True)
class DeletedFile:
    """A file whose row was deleted, with the outbox event for it."""

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
    """Return files whose rows are deleted, but whose bytes are not."""
    rows = await pool.fetch(_DELETED, limit)
    return [DeletedFile(row["id"], row["tenant_id"], row["file_id"]) for row in rows]


_REMOVED: Final[LiteralString] = """
    UPDATE outbox_events SET sent_at = now() WHERE id = ANY($1::uuid[])
"""


async def removed(pool: Pool, events: Sequence[UUID]) -> None:
    """Mark the bytes of these events as removed."""
    await pool.execute(_REMOVED, list(events))


_UNKNOWN: Final[LiteralString] = """
    SELECT given.id FROM unnest($1::uuid[]) AS given(id)
     WHERE NOT EXISTS (SELECT 1 FROM files WHERE files.id = given.id)
       AND NOT EXISTS (SELECT 1 FROM file_uploads WHERE file_uploads.id = given.id)
"""


async def unknown(pool: Pool, file_ids: Sequence[UUID]) -> set[UUID]:
    """Return those ids that belong to no file and no upload."""
    return {row["id"] for row in await pool.fetch(_UNKNOWN, file_ids)}


def to_file(row: Row) -> StoredFile:
    """Convert a row with the columns of `RETURNED`."""
    return StoredFile(
        id=row["id"],
        filename=row["filename"],
        key=row["file_path"],
        size_bytes=row["file_size_bytes"],
        mime_type=row["mime_type"],
        sha256=row["hash_sha256"],
        execution_id=row["workflow_execution_id"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        created_by=row["created_by"],
    )
