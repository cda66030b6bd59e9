"""Nodes of executions for callers, under row-level security."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.orchestrator.domain.status import NodeStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeExecution:
    """One row of node_executions, or a node without one."""

    node_id: str
    status: NodeStatus
    revision: int = 0
    id: UUID | None = None
    node_version_id: UUID | None = None
    execution_order: int = 0
    retry_count: int = 0
    max_retries: int = 0
    started_at: datetime | None = None
    completed_at: datetime | None = None
    due_at: datetime | None = None
    error_type: str | None = None
    error_message: str | None = None
    error_stack_trace: str | None = None
    error_detail: str | None = None  # JSON text: the exception
    resource_usage: dict[str, Any] | None = None
    container_id: UUID | None = None
    output_data: str | None = None
    output_file_id: UUID | None = None
    definition_node_id: str = ""
    child_execution_id: UUID | None = None
    file_size_bytes: int | None = None
    hash_sha256: str | None = None
    stdout_tail: str | None = None
    stderr_tail: str | None = None
    copied_from: UUID | None = None
    cache_hit: bool | None = None
    element_counts: dict[str, int] | None = None


_NODES: Final[LiteralString] = """
    SELECT node.id, node.node_id, node.definition_node_id, node.child_execution_id, node.status,
           node.revision, node.node_version_id, node.execution_order, node.retry_count,
           node.max_retries, node.started_at, node.completed_at, node.due_at, node.error_type,
           node.error_message,
           node.resource_usage, node.container_id, node.copied_from, node.cache_hit,
           CASE WHEN $4 THEN node.error_stack_trace END AS error_stack_trace,
           node.error_detail,
           CASE WHEN $4 THEN node.output_data END AS output_data,
           CASE WHEN $4 THEN node.output_file_id END AS output_file_id,
           CASE WHEN $4 THEN node.stdout_tail END AS stdout_tail,
           CASE WHEN $4 THEN node.stderr_tail END AS stderr_tail,
           file.file_size_bytes, file.hash_sha256, file.element_counts
      FROM node_executions AS node
      LEFT JOIN files AS file ON $4 AND file.id = node.output_file_id
     WHERE node.workflow_execution_id = $1
       AND ($2::text[] IS NULL OR node.node_id = ANY($2)) AND node.revision > $3
     ORDER BY node.execution_order
"""


# The parts of one place in execution order, by the index on that.
_PARTS: Final[LiteralString] = _NODES.replace(
    "AND ($2::text[] IS NULL OR node.node_id = ANY($2)) AND node.revision > $3",
    "AND node.definition_node_id = $2 AND node.node_id <> $2 AND node.execution_order > $3",
).replace("ORDER BY node.execution_order", "ORDER BY node.execution_order LIMIT $5")


async def list_parts(
    db: Db, execution_id: UUID, place_id: str, *, after_order: int, limit: int, full: bool = False
) -> list[NodeExecution]:
    """Return elements of a map or turns of a loop after an execution order."""
    rows = await db.fetch(_PARTS, execution_id, place_id, after_order, full, limit)
    return [_to_node(row) for row in rows]


# Tolerated ones are quarantined; the first that exceeded the tolerance is failed.
_FAILED_PARTS: Final[LiteralString] = """
    SELECT node_id, count(*) OVER () AS n, bool_or(status = 'failed') OVER () AS too_many
      FROM node_executions
     WHERE workflow_execution_id = $1 AND definition_node_id = $2 AND node_id <> $2
       AND status IN ('failed', 'quarantined')
     ORDER BY execution_order LIMIT $3
"""


async def failed_parts(
    db: Db, execution_id: UUID, place_id: str, *, limit: int
) -> tuple[list[str], int]:
    """Return the first failed elements of a map and their number; none if all are tolerated."""
    rows = await db.fetch(_FAILED_PARTS, execution_id, place_id, limit)
    if not rows or not rows[0]["too_many"]:
        return [], 0
    return [row["node_id"] for row in rows], rows[0]["n"]


async def list_nodes(
    db: Db,
    execution_id: UUID,
    *,
    node_ids: Sequence[str] | None = None,
    after_revision: int = 0,
    full: bool = False,
) -> list[NodeExecution]:
    """Return node rows of an execution: named ones or all, changed after a revision."""
    named = None if node_ids is None else list(node_ids)
    rows = await db.fetch(_NODES, execution_id, named, after_revision, full)
    return [_to_node(row) for row in rows]


def _to_node(row: Row) -> NodeExecution:
    values = dict(row)
    values["status"] = NodeStatus(values["status"])
    return NodeExecution(**values)
