"""Output lines of nodes: inserted in batches, off the hot path; read by callers in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.runner.domain.node_logs import Line, RunCaps, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLine:
    """One line, as it is read."""

    sequence: int
    node_execution_id: UUID
    node_id: str
    attempt: int
    stream: Stream
    level: int | None
    logger: str
    line: str
    continued: bool
    left_out_bytes: int
    logged_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LogState:
    """Whether a run has ended, and how much it wrote."""

    over_at: datetime | None
    line_count: int
    left_out_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A selection of lines; None or empty selects all."""

    node_ids: Sequence[str] = ()
    attempt: int = 0
    streams: Sequence[Stream] = ()
    level_min: int | None = None


# The run's row stays locked until the end, so that lines are numbered and become visible in the
# same order. Once a batch does not fit, nothing later is kept: the end is omitted, never the
# middle.
_ADD: Final[LiteralString] = """
    WITH given AS (
        SELECT g.*
          FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::int[], $5::text[], $6::text[],
                      $7::timestamptz[], $8::smallint[], $9::text[], $10::boolean[], $11::bigint[])
               WITH ORDINALITY
               AS g(execution_id, node_execution_id, node_id, attempt, stream, line, logged_at,
                    level, logger, continued, left_out_bytes, position)
    ), runs AS (
        SELECT g.execution_id, run.tenant_id, count(*) AS lines,
               sum(octet_length(g.line)) AS size_bytes
          FROM given g JOIN workflow_executions run ON run.id = g.execution_id
         WHERE run.purge_started_at IS NULL
         GROUP BY 1, 2
    ), counted AS (
        INSERT INTO execution_logs AS log
               (workflow_execution_id, tenant_id, line_count, size_bytes)
        SELECT execution_id, tenant_id, lines, size_bytes FROM runs ORDER BY execution_id
            ON CONFLICT (workflow_execution_id) DO UPDATE
           SET (line_count, size_bytes, left_out_count, updated_at) = (
                SELECT CASE WHEN fits THEN log.line_count + excluded.line_count
                            ELSE log.line_count END,
                       CASE WHEN fits THEN log.size_bytes + excluded.size_bytes
                            ELSE log.size_bytes END,
                       CASE WHEN fits THEN 0 ELSE log.left_out_count + excluded.line_count END,
                       clock_timestamp()
                  FROM (VALUES (log.left_out_count = 0
                            AND log.line_count + excluded.line_count <= $12::bigint
                            AND log.size_bytes + excluded.size_bytes <= $13::bigint))
                    AS fitting(fits))
     RETURNING workflow_execution_id, line_count, left_out_count
    )
    INSERT INTO node_logs (workflow_execution_id, sequence, tenant_id, node_execution_id, node_id,
           attempt, stream, line, logged_at, level, logger, continued, left_out_bytes)
    SELECT g.execution_id,
           c.line_count - r.lines
               + row_number() OVER (PARTITION BY g.execution_id ORDER BY g.position),
           r.tenant_id, g.node_execution_id, g.node_id, g.attempt, g.stream, g.line, g.logged_at,
           g.level, nullif(g.logger, ''), g.continued, g.left_out_bytes
      FROM given g
      JOIN runs r ON r.execution_id = g.execution_id
      JOIN counted c ON c.workflow_execution_id = g.execution_id
     WHERE c.left_out_count = 0
"""


async def add(db: Db, lines: Sequence[Line], caps: RunCaps) -> None:
    """Insert lines of any runs in order; lines of purged runs are dropped."""
    await db.execute(
        _ADD,
        [each.execution_id for each in lines],
        [each.node_execution_id for each in lines],
        [each.node_id for each in lines],
        [each.attempt for each in lines],
        [each.stream.value for each in lines],
        [each.line for each in lines],
        [each.logged_at for each in lines],
        [each.level for each in lines],
        [each.logger for each in lines],
        [each.continued for each in lines],
        [each.left_out_bytes for each in lines],
        caps.lines_max,
        caps.bytes_max,
    )


_STATE: Final[LiteralString] = """
    SELECT run.completed_at, coalesce(log.line_count, 0) AS line_count,
           coalesce(log.left_out_count, 0) AS left_out_count
      FROM workflow_executions run
      LEFT JOIN execution_logs log ON log.workflow_execution_id = run.id
     WHERE run.id = $1
"""


async def state(db: Db, execution_id: UUID) -> LogState | None:
    """Return the log state of a run; None if the caller cannot see the run."""
    row = await db.fetchrow(_STATE, execution_id)
    if row is None:
        return None
    return LogState(
        over_at=row["completed_at"],
        line_count=row["line_count"],
        left_out_count=row["left_out_count"],
    )


# Printed lines have no level, so the minimum only filters records of `logging`.
_READ: Final[LiteralString] = """
    SELECT sequence, node_execution_id, node_id, attempt, stream, level, logger, line, continued,
           left_out_bytes, logged_at
      FROM node_logs
     WHERE workflow_execution_id = $1 AND sequence > $2
       AND ($3::text[] IS NULL OR node_id = ANY ($3))
       AND ($4::int IS NULL OR attempt = $4)
       AND ($5::text[] IS NULL OR stream = ANY ($5))
       AND ($6::smallint IS NULL OR level IS NULL OR level >= $6)
     ORDER BY sequence
     LIMIT $7
"""


async def read(
    db: Db, execution_id: UUID, choice: Choice, *, after: int, limit: int
) -> list[StoredLine]:
    """Return lines after `after`, in order."""
    rows = await db.fetch(
        _READ,
        execution_id,
        after,
        list(choice.node_ids) or None,
        choice.attempt or None,
        [each.value for each in choice.streams] or None,
        choice.level_min,
        limit,
    )
    return [_to_line(row) for row in rows]


def _to_line(row: Row) -> StoredLine:
    return StoredLine(
        sequence=row["sequence"],
        node_execution_id=row["node_execution_id"],
        node_id=row["node_id"],
        attempt=row["attempt"],
        stream=Stream(row["stream"]),
        level=row["level"],
        logger=row["logger"] or "",
        line=row["line"],
        continued=row["continued"],
        left_out_bytes=row["left_out_bytes"],
        logged_at=row["logged_at"],
    )
