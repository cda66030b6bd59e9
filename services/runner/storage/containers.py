"""Rows of sandboxes and of their packages; written in batches, off the hot path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Pool, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One sandbox, as stored."""

    id: UUID
    container_id: str
    python_version: str
    status: str
    created_at: datetime
    started_at: datetime | None
    stopped_at: datetime | None
    resource_limits: dict[str, Any]
    resource_usage: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerChange:
    """The new state of a sandbox's row; the last change of a row wins."""

    id: UUID
    tenant_id: UUID
    node_version_id: UUID | None
    python_version: str
    container_id: str
    status: str
    created_at: datetime
    started_at: datetime | None = None
    stopped_at: datetime | None = None
    resource_limits: dict[str, Any] | None = None
    resource_usage: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DependencyChange:
    """The new state of the row of a package in a sandbox."""

    container_id: UUID
    package_name: str
    version: str
    status: str
    lock_digest: str
    time_ms: int | None = None


_SAVE: Final[LiteralString] = """
    INSERT INTO containers (id, tenant_id, node_version_id, runner_incarnation, python_version,
           container_id, status, created_at, started_at, stopped_at, resource_limits,
           resource_usage, created_by)
    SELECT n.id, n.tenant_id, n.node_version_id, $1, n.python_version, n.container_id, n.status,
           n.created_at, n.started_at,
           CASE WHEN n.stopped_at IS NOT NULL THEN greatest(n.stopped_at, n.started_at) END,
           n.resource_limits, n.resource_usage, NULL
      FROM unnest($2::uuid[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::text[],
                  $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::jsonb[],
                  $12::jsonb[])
           AS n(id, tenant_id, node_version_id, python_version, container_id, status, created_at,
                started_at, stopped_at, resource_limits, resource_usage)
     ORDER BY n.id
        ON CONFLICT (id) DO UPDATE
       SET container_id = excluded.container_id, status = excluded.status,
           started_at = coalesce(excluded.started_at, containers.started_at),
           stopped_at = excluded.stopped_at,
           resource_usage = coalesce(excluded.resource_usage, containers.resource_usage)
"""


async def save(db: Db, incarnation: UUID, changes: Sequence[ContainerChange]) -> None:
    """Upsert the states of some sandboxes, at most one change of each."""
    await db.execute(
        _SAVE,
        incarnation,
        [change.id for change in changes],
        [change.tenant_id for change in changes],
        [change.node_version_id for change in changes],
        [change.python_version for change in changes],
        [change.container_id for change in changes],
        [change.status for change in changes],
        [change.created_at for change in changes],
        [change.started_at for change in changes],
        [change.stopped_at for change in changes],
        [change.resource_limits for change in changes],
        [change.resource_usage for change in changes],
    )


_SAVE_DEPENDENCIES: Final[LiteralString] = """
    INSERT INTO container_dependencies (container_id, package_name, version, installation_status,
           installation_time_ms, lock_hash)
    SELECT n.container_id, n.package_name, n.version, n.status, n.time_ms, n.lock_hash
      FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[])
           AS n(container_id, package_name, version, status, time_ms, lock_hash)
     ORDER BY n.container_id, n.package_name
        ON CONFLICT (container_id, package_name) DO UPDATE
       SET installation_status = excluded.installation_status,
           installation_time_ms = excluded.installation_time_ms
"""


async def save_dependencies(db: Db, changes: Sequence[DependencyChange]) -> None:
    """Upsert the states of some packages, at most one change of each."""
    await db.execute(
        _SAVE_DEPENDENCIES,
        [change.container_id for change in changes],
        [change.package_name for change in changes],
        [change.version for change in changes],
        [change.status for change in changes],
        [change.time_ms for change in changes],
        [change.lock_digest for change in changes],
    )


# Rows left open by an earlier process of this home: its sandboxes died with it.
_CLOSE_LEFT: Final[LiteralString] = """
    UPDATE containers c
       SET status = 'stopped', stopped_at = greatest(clock_timestamp(), c.started_at)
      FROM runner_members m
     WHERE c.status IN ('creating', 'running', 'removing') AND m.incarnation = c.runner_incarnation
       AND m.host = $1 AND m.incarnation <> $2
"""


async def close_left(pool: Pool, host: str, incarnation: UUID) -> None:
    """Close the rows of sandboxes of this home's earlier incarnations."""
    await pool.execute(_CLOSE_LEFT, host, incarnation)


_OPEN_ROWS: Final[LiteralString] = """
    SELECT id FROM containers
     WHERE runner_incarnation = $1 AND status IN ('creating', 'running', 'removing')
"""


async def open_rows(pool: Pool, incarnation: UUID) -> set[UUID]:
    """Return the ids of an incarnation's rows that are not closed."""
    return {row["id"] for row in await pool.fetch(_OPEN_ROWS, incarnation)}


_CLOSE_LOST: Final[LiteralString] = """
    UPDATE containers
       SET status = 'error', stopped_at = greatest(clock_timestamp(), started_at)
     WHERE id = ANY ($2::uuid[]) AND runner_incarnation = $1
       AND status IN ('creating', 'running', 'removing')
"""


async def close_lost(pool: Pool, incarnation: UUID, rows: Iterable[UUID]) -> None:
    """Close rows whose sandboxes have disappeared."""
    await pool.execute(_CLOSE_LOST, incarnation, list(rows))


_LIST: Final[LiteralString] = """
    SELECT id, container_id, python_version, status, created_at, started_at, stopped_at,
           coalesce(resource_limits, '{}') AS resource_limits,
           coalesce(resource_usage, '{}') AS resource_usage
      FROM containers
     WHERE tenant_id = $1
       AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
     ORDER BY created_at DESC, id DESC
     LIMIT $4
"""


async def list_page(
    db: Db, tenant_id: UUID, *, after: tuple[datetime, UUID] | None, limit: int
) -> list[Container]:
    """Return a page of a tenant's sandboxes, newest first."""
    created_at, container_id = after or (None, None)
    rows = await db.fetch(_LIST, tenant_id, created_at, container_id, limit)
    return [_to_container(row) for row in rows]


def _to_container(row: Row) -> Container:
    return Container(
        id=row["id"],
        container_id=row["container_id"],
        python_version=row["python_version"],
        status=row["status"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        stopped_at=row["stopped_at"],
        resource_limits=row["resource_limits"],
        resource_usage=row["resource_usage"],
    )
