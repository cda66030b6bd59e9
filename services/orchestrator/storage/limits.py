"""Limits for callers, under row-level security."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a limit applies to; this never changes."""

    workflow_id: UUID | None
    node_id: UUID | None
    owner_id: UUID | None
    per_owner: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLimit:
    """A limit of a workflow's runs, of a node's attempts, or of all attempts of its tenant.

    It counts what all users started together, what one user started, or each user separately.
    """

    id: UUID
    name: str
    workflow_id: UUID | None
    node_id: UUID | None
    owner_id: UUID | None
    per_owner: bool
    max_running: int | None
    max_starts: int | None
    period_ms: int | None
    key_expression: str
    revision: int
    request_id: UUID | None  # of the call that changed it last
    request_digest: str | None
    created_by: UUID
    created_at: datetime
    updated_by: UUID
    updated_at: datetime

    @property
    def etag(self) -> str:
        """Changes with every change, and when a limit is deleted and created again."""
        return f"{self.revision}-{self.id.hex}"


# Serializes changes of a tenant's limits, so that counting them is exact.
_LOCK_TENANT: Final[LiteralString] = """
    SELECT pg_advisory_xact_lock(hashtextextended('limits ' || $1::text, 0))
"""


async def lock_tenant(db: Db, tenant_id: UUID) -> None:
    """Lock the limits of a tenant until the transaction ends."""
    await db.execute(_LOCK_TENANT, str(tenant_id))


# The lock that the engine takes while it counts: it sees the limit before or after a change.
_LOCK: Final[LiteralString] = """
    SELECT pg_advisory_xact_lock(hashtextextended('limit ' || $1::text, 0))
"""


async def lock(db: Db, limit_id: UUID) -> None:
    """Lock a limit until the transaction ends; no slot of it can be acquired meanwhile."""
    await db.execute(_LOCK, str(limit_id))


_GET: Final[LiteralString] = """
    SELECT id, name, workflow_id, node_id, owner_id, per_owner, max_running, max_starts, period_ms,
           key_expression, revision, request_id, request_digest, created_by, created_at,
           updated_by, updated_at
      FROM execution_limits WHERE tenant_id = current_tenant_id() AND name = $1
"""


async def get_limit(db: Db, name: str) -> StoredLimit | None:
    """Return a limit of the tenant by name."""
    row = await db.fetchrow(_GET, name)
    return None if row is None else StoredLimit(**row)


_LIST: Final[LiteralString] = """
    SELECT id, name, workflow_id, node_id, owner_id, per_owner, max_running, max_starts, period_ms,
           key_expression, revision, request_id, request_digest, created_by, created_at,
           updated_by, updated_at
      FROM execution_limits
     WHERE tenant_id = current_tenant_id()
       AND ($1::timestamptz IS NULL OR (created_at, id) < ($1, $2::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $3
"""


async def list_limits(
    db: Db, *, after: tuple[datetime, UUID] | None, limit: int
) -> list[StoredLimit]:
    """List the tenant's limits, newest first, after the last row of the page before."""
    moment, last_id = after or (None, None)
    return [StoredLimit(**row) for row in await db.fetch(_LIST, moment, last_id, limit)]


_COUNT: Final[LiteralString] = """
    SELECT count(*) FROM execution_limits WHERE tenant_id = current_tenant_id()
"""


async def count_limits(db: Db) -> int:
    """Count the limits of the tenant."""
    counted: int = await db.fetchval(_COUNT)
    return counted


_SEES: Final[LiteralString] = """
    SELECT ($1::uuid IS NULL
            OR EXISTS (SELECT FROM workflows WHERE id = $1 AND deleted_at IS NULL))
           AS workflow,
           ($2::uuid IS NULL
            OR EXISTS (SELECT FROM python_nodes WHERE id = $2 AND deleted_at IS NULL))
           AS node,
           ($3::uuid IS NULL OR is_member($3)) AS owner
"""


async def sees(db: Db, subject: Subject) -> Mapping[str, bool]:
    """Return whether the caller can read the subject of a limit, and its owner is in the tenant."""
    row = await db.fetchrow(_SEES, subject.workflow_id, subject.node_id, subject.owner_id)
    assert row is not None
    return dict(row)


_INSERT: Final[LiteralString] = """
    INSERT INTO execution_limits
           (id, name, workflow_id, node_id, owner_id, per_owner, max_running, max_starts,
            period_ms, key_expression, request_id, request_digest)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
        ON CONFLICT (tenant_id, name) DO NOTHING
 RETURNING id, name, workflow_id, node_id, owner_id, per_owner, max_running, max_starts, period_ms,
           key_expression, revision, request_id, request_digest, created_by, created_at,
           updated_by, updated_at
"""


async def insert_limit(db: Db, limit: StoredLimit) -> StoredLimit | None:
    """Add a limit; returns it with its timestamps, None if the name is taken."""
    row = await db.fetchrow(
        _INSERT,
        limit.id,
        limit.name,
        limit.workflow_id,
        limit.node_id,
        limit.owner_id,
        limit.per_owner,
        limit.max_running,
        limit.max_starts,
        limit.period_ms,
        limit.key_expression,
        limit.request_id,
        limit.request_digest,
    )
    return None if row is None else StoredLimit(**row)


_UPDATE: Final[LiteralString] = """
    UPDATE execution_limits
       SET max_running = $2, max_starts = $3, period_ms = $4, key_expression = $5,
           request_id = $6, request_digest = $7, revision = revision + 1,
           updated_by = current_user_id()
     WHERE id = $1
 RETURNING id, name, workflow_id, node_id, owner_id, per_owner, max_running, max_starts, period_ms,
           key_expression, revision, request_id, request_digest, created_by, created_at,
           updated_by, updated_at
"""


async def update_limit(db: Db, limit: StoredLimit) -> StoredLimit:
    """Update the amounts of a limit; returns it with its timestamps."""
    row = await db.fetchrow(
        _UPDATE,
        limit.id,
        limit.max_running,
        limit.max_starts,
        limit.period_ms,
        limit.key_expression,
        limit.request_id,
        limit.request_digest,
    )
    assert row is not None, "its row was read in this transaction, under the tenant's lock"
    return StoredLimit(**row)


_DELETE: Final[LiteralString] = "DELETE FROM execution_limits WHERE id = $1"


async def delete_limit(db: Db, limit_id: UUID) -> None:
    """Delete a limit and all its slots."""
    await db.execute(_DELETE, limit_id)
