"""Rows of uploads: files that are not complete yet."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Pool, Row
from services.runner.storage.files import RETURNED, StoredFile, to_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One upload, as stored; its progress is the size of its bytes."""

    id: UUID
    filename: str
    mime_type: str
    size_bytes: int
    sha256: str
    file_expires_at: datetime | None
    tenant_id: UUID
    created_at: datetime
    expires_at: datetime

    @property
    def key(self) -> str:
        """The key of its bytes in the file store."""
        return f"{self.tenant_id}/{self.id}"


_INSERT: Final[LiteralString] = """
    INSERT INTO file_uploads (id, filename, mime_type, file_size_bytes, hash_sha256,
           file_expires_at, tenant_id, created_by, created_at, expires_at)
    VALUES ($1, $2, $3, $4, nullif($5, ''), $6, $7, current_user_id(), $8, $9)
"""


async def insert(db: Db, upload: Upload) -> None:
    """Insert an upload; the database refuses what exceeds the tenant's quota."""
    await db.execute(
        _INSERT,
        upload.id,
        upload.filename,
        upload.mime_type,
        upload.size_bytes,
        upload.sha256,
        upload.file_expires_at,
        upload.tenant_id,
        upload.created_at,
        upload.expires_at,
    )


_GET: Final[LiteralString] = """
    SELECT id, filename, mime_type, file_size_bytes, coalesce(hash_sha256, '') AS hash_sha256,
           file_expires_at, tenant_id, created_at, expires_at
      FROM file_uploads
     WHERE id = $1 AND expires_at > now()
"""


async def get(db: Db, upload_id: UUID) -> Upload | None:
    """Return an upload that has not expired and that row-level security shows."""
    row = await db.fetchrow(_GET, upload_id)
    return None if row is None else _to_upload(row)


# One statement, so that at any moment either the upload or the file is visible.
_FINISH_BODY: Final[LiteralString] = """
    WITH whole AS (
        DELETE FROM file_uploads WHERE id = $1 RETURNING *
    )
    INSERT INTO files (id, filename, original_filename, file_path, file_size_bytes, mime_type,
           hash_sha256, tenant_id, created_by, created_at, expires_at, is_temporary)
    SELECT id, filename, filename, tenant_id::text || '/' || id::text, file_size_bytes, mime_type,
           $2, tenant_id, current_user_id(), now(), file_expires_at, file_expires_at IS NOT NULL
      FROM whole
"""
_FINISH: Final[LiteralString] = f"{_FINISH_BODY} {RETURNED}"


async def finish(db: Db, upload_id: UUID, sha256: str) -> StoredFile | None:
    """Turn an upload into a file; None if another call did."""
    row = await db.fetchrow(_FINISH, upload_id, sha256)
    return None if row is None else to_file(row)


_DELETE: Final[LiteralString] = "DELETE FROM file_uploads WHERE id = $1 RETURNING id"


async def delete(db: Db, upload_id: UUID) -> bool:
    """Delete an upload; its bytes follow through the outbox. False if none exists."""
    return await db.fetchval(_DELETE, upload_id) is not None


# With a margin after the expiry: a call that began in time may still be writing.
_TO_SWEEP: Final[LiteralString] = """
    SELECT EXISTS (SELECT FROM file_uploads WHERE expires_at < now() - interval '2 hours')
        OR EXISTS (SELECT FROM outbox_events WHERE kind = 'file_deleted' AND sent_at IS NULL)
"""


async def anything_to_sweep(pool: Pool) -> bool:
    """Return whether there are expired uploads, or bytes of deleted files."""
    return bool(await pool.fetchval(_TO_SWEEP))


_DELETE_EXPIRED: Final[LiteralString] = """
    DELETE FROM file_uploads WHERE id IN (
        SELECT id FROM file_uploads WHERE expires_at < now() - interval '2 hours'
         ORDER BY expires_at, id LIMIT $1)
 RETURNING id
"""


async def delete_expired(pool: Pool, limit: int) -> int:
    """Delete expired uploads; return how many."""
    return len(await pool.fetch(_DELETE_EXPIRED, limit))


def _to_upload(row: Row) -> Upload:
    return Upload(
        id=row["id"],
        filename=row["filename"],
        mime_type=row["mime_type"],
        size_bytes=row["file_size_bytes"],
        sha256=row["hash_sha256"],
        file_expires_at=row["file_expires_at"],
        tenant_id=row["tenant_id"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
    )
