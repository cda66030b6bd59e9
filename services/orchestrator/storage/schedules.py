"""Schedules for callers, under row-level security."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.kit.updates import etag_of
from services.orchestrator.domain.ticks import CatchUp, Overlap
from services.orchestrator.domain.timing import Timing, from_json, to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a caller sets of a schedule."""

    name: str
    description: str
    workflow_version: int
    workflow_alias: str
    input_json: str  # the exact text
    timing: Timing
    overlap: Overlap
    catch_up: CatchUp
    catch_up_window_ms: int
    labels: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One row of schedules."""

    id: UUID
    workflow_id: UUID
    definition: Definition
    created_by: UUID
    created_at: datetime
    updated_at: datetime
    revision: int = 1
    paused_at: datetime | None = None
    pause_reason: str = ""
    due_at: datetime | None = None
    fire_at: datetime | None = None
    last_at: datetime | None = None
    skipped_count: int = 0
    error_reason: str | None = None
    error_message: str | None = None
    error_at: datetime | None = None

    @property
    def etag(self) -> str:
        """Changes with every change by a caller."""
        return etag_of(self.revision, self.created_at)


_NOW: Final[LiteralString] = "SELECT clock_timestamp()"


async def now(db: Db) -> datetime:
    """Return the database's time, which alone decides what is due."""
    moment: datetime = await db.fetchval(_NOW)
    return moment


# Wakes the schedule loops of all orchestrators when this transaction commits.
_WAKE: Final[LiteralString] = "SELECT pg_notify('qflow_schedules', '')"


async def wake(db: Db) -> None:
    """Wake the schedule loops."""
    await db.execute(_WAKE)


# Serializes inserts, so that counting is exact.
_LOCK: Final[LiteralString] = """
    SELECT pg_advisory_xact_lock(hashtextextended('schedules ' || $1::text, 0))
"""


async def lock_tenant(db: Db, tenant_id: UUID) -> None:
    """Lock the number of a tenant's schedules until the transaction ends."""
    await db.execute(_LOCK, str(tenant_id))


_COUNT: Final[LiteralString] = (
    "SELECT count(*) FROM schedules WHERE tenant_id = current_tenant_id()"
)


async def count(db: Db) -> int:
    """Count the tenant's schedules."""
    return int(await db.fetchval(_COUNT))


_INSERT: Final[LiteralString] = """
    INSERT INTO schedules
           (id, workflow_id, name, description, workflow_version, workflow_alias, input_data,
            timing, overlap, catch_up, catch_up_window_ms, labels, paused_at, due_at, fire_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
 RETURNING id, workflow_id, name, description, workflow_version, workflow_alias, input_data, timing,
           overlap, catch_up, catch_up_window_ms, labels, paused_at, pause_reason, due_at, fire_at,
           last_at, skipped_count, error_reason, error_message, error_at, revision, updated_at,
           created_by, created_at
"""


async def insert(db: Db, schedule: Schedule) -> Schedule:
    """Add a schedule."""
    row = await db.fetchrow(
        _INSERT,
        schedule.id,
        schedule.workflow_id,
        *_said(schedule.definition),
        schedule.paused_at,
        schedule.due_at,
        schedule.fire_at,
    )
    assert row is not None
    return _to_schedule(row)


_GET: Final[LiteralString] = """
    SELECT id, workflow_id, name, description, workflow_version, workflow_alias, input_data, timing,
           overlap, catch_up, catch_up_window_ms, labels, paused_at, pause_reason, due_at, fire_at,
           last_at, skipped_count, error_reason, error_message, error_at, revision, updated_at,
           created_by, created_at
      FROM schedules WHERE id = $1
"""


async def get(db: Db, schedule_id: UUID) -> Schedule | None:
    """Return a schedule that the caller can read."""
    row = await db.fetchrow(_GET, schedule_id)
    return None if row is None else _to_schedule(row)


