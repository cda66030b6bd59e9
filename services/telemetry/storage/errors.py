"""error_logs, which telemetry reads and the engine writes.

The text of a list's statement is composed of constants only: those below and the conditions of the
fields. A caller's words select among them or become parameters.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from services.kit.filter.fields import Field, FieldTable, compile_filter, text_field, time_field
from services.kit.filter.language import Expression
from services.kit.ids import canonical_uuid
from services.kit.pg import Db, Row
from services.telemetry.domain.records import SEVERITIES, ErrorRecord, Position

_SEVERITY_ORDER: Final = "array_position(ARRAY['info', 'warning', 'error', 'critical'], {}::text)"
_SEVERITY: Final = _SEVERITY_ORDER.format("listed.severity")
_NODE: Final = """EXISTS (
    SELECT FROM node_executions n
     WHERE n.id = listed.node_execution_id
       AND COALESCE(n.definition_node_id, n.node_id) = {}::text)"""
_WORKFLOW: Final = """EXISTS (
    SELECT FROM workflow_executions e
     WHERE e.id = listed.workflow_execution_id AND e.workflow_id = {}::uuid)"""


def _severity(text: str) -> str | None:
    return text if text in SEVERITIES else None


FIELDS: Final = FieldTable(
    (
        Field(
            "severity",
            {
                "=": "listed.severity = {}::text",
                "!=": "listed.severity <> {}::text",
                "<": f"{_SEVERITY} < {_SEVERITY_ORDER}",
                "<=": f"{_SEVERITY} <= {_SEVERITY_ORDER}",
                ">": f"{_SEVERITY} > {_SEVERITY_ORDER}",
                ">=": f"{_SEVERITY} >= {_SEVERITY_ORDER}",
            },
            _severity,
            "one of " + ", ".join(SEVERITIES),
        ),
        text_field("error_type", "listed.error_type"),
        text_field("exception_type", "COALESCE(listed.error_detail ->> 'exception', '')"),
        Field("node", {"=": _NODE, "!=": f"NOT {_NODE}"}, lambda text: text, "text"),
        Field("workflow", {"=": _WORKFLOW, "!=": f"NOT {_WORKFLOW}"}, canonical_uuid, "a UUID"),
        time_field("create_time", "listed.created_at"),
    ),
    "strpos(lower(listed.error_message), lower({}::text)) > 0",
)

# A run has few errors: they are found through the run's index and sorted.
_LIST: Final = """
    SELECT listed.id, listed.error_type, listed.error_message, listed.stack_trace,
           listed.severity, listed.workflow_execution_id, listed.node_execution_id,
           listed.created_at, listed.error_detail
      FROM error_logs AS listed
     WHERE (listed.created_at, listed.id) < ($1, $2) AND {condition}
     ORDER BY listed.created_at DESC, listed.id DESC
     LIMIT $3
"""


def statement(
    expression: Expression | None, execution_id: UUID | None
) -> tuple[str, tuple[object, ...]]:
    """Build the statement of a list; returns its text and its parameters from $4 on."""
    condition, parameters = "true", tuple[object, ...]()
    if execution_id is not None:
        condition, parameters = "listed.workflow_execution_id = $4::uuid", (execution_id,)
    if expression is not None:
        compiled = compile_filter(expression, FIELDS, first=4 + len(parameters))
        condition += f" AND {compiled.sql}"
        parameters += compiled.parameters
    return _LIST.format(condition=condition), parameters


async def list_errors(
    db: Db,
    *,
    expression: Expression | None,
    execution_id: UUID | None,
    after: Position,
    limit: int,
) -> list[ErrorRecord]:
    """Return a page, newest first, of what the transaction's caller may see."""
    text, parameters = statement(expression, execution_id)
    rows = await db.fetch(text, *after, limit, *parameters)
    return [to_error(row) for row in rows]


def to_error(row: Row) -> ErrorRecord:
    """Build an error from its row."""
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
