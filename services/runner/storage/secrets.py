"""Secrets of tenants: metadata, sealed versions, and grants to nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Pool
from services.kit.updates import etag_of
from services.runner.domain.secrets import Sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret without its value."""

    id: UUID
    name: str
    description: str
    current_version: int
    last_version: int
    revision: int
    created_by: UUID
    updated_by: UUID
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """Differs for every change, and for a secret that was deleted and recreated."""
        return etag_of(self.revision, self.updated_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretVersion:
    """A version without its value."""

    version: int
    key_id: str
    created_by: UUID
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A node that is granted a secret."""

    id: UUID  # the node's
    name: str
    created_by: UUID
    created_at: datetime


# The channel that runners listen to.
CHANGED: Final = "qflow_secrets"
_TELL: Final[LiteralString] = "SELECT pg_notify('qflow_secrets', '')"


async def tell(db: Db) -> None:
    """Notify every runner, at the commit, that secrets or grants changed."""
    await db.execute(_TELL)


# Serialises changes of a tenant's secrets, so that limits on their number hold.
_LOCK: Final[LiteralString] = """
    SELECT pg_advisory_xact_lock(hashtextextended('secrets ' || $1::text, 0))
"""
_COUNT: Final[LiteralString] = """
    SELECT count(*) FROM secrets WHERE tenant_id = $1
"""
_GET: Final[LiteralString] = """
    SELECT id, name, description, current_version, last_version, revision, created_by, updated_by,
           created_at, updated_at
      FROM secrets
     WHERE tenant_id = $1 AND name = $2
"""


async def lock(db: Db, tenant_id: UUID) -> None:
    """Lock the secrets of a tenant until the transaction ends."""
    await db.execute(_LOCK, str(tenant_id))


async def count(db: Db, tenant_id: UUID) -> int:
    """Return the number of secrets of a tenant."""
    found: int = await db.fetchval(_COUNT, tenant_id)
    return found


async def get(db: Db, tenant_id: UUID, name: str) -> Secret | None:
    """Return a secret of a tenant; None if it does not exist."""
    row = await db.fetchrow(_GET, tenant_id, name)
    return None if row is None else Secret(**dict(row))


_INSERT: Final[LiteralString] = """
    INSERT INTO secrets (id, name, description, current_version, last_version)
    VALUES ($1, $2, $3, 1, 1)
"""
_UPDATE: Final[LiteralString] = """
    UPDATE secrets
       SET description = $2, current_version = $3, last_version = $4, revision = revision + 1,
           updated_by = current_user_id()
     WHERE id = $1
"""
_DELETE: Final[LiteralString] = """
    DELETE FROM secrets WHERE id = $1
"""
_INSERT_VERSION: Final[LiteralString] = """
    INSERT INTO secret_versions (secret_id, version, key_id, wrapped_key, sealed)
    VALUES ($1, $2, $3, $4, $5)
"""
_DELETE_VERSIONS: Final[LiteralString] = """
    DELETE FROM secret_versions WHERE secret_id = $1 AND version <= $2 AND version <> $3
"""


async def insert(db: Db, secret_id: UUID, name: str, description: str) -> None:
    """Insert a secret; the caller then inserts its first version."""
    await db.execute(_INSERT, secret_id, name, description)


async def update(
    db: Db, secret_id: UUID, *, description: str, current_version: int, last_version: int
) -> None:
    """Update the metadata of a secret."""
    await db.execute(_UPDATE, secret_id, description, current_version, last_version)


async def delete(db: Db, secret_id: UUID) -> None:
    """Delete a secret with its versions and grants."""
    await db.execute(_DELETE, secret_id)


async def insert_version(db: Db, secret_id: UUID, version: int, sealed: Sealed) -> None:
    """Insert a version."""
    await db.execute(
        _INSERT_VERSION, secret_id, version, sealed.key_id, sealed.wrapped_key, sealed.sealed
    )


async def delete_versions(db: Db, secret_id: UUID, *, up_to: int, but: int) -> None:
    """Delete versions up to a number, except the one in use."""
    await db.execute(_DELETE_VERSIONS, secret_id, up_to, but)


_LIST: Final[LiteralString] = """
    SELECT id, name, description, current_version, last_version, revision, created_by, updated_by,
           created_at, updated_at
      FROM secrets
     WHERE tenant_id = $1
       AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $4
"""
_VERSIONS: Final[LiteralString] = """
    SELECT version, key_id, created_by, created_at
      FROM secret_versions
     WHERE secret_id = $1
     ORDER BY version DESC
"""


async def list_secrets(
    db: Db, tenant_id: UUID, *, after: tuple[datetime, UUID] | None, limit: int
) -> Sequence[Secret]:
    """Return a page of the secrets of a tenant, newest first."""
    rows = await db.fetch(_LIST, tenant_id, *(after or (None, None)), limit)
    return [Secret(**dict(row)) for row in rows]


async def list_versions(db: Db, secret_id: UUID) -> Sequence[SecretVersion]:
    """Return the stored versions, newest first."""
    return [SecretVersion(**dict(row)) for row in await db.fetch(_VERSIONS, secret_id)]


_HAS_NODE: Final[LiteralString] = """
    SELECT EXISTS (SELECT 1 FROM python_nodes WHERE id = $1 AND tenant_id = $2)
"""
_COUNT_GRANTS: Final[LiteralString] = """
    SELECT count(*) FROM secret_grants WHERE node_id = $1 AND tenant_id = $2
"""
_INSERT_GRANT: Final[LiteralString] = """
    INSERT INTO secret_grants (secret_id, node_id) VALUES ($1, $2) ON CONFLICT DO NOTHING
"""
_DELETE_GRANT: Final[LiteralString] = """
    DELETE FROM secret_grants WHERE secret_id = $1 AND node_id = $2 RETURNING node_id
"""
_LIST_GRANTS: Final[LiteralString] = """
    SELECT g.node_id AS id, n.name, g.created_by, g.created_at
      FROM secret_grants g
      JOIN python_nodes n ON n.id = g.node_id
     WHERE g.secret_id = $1
       AND ($2::timestamptz IS NULL OR (g.created_at, g.node_id) < ($2, $3::uuid))
     ORDER BY g.created_at DESC, g.node_id DESC
     LIMIT $4
"""


async def has_node(db: Db, node_id: UUID, tenant_id: UUID) -> bool:
    """Return whether a node belongs to a tenant."""
    found: bool = await db.fetchval(_HAS_NODE, node_id, tenant_id)
    return found


async def count_grants(db: Db, node_id: UUID, tenant_id: UUID) -> int:
    """Return how many secrets a node is granted."""
    found: int = await db.fetchval(_COUNT_GRANTS, node_id, tenant_id)
    return found


async def insert_grant(db: Db, secret_id: UUID, node_id: UUID) -> None:
    """Grant a secret to a node; idempotent."""
    await db.execute(_INSERT_GRANT, secret_id, node_id)


async def delete_grant(db: Db, secret_id: UUID, node_id: UUID) -> bool:
    """Revoke a grant; False if there was none."""
    return await db.fetchval(_DELETE_GRANT, secret_id, node_id) is not None


async def list_grants(
    db: Db, secret_id: UUID, *, after: tuple[datetime, UUID] | None, limit: int
) -> Sequence[Grant]:
    """Return a page of the nodes that are granted a secret, newest first."""
    rows = await db.fetch(_LIST_GRANTS, secret_id, *(after or (None, None)), limit)
    return [Grant(**dict(row)) for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """A version as stored, with everything that it is bound to."""

    tenant_id: UUID
    secret_id: UUID
    name: str
    version: int
    sealed: Sealed


# Only secrets of the tenant that runs the node, and only if the node is its own.
_GRANTED: Final[LiteralString] = """
    SELECT s.tenant_id, s.id AS secret_id, s.name, v.version, v.key_id, v.wrapped_key, v.sealed
      FROM python_node_versions nv
      JOIN python_nodes n ON n.id = nv.node_id
      JOIN secret_grants g ON g.node_id = n.id
      JOIN secrets s ON s.id = g.secret_id
      JOIN secret_versions v ON v.secret_id = s.id AND v.version = s.current_version
     WHERE nv.id = $2 AND n.tenant_id = $1 AND g.tenant_id = $1 AND s.tenant_id = $1
       AND v.tenant_id = $1
     ORDER BY s.name
"""
_UNDER_OTHERS: Final[LiteralString] = """
    SELECT v.tenant_id, v.secret_id, s.name, v.version, v.key_id, v.wrapped_key, v.sealed
      FROM secret_versions v
      JOIN secrets s ON s.id = v.secret_id
     WHERE v.key_id <> $1
       AND ($2::uuid IS NULL OR (v.secret_id, v.version) > ($2, $3::integer))
     ORDER BY v.secret_id, v.version
     LIMIT $4
"""
# Only if it still exists, and no other runner has rewrapped it.
_REWRAP: Final[LiteralString] = """
    UPDATE secret_versions SET key_id = $3, wrapped_key = $4
     WHERE secret_id = $1 AND version = $2 AND key_id = $5
"""


async def granted(pool: Pool, tenant_id: UUID, node_version_id: UUID) -> list[StoredVersion]:
    """Return what a tenant grants to a version of its own node."""
    return [_to_stored(row) for row in await pool.fetch(_GRANTED, tenant_id, node_version_id)]


async def under_other_keys(
    pool: Pool, key_id: str, *, after: tuple[UUID, int] | None, limit: int
) -> list[StoredVersion]:
    """Return versions that are wrapped under another root key than this."""
    rows = await pool.fetch(_UNDER_OTHERS, key_id, *(after or (None, None)), limit)
    return [_to_stored(row) for row in rows]


async def save_rewrapped(pool: Pool, stored: StoredVersion, after: Sealed) -> None:
    """Store a version's key as rewrapped."""
    await pool.execute(
        _REWRAP,
        stored.secret_id,
        stored.version,
        after.key_id,
        after.wrapped_key,
        stored.sealed.key_id,
    )


def _to_stored(row: object) -> StoredVersion:
    values = dict(row)  # type: ignore[call-overload]  # a record is a mapping
    sealed = Sealed(values.pop("key_id"), values.pop("wrapped_key"), values.pop("sealed"))
    return StoredVersion(**values, sealed=sealed)
