"""Rows of files that carry values, as attempts read and write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedFile:
    """A file that an input refers to."""

    id: UUID
    filename: str
    key: str
    size_bytes: int
    sha256: str
    format: str
    isolation: str
    execution_id: UUID | None


# Deleted and expired files are excluded. A file may expire during its first use by a run, which is
# fine: it has been lent already.
_OF_TENANT: Final[LiteralString] = """
    SELECT id, filename, file_path, file_size_bytes, coalesce(hash_sha256, '') AS hash_sha256,
           coalesce(format, '') AS format, coalesce(isolation, '') AS isolation,
           workflow_execution_id
      FROM files
     WHERE id = ANY($1::uuid[]) AND tenant_id = $2 AND (expires_at IS NULL OR expires_at > now())
"""


async def of_tenant(pool: Pool, file_ids: Sequence[UUID], tenant_id: UUID) -> list[CarriedFile]:
    """Return those of the files that belong to the tenant and have not expired."""
    rows = await pool.fetch(_OF_TENANT, file_ids, tenant_id)
    return [
        CarriedFile(
            id=row["id"],
            filename=row["filename"],
            key=row["file_path"],
            size_bytes=row["file_size_bytes"],
            sha256=row["hash_sha256"],
            format=row["format"],
            isolation=row["isolation"],
            execution_id=row["workflow_execution_id"],
        )
        for row in rows
    ]


# All files of an attempt or none; idempotent, for retries. Their author is that of the execution.
_INSERT: Final[LiteralString] = """
    INSERT INTO files (id, filename, original_filename, file_path, file_size_bytes, mime_type,
           hash_sha256, format, isolation, workflow_execution_id, node_execution_id, tenant_id,
           created_by)
    SELECT given.id, given.filename, given.filename, $8::uuid::text || '/' || given.id::text,
           given.size_bytes, given.mime_type, given.sha256, nullif(given.format, ''), $7, $9, $10,
           $8, (SELECT created_by FROM workflow_executions WHERE id = $9)
      FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[])
           AS given(id, filename, size_bytes, mime_type, sha256, format)
     ORDER BY given.id
        ON CONFLICT (id) DO NOTHING
"""


async def insert(
    pool: Pool,
    made: Sequence[tuple[CarriedFile, str]],
    *,
    tenant_id: UUID,
    execution_id: UUID,
    node_execution_id: UUID,
    isolation: str,
) -> None:
    """Insert the rows of files, each with its media type; their bytes must be durable already."""
    await pool.execute(
        _INSERT,
        [each.id for each, _ in made],
        [each.filename for each, _ in made],
        [each.size_bytes for each, _ in made],
        [mime_type for _, mime_type in made],
        [each.sha256 for each, _ in made],
        [each.format for each, _ in made],
        isolation,
        tenant_id,
        execution_id,
        node_execution_id,
    )
