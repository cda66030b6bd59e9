"""Triggers for callers, under row-level security."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db
from services.kit.updates import etag_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """One row of triggers, without its digest."""

    id: UUID
    workflow_id: UUID
    name: str
    workflow_version: int
    workflow_alias: str
    input_data: str  # the exact text
    payload_input: str
    filter: str
    created_by: UUID
    created_at: datetime
    updated_at: datetime
    paused_at: datetime | None = None
    fired_at: datetime | None = None
    fired_count: int = 0
    filtered_count: int = 0
    error_reason: str | None = None
    error_message: str | None = None
    error_at: datetime | None = None
    revision: int = 1

    @property
    def etag(self) -> str:
        """Changes with every change by a caller."""
        return etag_of(self.revision, self.created_at)


_LOCK: Final[LiteralString] = """
    SELECT pg_advisory_xact_lock(hashtextextended('triggers ' || $1::text, 0))
"""


async def lock_tenant(db: Db, tenant_id: UUID) -> None:
    """Lock the number of a tenant's triggers until the transaction ends."""
    await db.execute(_LOCK, str(tenant_id))


_COUNT: Final[LiteralString] = "SELECT count(*) FROM triggers WHERE tenant_id = current_tenant_id()"


async def count(db: Db) -> int:
    """Count the tenant's triggers."""
    return int(await db.fetchval(_COUNT))


_INSERT: Final[LiteralString] = """
    INSERT INTO triggers (id, workflow_id, name, workflow_version, workflow_alias, input_data,
           payload_input, secret_sha256, filter)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
 RETURNING id, workflow_id, name, workflow_version, workflow_alias, input_data, payload_input,
           paused_at, fired_at, fired_count, error_reason, error_message, error_at, revision,
           updated_at, created_by, created_at, filter, filtered_count
"""


async def insert(db: Db, trigger: Trigger, secret_sha256: str) -> Trigger:
    """Add a trigger."""
    row = await db.fetchrow(
        _INSERT,
        trigger.id,
        trigger.workflow_id,
        trigger.name,
        trigger.workflow_version,
        trigger.workflow_alias,
        trigger.input_data,
        trigger.payload_input,
        secret_sha256,
        trigger.filter,
    )
    assert row is not None
    return Trigger(**dict(row))


_GET: Final[LiteralString] = """
    SELECT id, workflow_id, name, workflow_version, workflow_alias, input_data, payload_input,
           paused_at, fired_at, fired_count, error_reason, error_message, error_at, revision,
           updated_at, created_by, created_at, filter, filtered_count
      FROM triggers WHERE id = $1
"""


async def get(db: Db, trigger_id: UUID) -> Trigger | None:
    """Return a trigger that the caller can read."""
    row = await db.fetchrow(_GET, trigger_id)
    return None if row is None else Trigger(**dict(row))


_HOLD: Final[LiteralString] = """
    SELECT id, workflow_id, name, workflow_version, workflow_alias, input_data, payload_input,
           paused_at, fired_at, fired_count, error_reason, error_message, error_at, revision,
           updated_at, created_by, created_at, filter, filtered_count
      FROM triggers WHERE id = $1 FOR UPDATE
"""


async def hold(db: Db, trigger_id: UUID) -> Trigger | None:
    """Return a trigger that the caller may change, locked until the transaction ends."""
    row = await db.fetchrow(_HOLD, trigger_id)
    return None if row is None else Trigger(**dict(row))


_LIST: Final[LiteralString] = """
    SELECT id, workflow_id, name, workflow_version, workflow_alias, input_data, payload_input,
           paused_at, fired_at, fired_count, error_reason, error_message, error_at, revision,
           updated_at, created_by, created_at, filter, filtered_count
      FROM triggers
     WHERE tenant_id = current_tenant_id() AND ($1::uuid IS NULL OR workflow_id = $1)
       AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $4
"""


async def list_page(
    db: Db, *, workflow_id: UUID | None, before: tuple[datetime, UUID] | None, limit: int
) -> list[Trigger]:
    """Return the tenant's triggers, newest first."""
    created_at, row_id = before or (None, None)
    rows = await db.fetch(_LIST, workflow_id, created_at, row_id, limit)
    return [Trigger(**dict(row)) for row in rows]


_UPDATE: Final[LiteralString] = """
    UPDATE triggers
       SET name = $2, workflow_version = $3, workflow_alias = $4, input_data = $5,
           payload_input = $6, paused_at = $7, filter = $8, revision = revision + 1,
           updated_at = clock_timestamp()
     WHERE id = $1
 RETURNING id, workflow_id, name, workflow_version, workflow_alias, input_data, payload_input,
           paused_at, fired_at, fired_count, error_reason, error_message, error_at, revision,
           updated_at, created_by, created_at, filter, filtered_count
"""
_ROTATE: Final[LiteralString] = """
    UPDATE triggers
       SET secret_sha256 = $2, revision = revision + 1, updated_at = clock_timestamp()
     WHERE id = $1
 RETURNING id, workflow_id, name, workflow_version, workflow_alias, input_data, payload_input,
           paused_at, fired_at, fired_count, error_reason, error_message, error_at, revision,
           updated_at, created_by, created_at, filter, filtered_count
"""


async def update(db: Db, trigger: Trigger) -> Trigger:
    """Update a locked trigger."""
    row = await db.fetchrow(
        _UPDATE,
        trigger.id,
        trigger.name,
        trigger.workflow_version,
        trigger.workflow_alias,
        trigger.input_data,
        trigger.payload_input,
        trigger.paused_at,
        trigger.filter,
    )
    assert row is not None, "it is held"
    return Trigger(**dict(row))


async def rotate(db: Db, trigger_id: UUID, secret_sha256: str) -> Trigger:
    """Set the digest of a locked trigger's new secret."""
    row = await db.fetchrow(_ROTATE, trigger_id, secret_sha256)
    assert row is not None, "it is held"
    return Trigger(**dict(row))


_DELETE: Final[LiteralString] = "DELETE FROM triggers WHERE id = $1"


async def delete(db: Db, trigger_id: UUID) -> None:
    """Delete a trigger."""
    await db.execute(_DELETE, trigger_id)
