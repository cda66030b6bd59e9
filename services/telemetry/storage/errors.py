"""error_logs: telemetry reads them; the engine writes those of failing attempts itself."""

from __future__ import annotations

from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.telemetry.domain.records import ErrorRecord, Position

_LIST_ERRORS: Final[LiteralString] = """
    SELECT id, error_type, error_message, stack_trace, severity, workflow_execution_id,
           node_execution_id, created_at, error_detail
      FROM error_logs
     WHERE (created_at, id) < ($1, $2)
     ORDER BY created_at DESC, id DESC
     LIMIT $3
"""

# A run has few: they are found by the run and sorted, not by walking all errors in order.
_LIST_ERRORS_OF_EXECUTION: Final[LiteralString] = """
    SELECT id, error_type, error_message, stack_trace, severity, workflow_execution_id,
           node_execution_id, created_at, error_detail
      FROM error_logs
     WHERE workflow_execution_id = $4
       AND (created_at, id) < ($1, $2)
     ORDER BY created_at DESC, id DESC
     LIMIT $3
"""


async def list_errors(
    db: Db, *, execution_id: UUID | None, after: Position, limit: int
) -> list[ErrorRecord]:
    """Read a page, newest first, of what the transaction's caller may see."""
    if execution_id is None:
        rows = await db.fetch(_LIST_ERRORS, *after, limit)
    else:
        rows = await db.fetch(_LIST_ERRORS_OF_EXECUTION, *after, limit, execution_id)
    return [_to_error(row) for row in rows]


def _to_error(row: Row) -> ErrorRecord:
    return ErrorRecord(
        id=row["id"],
        error_type=row["error_type"],
        message=row["error_message"],
        stack_trace=row["stack_trace"] or "",
        severity=row["severity"],
        execution_id=row["workflow_execution_id"],
        node_execution_id=row["node_execution_id"],
        created_at=row["created_at"],
        detail=row["error_detail"],
    )
