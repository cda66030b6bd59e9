"""Rows of performance_metrics and error_logs in the order of their transactions.

A row carries the id of the transaction that wrote it. Below the oldest open transaction the order
is final, since no more rows can appear there, so a reader up to that point misses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db
from services.telemetry.domain.records import ErrorRecord, Metric, TailPosition
from services.telemetry.storage.errors import to_error
from services.telemetry.storage.metrics import to_metric

_HORIZON: Final[LiteralString] = """
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint
"""


async def horizon(db: Db) -> int:
    """Return the id of the oldest open transaction; all below it have ended."""
    return int(await db.fetchval(_HORIZON))


_EXECUTION_EXISTS: Final[LiteralString] = """
    SELECT EXISTS (SELECT FROM workflow_executions WHERE id = $1)
"""


async def execution_exists(db: Db, execution_id: UUID) -> bool:
    """Return whether a run exists and the transaction's caller may see it."""
    return bool(await db.fetchval(_EXECUTION_EXISTS, execution_id))


_METRICS: Final[LiteralString] = """
    SELECT id, metric_name, metric_value, metric_unit, workflow_execution_id, tenant_id,
           recorded_at, written_by::text::bigint AS written_by
      FROM performance_metrics
     WHERE (written_by, id) > ($1::text::xid8, $2::uuid) AND written_by < $3::text::xid8
       AND ($4::text IS NULL OR metric_name = $4)
       AND ($5::uuid IS NULL OR workflow_execution_id = $5)
       AND recorded_at > now() - $6::interval
     ORDER BY written_by, id
     LIMIT $7
"""


async def metrics_after(
    db: Db,
    after: TailPosition,
    *,
    before: int,
    name: str | None,
    execution_id: UUID | None,
    youth: timedelta,
    limit: int,
) -> Sequence[tuple[TailPosition, Metric]]:
    """Return the next metrics below a horizon that the transaction's caller may see."""
    at, row_id = after
    rows = await db.fetch(_METRICS, str(at), row_id, str(before), name, execution_id, youth, limit)
    return [((row["written_by"], row["id"]), to_metric(row)) for row in rows]


_ERRORS: Final[LiteralString] = """
    SELECT id, error_type, error_message, stack_trace, severity, workflow_execution_id,
           node_execution_id, created_at, error_detail, written_by::text::bigint AS written_by
      FROM error_logs
     WHERE (written_by, id) > ($1::text::xid8, $2::uuid) AND written_by < $3::text::xid8
       AND severity = ANY($4::text[])
       AND ($5::uuid IS NULL OR workflow_execution_id = $5)
       AND created_at > now() - $6::interval
     ORDER BY written_by, id
     LIMIT $7
"""


async def errors_after(
    db: Db,
    after: TailPosition,
    *,
    before: int,
    severities: Sequence[str],
    execution_id: UUID | None,
    youth: timedelta,
    limit: int,
) -> Sequence[tuple[TailPosition, ErrorRecord]]:
    """Return the next errors below a horizon that the transaction's caller may see."""
    at, row_id = after
    rows = await db.fetch(
        _ERRORS, str(at), row_id, str(before), severities, execution_id, youth, limit
    )
    return [((row["written_by"], row["id"]), to_error(row)) for row in rows]