_HOLD: Final[LiteralString] = """
    SELECT id, workflow_id, name, description, workflow_version, workflow_alias, input_data, timing,
           overlap, catch_up, catch_up_window_ms, labels, paused_at, pause_reason, due_at, fire_at,
           last_at, skipped_count, error_reason, error_message, error_at, revision, updated_at,
           created_by, created_at
      FROM schedules WHERE id = $1 FOR UPDATE
"""


async def hold(db: Db, schedule_id: UUID) -> Schedule | None:
    """Return a schedule that the caller may change, locked until the transaction ends."""
    row = await db.fetchrow(_HOLD, schedule_id)
    return None if row is None else _to_schedule(row)


_LIST: Final[LiteralString] = """
    SELECT id, workflow_id, name, description, workflow_version, workflow_alias, input_data, timing,
           overlap, catch_up, catch_up_window_ms, labels, paused_at, pause_reason, due_at, fire_at,
           last_at, skipped_count, error_reason, error_message, error_at, revision, updated_at,
           created_by, created_at
      FROM schedules
     WHERE tenant_id = current_tenant_id()
       AND ($1::uuid IS NULL OR workflow_id = $1) AND ($2 = '' OR $2 = ANY (labels))
       AND ($3::timestamptz IS NULL OR (created_at, id) < ($3, $4::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $5
"""


async def list_page(
    db: Db,
    *,
    workflow_id: UUID | None,
    label: str,
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Schedule]:
    """Return the tenant's schedules, newest first."""
    created_at, row_id = before or (None, None)
    rows = await db.fetch(_LIST, workflow_id, label, created_at, row_id, limit)
    return [_to_schedule(row) for row in rows]


_UPDATE: Final[LiteralString] = """
    UPDATE schedules
       SET name = $2, description = $3, workflow_version = $4, workflow_alias = $5, input_data = $6,
           timing = $7, overlap = $8, catch_up = $9, catch_up_window_ms = $10, labels = $11,
           paused_at = $12, pause_reason = $13, due_at = $14, fire_at = $15,
           revision = revision + 1, updated_at = clock_timestamp()
     WHERE id = $1
 RETURNING id, workflow_id, name, description, workflow_version, workflow_alias, input_data, timing,
           overlap, catch_up, catch_up_window_ms, labels, paused_at, pause_reason, due_at, fire_at,
           last_at, skipped_count, error_reason, error_message, error_at, revision, updated_at,
           created_by, created_at
"""


async def update(db: Db, schedule: Schedule) -> Schedule:
    """Update a locked schedule."""
    row = await db.fetchrow(
        _UPDATE,
        schedule.id,
        *_said(schedule.definition),
        schedule.paused_at,
        schedule.pause_reason,
        schedule.due_at,
        schedule.fire_at,
    )
    assert row is not None, "it is held"
    return _to_schedule(row)


_DELETE: Final[LiteralString] = "DELETE FROM schedules WHERE id = $1"


async def delete(db: Db, schedule_id: UUID) -> None:
    """Delete a schedule, its ticks and backfills."""
    await db.execute(_DELETE, schedule_id)


def _said(said: Definition) -> tuple[object, ...]:
    return (
        said.name,
        said.description,
        said.workflow_version,
        said.workflow_alias,
        said.input_json,
        to_json(said.timing),
        said.overlap,
        said.catch_up,
        said.catch_up_window_ms,
        list(said.labels),
    )


def _to_schedule(row: Row) -> Schedule:
    values = dict(row)
    definition = Definition(
        name=values.pop("name"),
        description=values.pop("description"),
        workflow_version=values.pop("workflow_version"),
        workflow_alias=values.pop("workflow_alias"),
        input_json=values.pop("input_data"),
        timing=from_json(values.pop("timing")),
        overlap=values.pop("overlap"),
        catch_up=values.pop("catch_up"),
        catch_up_window_ms=values.pop("catch_up_window_ms"),
        labels=tuple(values.pop("labels")),
    )
    return Schedule(definition=definition, **values)
