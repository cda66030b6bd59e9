"""Groups of similar error_logs: same type, same node, same message except for variable parts."""

from __future__ import annotations

from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.telemetry.domain.analytics import LOOKED_AT_MAX, ErrorGroup, Range

# Quoted parts and words with digits, such as ids, numbers and addresses, vary between errors with
# one cause, so they are masked. The start of a message is enough to tell its kind.
_GROUPS: Final[LiteralString] = r"""
    WITH looked_at AS (
        SELECT l.id, l.error_type, l.error_message, l.workflow_execution_id, l.created_at,
               COALESCE(n.definition_node_id, n.node_id, '') AS node_id
          FROM (SELECT id, error_type, error_message, workflow_execution_id, node_execution_id,
                       created_at
                  FROM error_logs
                 WHERE created_at >= $1 AND created_at < $2
                   AND ($3::uuid IS NULL OR EXISTS (
                        SELECT FROM workflow_executions e
                         WHERE e.id = workflow_execution_id AND e.workflow_id = $3))
                 ORDER BY created_at DESC, id DESC
                 LIMIT $4) AS l
          LEFT JOIN node_executions n ON n.id = l.node_execution_id),
    marked AS (
        SELECT looked_at.*,
               md5(error_type || chr(10) || node_id || chr(10) || regexp_replace(
                   regexp_replace(left(error_message, 1000), '''[^'']*''|"[^"]*"', '?', 'g'),
                   '[[:alnum:]_-]*[0-9][[:alnum:]_-]*', '#', 'g')) AS fingerprint
          FROM looked_at)
    SELECT fingerprint, min(error_type) AS error_type, min(node_id) AS node_id, count(*) AS errors,
           count(DISTINCT workflow_execution_id) AS executions, min(created_at) AS first_at,
           max(created_at) AS last_at,
           (array_agg(id ORDER BY created_at DESC, id DESC))[1] AS example_id,
           (array_agg(error_message ORDER BY created_at DESC, id DESC))[1] AS example_message,
           (array_agg(workflow_execution_id ORDER BY created_at DESC, id DESC))[1]
               AS example_execution_id
      FROM marked
     GROUP BY fingerprint
     ORDER BY errors DESC, last_at DESC, fingerprint
     LIMIT $5
"""


async def error_groups(
    db: Db, *, workflow_id: UUID | None, span: Range, limit: int
) -> list[ErrorGroup]:
    """Group the newest errors that the transaction's caller may see, largest group first."""
    given = (span.start, span.end, workflow_id, LOOKED_AT_MAX, limit)
    return [_to_group(row) for row in await db.fetch(_GROUPS, *given)]


def _to_group(row: Row) -> ErrorGroup:
    return ErrorGroup(
        fingerprint=row["fingerprint"],
        error_type=row["error_type"],
        node_id=row["node_id"],
        count=row["errors"],
        executions=row["executions"],
        first_at=row["first_at"],
        last_at=row["last_at"],
        example_id=row["example_id"],
        example_message=row["example_message"],
        example_execution_id=row["example_execution_id"],
    )
