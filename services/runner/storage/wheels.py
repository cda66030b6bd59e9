"""Rows of tenants' own wheels."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Pool
from services.runner.domain.wheels import WheelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWheel:
    """A wheel, as stored."""

    id: UUID
    filename: str
    name: str
    version: str
    summary: str
    requires_python: str
    requirements: list[str]
    size_bytes: int
    sha256: str
    created_by: UUID
    created_at: datetime


# Serialises a tenant's uploads, so that limits hold.
_LOCK_TENANT: Final[LiteralString] = """
    SELECT pg_advisory_xact_lock(hashtextextended('wheels ' || $1::text, 0))
"""


async def lock_tenant(db: Db, tenant_id: UUID) -> None:
    """Lock the wheels of a tenant until the transaction ends."""
    await db.execute(_LOCK_TENANT, str(tenant_id))


_SUM: Final[LiteralString] = """
    SELECT count(*) AS number, coalesce(sum(size_bytes), 0)::bigint AS bytes
      FROM tenant_wheels WHERE tenant_id = current_tenant_id()
"""


async def sum_up(db: Db) -> tuple[int, int]:
    """Return the number of wheels of the caller's tenant, and their total bytes."""
    row = await db.fetchrow(_SUM)
    assert row is not None
    return row["number"], row["bytes"]


_INSERT: Final[LiteralString] = """
    INSERT INTO tenant_wheels (id, filename, name, version, summary, requires_python, requirements,
           size_bytes, sha256)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
 RETURNING id, filename, name, version, summary, requires_python, requirements, size_bytes, sha256,
           created_by, created_at
"""


async def insert(
    db: Db, wheel_id: UUID, facts: WheelFacts, *, size_bytes: int, sha256: str
) -> StoredWheel:
    """Insert a wheel of the caller's tenant; its bytes must be durable already."""
    row = await db.fetchrow(
        _INSERT,
        wheel_id,
        facts.filename,
        facts.name,
        facts.version,
        facts.summary,
        facts.requires_python,
        facts.requirements,
        size_bytes,
        sha256,
    )
    assert row is not None
    return StoredWheel(**row)


_BY_NAME: Final[LiteralString] = """
    SELECT id, filename, name, version, summary, requires_python, requirements, size_bytes, sha256,
           created_by, created_at
      FROM tenant_wheels WHERE tenant_id = current_tenant_id() AND filename = $1
"""


async def by_filename(db: Db, filename: str) -> StoredWheel | None:
    """Return a wheel of the caller's tenant by its file name; None if there is none."""
    row = await db.fetchrow(_BY_NAME, filename)
    return None if row is None else StoredWheel(**row)


_GET: Final[LiteralString] = """
    SELECT id, filename, name, version, summary, requires_python, requirements, size_bytes, sha256,
           created_by, created_at
      FROM tenant_wheels WHERE tenant_id = current_tenant_id() AND id = $1
"""


async def get(db: Db, wheel_id: UUID) -> StoredWheel | None:
    """Return a wheel of the caller's tenant; None if it does not exist."""
    row = await db.fetchrow(_GET, wheel_id)
    return None if row is None else StoredWheel(**row)


_LIST: Final[LiteralString] = """
    SELECT id, filename, name, version, summary, requires_python, requirements, size_bytes, sha256,
           created_by, created_at
      FROM tenant_wheels
     WHERE tenant_id = current_tenant_id()
       AND ($1::timestamptz IS NULL OR (created_at, id) < ($1, $2::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $3
"""


async def list_page(
    db: Db, *, after: tuple[datetime, UUID] | None, limit: int
) -> list[StoredWheel]:
    """Return a page of the wheels of the caller's tenant, newest first."""
    moment, last_id = after or (None, None)
    return [StoredWheel(**row) for row in await db.fetch(_LIST, moment, last_id, limit)]


_DELETE: Final[LiteralString] = """
    DELETE FROM tenant_wheels WHERE tenant_id = current_tenant_id() AND id = $1
 RETURNING id
"""


async def delete(db: Db, wheel_id: UUID) -> bool:
    """Delete a wheel's row; False if there is none."""
    return await db.fetchval(_DELETE, wheel_id) is not None


# For attempts, by the tenant of the run.
_FILES: Final[LiteralString] = "SELECT id, filename FROM tenant_wheels WHERE tenant_id = $1"


async def files_of(pool: Pool, tenant_id: UUID) -> dict[str, UUID]:
    """Return the ids of a tenant's wheels by file name."""
    return {row["filename"]: row["id"] for row in await pool.fetch(_FILES, tenant_id)}
