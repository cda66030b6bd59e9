"""Private package indexes of tenants, and the sealed secrets that they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Pool
from services.kit.updates import etag_of
from services.runner.domain.secrets import Sealed
from services.runner.storage.secrets import StoredVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageIndex:
    """An index, and the name of its secret."""

    id: UUID
    name: str
    url: str
    username: str
    secret_name: str | None
    revision: int
    created_by: UUID
    updated_by: UUID
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """Differs for every change, and for an index that was deleted and recreated."""
        return etag_of(self.revision, self.updated_at)


_LIST: Final[LiteralString] = """
    SELECT i.id, i.name, i.url, i.username, s.name AS secret_name, i.revision, i.created_by,
           i.updated_by, i.created_at, i.updated_at
      FROM package_indexes i
      LEFT JOIN secrets s ON s.id = i.secret_id
     WHERE i.tenant_id = $1 AND ($2::text IS NULL OR i.name = $2)
     ORDER BY i.name
"""


async def list_indexes(db: Db, tenant_id: UUID) -> Sequence[PackageIndex]:
    """Return the indexes of a tenant by name."""
    return [PackageIndex(**dict(row)) for row in await db.fetch(_LIST, tenant_id, None)]


async def get(db: Db, tenant_id: UUID, name: str) -> PackageIndex | None:
    """Return an index of a tenant; None if it does not exist."""
    row = await db.fetchrow(_LIST, tenant_id, name)
    return None if row is None else PackageIndex(**dict(row))


_INSERT: Final[LiteralString] = """
    INSERT INTO package_indexes (id, name, url, username, secret_id) VALUES ($1, $2, $3, $4, $5)
"""
_UPDATE: Final[LiteralString] = """
    UPDATE package_indexes
       SET url = $2, username = $3, secret_id = $4, revision = revision + 1,
           updated_by = current_user_id()
     WHERE id = $1
"""
_DELETE: Final[LiteralString] = """
    DELETE FROM package_indexes WHERE id = $1
"""
_ASKS_FOR: Final[LiteralString] = """
    SELECT name FROM package_indexes WHERE secret_id = $1 ORDER BY name LIMIT 1
"""


async def insert(
    db: Db, index_id: UUID, *, name: str, url: str, username: str, secret_id: UUID | None
) -> None:
    """Insert an index."""
    await db.execute(_INSERT, index_id, name, url, username, secret_id)


async def update(
    db: Db, index_id: UUID, *, url: str, username: str, secret_id: UUID | None
) -> None:
    """Update an index."""
    await db.execute(_UPDATE, index_id, url, username, secret_id)


async def delete(db: Db, index_id: UUID) -> None:
    """Delete an index."""
    await db.execute(_DELETE, index_id)


async def that_asks_for(db: Db, secret_id: UUID) -> str | None:
    """Return the name of an index that uses a secret; None if there is none."""
    found: str | None = await db.fetchval(_ASKS_FOR, secret_id)
    return found


@dataclass(frozen=True, slots=True)
class SealedIndex:
    """An index for builds: with the current version of its secret, if it has one."""

    name: str
    url: str
    username: str
    secret: StoredVersion | None


_OF_TENANT: Final[LiteralString] = """
    SELECT i.name AS index_name, i.url, i.username, s.tenant_id, s.id AS secret_id, s.name,
           v.version, v.key_id, v.wrapped_key, v.sealed
      FROM package_indexes i
      LEFT JOIN secrets s ON s.id = i.secret_id AND s.tenant_id = i.tenant_id
      LEFT JOIN secret_versions v ON v.secret_id = s.id AND v.version = s.current_version
       AND v.tenant_id = i.tenant_id
     WHERE i.tenant_id = $1
     ORDER BY i.name
"""


async def of_tenant(pool: Pool, tenant_id: UUID) -> Sequence[SealedIndex]:
    """Return the indexes of a tenant's builds, in order of precedence."""
    found = []
    for row in await pool.fetch(_OF_TENANT, tenant_id):
        secret = None
        if row["version"] is not None:
            secret = StoredVersion(
                tenant_id=row["tenant_id"],
                secret_id=row["secret_id"],
                name=row["name"],
                version=row["version"],
                sealed=Sealed(row["key_id"], row["wrapped_key"], row["sealed"]),
            )
        found.append(SealedIndex(row["index_name"], row["url"], row["username"], secret))
    return found
