"""system_health."""

from __future__ import annotations

from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.telemetry.domain.records import HealthSample, Position, Usage

_LIST_SAMPLES: Final[LiteralString] = """
    SELECT id, node_name, cpu_usage_percent, memory_usage_percent, disk_usage_percent,
           active_containers, active_workflows, recorded_at
      FROM system_health
     WHERE (recorded_at, id) < ($1, $2)
     ORDER BY recorded_at DESC, id DESC
     LIMIT $3
"""


async def list_samples(db: Db, *, after: Position, limit: int) -> list[HealthSample]:
    """Return a page, newest first; the transaction's caller must be an administrator."""
    return [_to_sample(row) for row in await db.fetch(_LIST_SAMPLES, *after, limit)]


# Counts active sandboxes and unfinished runs at the time of the insert.
_INSERT_SAMPLE: Final[LiteralString] = """
    INSERT INTO system_health (id, node_name, cpu_usage_percent, memory_usage_percent,
           disk_usage_percent, active_containers, active_workflows, recorded_at)
    SELECT $1, $2, $3, $4, $5,
           (SELECT count(*) FROM containers WHERE status IN ('creating', 'running')),
           (SELECT count(*) FROM workflow_executions
             WHERE status IN ('pending', 'running', 'paused')),
           $6
"""


async def insert_sample(db: Db, usage: Usage, *, sample_id: UUID, at: datetime) -> None:
    """Insert a health sample, with the numbers of active sandboxes and runs."""
    await db.execute(
        _INSERT_SAMPLE,
        sample_id,
        usage.node_name,
        usage.cpu_percent,
        usage.memory_percent,
        usage.disk_percent,
        at,
    )


def _to_sample(row: Row) -> HealthSample:
    return HealthSample(
        id=row["id"],
        node_name=row["node_name"] or "",
        cpu_percent=float(row["cpu_usage_percent"] or 0),
        memory_percent=float(row["memory_usage_percent"] or 0),
        disk_percent=float(row["disk_usage_percent"] or 0),
        active_containers=row["active_containers"] or 0,
        active_workflows=row["active_workflows"] or 0,
        recorded_at=row["recorded_at"],
    )
