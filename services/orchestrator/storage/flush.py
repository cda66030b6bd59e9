"""The flush: whole transitions of many executions in one statement under the member's fence.

A statement is put together from the parts below, only those that the batch needs: an unused part
would cost its start in every flush. Each combination is one prepared statement, and of most there
are two: where no part has more than one row, as in a chain of nodes, they are plain values, which
cost a third less than arrays of one do.

The fence locks the member's row before anything is written. Without it `engine_check` raises QF002;
where a guarded part found fewer rows than it was given, QF001. Either way nothing of the batch is
written, whatever the parts did: they are one statement.

`stamp` is one time for the whole flush, never before that of the flush before: so a successor
never starts before its predecessor completed, whatever the clock does. It is the statement's own
time, which is the same wherever it is asked.

New rows are not sorted: they come in the order in which they were queued, nearly that of their ids,
and no other flush can wait for an id that only this one knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import chain
from operator import attrgetter
from typing import Any, Final, LiteralString, TypeAlias
from uuid import UUID

from services.kit.columns import flat
from services.orchestrator.domain.rows import FlowInsert, RunInsert, Transition

Seal: TypeAlias = Callable[[str], str]
FENCED: Final = "QF002"
GUARD_MISSED: Final = "QF001"
ENGINE_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Part:
    """One data-modifying CTE over `given`, its rows."""

    name: str
    columns: LiteralString  # name and type of each, in the order of the row's fields
    sql: LiteralString
    rows: str  # which field of a transition has its rows
    counted: bool = True  # some given row may find nothing to write, which must not happen
    once: bool = False  # rows that many transitions share are given once
    of_first: bool = False  # those of a run that the flush inserts count where it was started
    data: tuple[str, ...] = ()  # columns with what is sealed where data at rest is
    # What rows with a value in a column are asked besides: left out where no row has one.
    asked: tuple[tuple[str, LiteralString], ...] = ()
    # What most rows have in the last columns: where all have, it stands in the statement instead.
    usual: tuple[Any, ...] = ()


# The plans that follow a node which stands elsewhere by now, or may not be read any more.
_FOLLOWS: Final = Part(
    "stale",
    "pins_id uuid, tenant_id uuid, node_id uuid, version_id uuid",
    """
    SELECT given.pins_id
      FROM given
      LEFT JOIN python_nodes AS node ON node.id = given.node_id
       AND (node.tenant_id = given.tenant_id OR node.is_public OR node.is_template)
      LEFT JOIN python_node_versions AS version
        ON version.node_id = node.id AND version.version = node.version
     WHERE version.id IS DISTINCT FROM given.version_id
    """,
    "follows",
    counted=False,
    once=True,
)

# A run whose workflow went away or stands at another version than its plan, or whose alias does, is
# not inserted, nor one whose plan is stale: the answer says which were. Nor are its nodes then. The
# same goes for a run of one node whose node went away, and for one whose business key an open run
# has (a unique index) or earlier ones forbid: those are seen as the statement began, so a run that
# ends in this very flush still counts as open.
_RUN_INSERTS: Final = Part(
    "started",
    """
    id uuid, workflow_id uuid, tenant_id uuid, created_by uuid, workflow_version int,
    current_version int, pins_id uuid, shard smallint, status text, input_data text,
    request_id uuid, request_digest text, python_version text, timeout_ms bigint, revision bigint,
    alias text, business_key text, key_reuse text, labels text, priority smallint,
    start_at timestamptz, parent_execution_id uuid, relation text, node_version_id uuid,
    parent_node_id text, ignores_cache boolean, traceparent text
    """,
    """
    INSERT INTO workflow_executions
           (id, workflow_id, tenant_id, created_by, workflow_version, pins_id, shard, status,
            input_data, request_id, request_digest, python_version, revision, engine_format,
            created_at, queued_at, started_at, deadline_at, business_key, labels, priority,
            start_at, parent_execution_id, relation, node_version_id, parent_node_id,
            ignores_cache, traceparent)
    SELECT given.id, given.workflow_id, given.tenant_id, given.created_by, given.workflow_version,
           given.pins_id, given.shard, given.status, given.input_data::json, given.request_id,
           given.request_digest, given.python_version, given.revision, 1,
           stamp.at, GREATEST(stamp.at, given.start_at),
           CASE WHEN given.status = 'running' THEN stamp.at END,
           GREATEST(stamp.at, given.start_at) + given.timeout_ms * interval '1 millisecond',
           given.business_key, given.labels::jsonb, given.priority, given.start_at,
           given.parent_execution_id, given.relation, given.node_version_id, given.parent_node_id,
           NULLIF(given.ignores_cache, false), given.traceparent
      FROM given
      LEFT JOIN workflows ON workflows.id = given.workflow_id
       AND (given.parent_node_id IS NOT NULL
            OR workflows.is_active AND workflows.deleted_at IS NULL
               AND (workflows.tenant_id = given.tenant_id OR workflows.is_template))
       AND workflows.version = COALESCE(given.current_version, workflows.version)
     WHERE /*stale*/ true
       AND (workflows.id IS NOT NULL /*node_version_id*/)
       /*business_key*/
       /*alias*/
        ON CONFLICT DO NOTHING
 RETURNING id
    """,
    "run_inserts",
    counted=False,
    data=("input_data",),
    usual=tuple(RunInsert._field_defaults.values()),
    asked=(
        (
            "node_version_id",
            """
            OR EXISTS (
            SELECT 1 FROM python_node_versions AS version
              JOIN python_nodes AS node ON node.id = version.node_id
             WHERE version.id = given.node_version_id AND node.deleted_at IS NULL
               AND (node.tenant_id = given.tenant_id OR node.is_public OR node.is_template))
            """,
        ),
        (
            "business_key",
            """
            AND (given.business_key IS NULL OR given.key_reuse = 'allow' OR NOT EXISTS (
            SELECT 1 FROM workflow_executions AS earlier
             WHERE earlier.tenant_id = given.tenant_id AND earlier.workflow_id = given.workflow_id
               AND earlier.business_key = given.business_key AND earlier.purge_started_at IS NULL
               AND (given.key_reuse = 'reject' OR earlier.status = 'completed'
                 OR (earlier.completed_at IS NULL AND earlier.cancel_requested_at IS NULL))))
            """,
        ),
        (
            "alias",
            """
            AND (given.alias IS NULL OR EXISTS (
            SELECT 1 FROM workflow_aliases AS named
             WHERE named.workflow_id = given.workflow_id AND named.name = given.alias
               AND named.version = given.workflow_version))
            """,
        ),
    ),
)

_NODE_INSERTS: Final = Part(
    "begun",
    """
    id uuid, run_id uuid, node_id text, definition_node_id text, node_version_id uuid,
    execution_order int, max_retries int, runner uuid, token bigint, revision bigint, first boolean
    """,
    """
    INSERT INTO node_executions
           (id, workflow_execution_id, node_id, definition_node_id, node_type, status,
            node_version_id, execution_order, max_retries, runner_incarnation, attempt_token,
            revision, started_at)
    SELECT given.id, given.run_id, given.node_id, given.definition_node_id, 'python', 'running',
           given.node_version_id, given.execution_order, given.max_retries, given.runner,
           given.token, given.revision, stamp.at
      FROM given
     WHERE /*first*/ NOT given.first
    """,
    "node_inserts",
    counted=False,  # a duplicate key raises by itself; those of refused runs are left out
)
# With inserted runs in the same flush, their first nodes follow them.
_STARTED: Final = "(SELECT id FROM started)"

# What a run takes over: written from the rows that have it, which are over and never change; it
# ends as the run begins.
_COPIES: Final = Part(
    "copied",
    """
    id uuid, run_id uuid, source_id uuid, node_id text, definition_node_id text,
    node_version_id uuid, execution_order int, first boolean, file_id uuid, revision bigint,
    cache_hit boolean
    """,
    """
    INSERT INTO node_executions
           (id, workflow_execution_id, node_id, definition_node_id, node_type, status,
            node_version_id, execution_order, max_retries, attempt_token, revision, started_at,
            completed_at, output_data, output_file_id, copied_from, cache_hit, error_type,
            error_message, error_stack_trace, error_detail)
    SELECT given.id, given.run_id, given.node_id, given.definition_node_id, source.node_type,
           source.status,
           given.node_version_id, given.execution_order, 0, 0, given.revision,
           CASE WHEN source.status <> 'skipped' THEN stamp.at END, stamp.at,
           source.output_data, given.file_id, source.id, NULLIF(given.cache_hit, false),
           source.error_type, source.error_message, source.error_stack_trace, source.error_detail
      FROM given
      JOIN node_executions AS source
        ON source.id = given.source_id AND source.output_file_id IS NOT DISTINCT FROM given.file_id
     WHERE /*first*/ NOT given.first
     ORDER BY given.id
 RETURNING id
    """,
    "copies",
    of_first=True,
)

# Whoever keeps a file says so: retention hands it on. One that has gone meanwhile refuses the rest.
_FILE_USES: Final = Part(
    "used_files",
    "id uuid, run_id uuid, file_id uuid, first boolean",
    """
    INSERT INTO file_uses (node_execution_id, file_id, tenant_id)
    SELECT given.id, given.file_id, file.tenant_id
      FROM given
      JOIN files AS file ON file.id = given.file_id
     WHERE /*first*/ NOT given.first
     ORDER BY given.file_id, given.id
 RETURNING node_execution_id
    """,
    "file_uses",
    of_first=True,
)

_PLACED: Final = Part(
    "placed",
    """
    id uuid, run_id uuid, node_id text, definition_node_id text, node_type text,
    node_version_id uuid, status text, execution_order int, max_retries int, token bigint,
    revision bigint, retry_count int, first boolean, starts boolean, due_ms bigint, child_id uuid,
    output_data text, error_type text, error_message text, error_detail text
    """,
    """
    INSERT INTO node_executions
           (id, workflow_execution_id, node_id, definition_node_id, node_type, status,
            node_version_id, execution_order, max_retries, attempt_token, revision, retry_count,
            started_at, completed_at, due_at, child_execution_id, output_data, error_type,
            error_message, error_detail)
    SELECT given.id, given.run_id, given.node_id, given.definition_node_id, given.node_type,
           given.status, given.node_version_id, given.execution_order, given.max_retries,
           given.token, given.revision, given.retry_count,
           CASE WHEN given.starts THEN stamp.at END,
           CASE WHEN given.status IN ('completed', 'failed', 'skipped', 'cancelled', 'quarantined')
                THEN stamp.at END,
           stamp.at + given.due_ms * interval '1 millisecond', given.child_id,
           given.output_data::json, given.error_type, given.error_message,
           given.error_detail::json
      FROM given
     WHERE /*first*/ NOT given.first
    """,
    "placed",
    counted=False,
    data=("output_data",),
)

_COMPLETES: Final = Part(
    "completed",
    """
    id uuid, token bigint, output_data text, output_file_id uuid, revision bigint, cpu_us bigint,
    memory_peak_bytes bigint, stdout_tail text, stderr_tail text, container_id uuid,
    io_read_bytes bigint, io_write_bytes bigint
    """,
    """
    UPDATE node_executions AS node
       SET status = 'completed', started_at = COALESCE(node.started_at, stamp.at),
           completed_at = GREATEST(stamp.at, node.started_at),
           output_data = given.output_data::json, output_file_id = given.output_file_id,
           revision = given.revision, error_type = NULL, error_message = NULL,
           error_stack_trace = NULL, error_detail = NULL, due_at = NULL,
           container_id = given.container_id,
           stdout_tail = NULLIF(given.stdout_tail, ''), stderr_tail = NULLIF(given.stderr_tail, ''),
           resource_usage = jsonb_build_object(
               'cpu_us', given.cpu_us, 'memory_peak_bytes', given.memory_peak_bytes,
               'io_read_bytes', given.io_read_bytes, 'io_write_bytes', given.io_write_bytes)
      FROM given
     WHERE node.id = given.id AND node.attempt_token = given.token AND node.completed_at IS NULL
 RETURNING node.id
    """,
    "completes",
    data=("output_data",),
)

_CHANGES: Final = Part(
    "changed",
    """
    id uuid, token bigint, status text, new_token bigint, runner uuid, starts boolean,
    final boolean, due_ms bigint, retry_count int, delivery_count int, error_type text,
    error_message text, stack_trace text, revision bigint, cpu_us bigint,
    memory_peak_bytes bigint, stdout_tail text, stderr_tail text, container_id uuid,
    child_id uuid, error_detail text, io_read_bytes bigint, io_write_bytes bigint
    """,
    """
    UPDATE node_executions AS node
       SET status = given.status, attempt_token = given.new_token,
           runner_incarnation = given.runner,
           started_at = CASE WHEN given.starts THEN stamp.at ELSE node.started_at END,
           completed_at = CASE WHEN given.final THEN GREATEST(stamp.at, node.started_at) END,
           due_at = stamp.at + given.due_ms * interval '1 millisecond',
           retry_count = given.retry_count, delivery_count = given.delivery_count,
           error_type = given.error_type, error_message = given.error_message,
           error_stack_trace = given.stack_trace, error_detail = given.error_detail::json,
           revision = given.revision,
           stdout_tail = NULLIF(given.stdout_tail, ''), stderr_tail = NULLIF(given.stderr_tail, ''),
           container_id = given.container_id,
           child_execution_id = COALESCE(given.child_id, node.child_execution_id),
           resource_usage = jsonb_build_object(
               'cpu_us', given.cpu_us, 'memory_peak_bytes', given.memory_peak_bytes,
               'io_read_bytes', given.io_read_bytes, 'io_write_bytes', given.io_write_bytes)
      FROM given
     WHERE node.id = given.id AND node.attempt_token = given.token AND node.completed_at IS NULL
 RETURNING node.id
    """,
    "changes",
)

_ATTEMPTS: Final = Part(
    "attempted",
    """
    node_execution_id uuid, attempt int, token bigint, outcome text, error_type text,
    error_message text, stack_trace text, stdout_tail text, stderr_tail text, runner uuid,
    cpu_us bigint, memory_peak_bytes bigint, error_detail text, io_read_bytes bigint,
    io_write_bytes bigint, progress text
    """,
    """
    INSERT INTO node_attempts
           (node_execution_id, token, attempt, outcome, error_type, error_message, stack_trace,
            stdout_tail, stderr_tail, runner_incarnation, started_at, ended_at, resource_usage,
            error_detail, progress)
    SELECT given.node_execution_id, given.token, given.attempt, given.outcome, given.error_type,
           given.error_message, NULLIF(given.stack_trace, ''), NULLIF(given.stdout_tail, ''),
           NULLIF(given.stderr_tail, ''), given.runner, node.started_at,
           GREATEST(stamp.at, node.started_at),
           jsonb_build_object(
               'cpu_us', given.cpu_us, 'memory_peak_bytes', given.memory_peak_bytes,
               'io_read_bytes', given.io_read_bytes, 'io_write_bytes', given.io_write_bytes),
           given.error_detail::json, given.progress::json
      FROM given
      JOIN node_executions AS node ON node.id = given.node_execution_id
     ORDER BY given.node_execution_id, given.token
 RETURNING token
    """,
    "attempts",
    data=("progress",),
)

_ERRORS: Final = Part(
    "logged",
    """
    id uuid, run_id uuid, node_execution_id uuid, tenant_id uuid, container_id uuid,
    error_type text, error_message text, stack_trace text, stdout_tail text, stderr_tail text,
    error_detail text
    """,
    # The runner writes a sandbox's row by itself, perhaps later than this.
    """
    INSERT INTO error_logs
           (id, error_type, error_message, stack_trace, stdout_tail, stderr_tail,
            workflow_execution_id, node_execution_id, container_id, severity, tenant_id,
            created_at, error_detail)
    SELECT given.id, given.error_type, given.error_message,
           NULLIF(given.stack_trace, ''), NULLIF(given.stdout_tail, ''),
           NULLIF(given.stderr_tail, ''), given.run_id, given.node_execution_id,
           container.id, 'error', given.tenant_id, stamp.at, given.error_detail::json
      FROM given
      LEFT JOIN containers AS container ON container.id = given.container_id
     ORDER BY given.id
    """,
    "errors",
    counted=False,
)

# A node's reference to a file is only its word: the file counts where it is the run's tenant's.
_FLOWS: Final = Part(
    "flowed",
    """
    id uuid, run_id uuid, source_node_id text, target_node_id text, data_type text,
    data_size_bytes bigint, serialization_us bigint, transfer_us bigint, conversion text,
    file_id uuid
    """,
    """
    INSERT INTO node_data_flow
           (id, workflow_execution_id, source_node_id, target_node_id, data_type, data_size_bytes,
            serialization_time_ms, transfer_time_ms, serialization_time_us, transfer_time_us,
            conversion, file_id, created_at)
    SELECT given.id, given.run_id, given.source_node_id, given.target_node_id,
           CASE WHEN given.file_id IS NOT NULL AND carried.id IS NULL THEN 'json'
                ELSE COALESCE(carried.format, given.data_type) END,
           COALESCE(carried.file_size_bytes, given.data_size_bytes),
           given.serialization_us / 1000, given.transfer_us / 1000,
           given.serialization_us, given.transfer_us, given.conversion, carried.id, stamp.at
      FROM given
      LEFT JOIN files AS carried ON carried.id = given.file_id AND carried.tenant_id = (
           SELECT tenant_id FROM workflow_executions AS run WHERE run.id = given.run_id)
    """,
    "flows",
    counted=False,
    usual=tuple(FlowInsert._field_defaults.values()),
)

# Written when it comes, and once more when a node takes it.
_SIGNALS: Final = Part(
    "signalled",
    """
    id uuid, run_id uuid, tenant_id uuid, name text, payload text, sent_by uuid, node_id text
    """,
    """
    INSERT INTO execution_signals AS signal
           (id, workflow_execution_id, tenant_id, name, payload, sent_by, node_id, created_at)
    SELECT given.id, given.run_id, given.tenant_id, given.name, given.payload::json, given.sent_by,
           given.node_id, stamp.at
      FROM given
     ORDER BY given.id
        ON CONFLICT (id) DO UPDATE SET node_id = EXCLUDED.node_id
     WHERE signal.node_id IS NULL
       AND signal.workflow_execution_id = EXCLUDED.workflow_execution_id
 RETURNING id
    """,
    "signals",
    data=("payload",),
)

# Places under limits. Neither is counted: a limit that was deleted took its rows along. None can be
# another's by now, since a place is given to others only once its member is fenced.
_SLOT_USES: Final = Part(
    "used",
    "id uuid, run_id uuid, node_execution_id uuid",
    """
    UPDATE limit_slots AS slot
       SET execution_id = given.run_id, node_execution_id = given.node_execution_id
      FROM given
     WHERE slot.id = given.id AND slot.execution_id IS NULL
    """,
    "uses",
    counted=False,
)
_SLOT_FREES: Final = Part(
    "freed",
    "id uuid, limit_id uuid, key text",
    """
    DELETE FROM limit_slots AS slot USING given WHERE slot.id = given.id
    """,
    "frees",
    counted=False,
)

_RUN_CHANGES: Final = Part(
    "moved",
    """
    id uuid, status text, starts boolean, final boolean, cancels boolean, output_data text,
    error_type text, error_message text, stack_trace text, failed_node_id text, revision bigint,
    cpu_us bigint, memory_peak_bytes bigint, container_id uuid, io_read_bytes bigint,
    io_write_bytes bigint
    """,
    """
    UPDATE workflow_executions AS run
       SET status = given.status,
           started_at = CASE WHEN given.starts THEN stamp.at ELSE run.started_at END,
           completed_at = CASE WHEN given.final THEN GREATEST(stamp.at, run.started_at) END,
           cancel_requested_at = CASE WHEN given.cancels
               THEN COALESCE(run.cancel_requested_at, stamp.at) ELSE run.cancel_requested_at END,
           output_data = given.output_data::json, error_type = given.error_type,
           error_message = given.error_message, error_stack_trace = NULLIF(given.stack_trace, ''),
           failed_node_id = given.failed_node_id, revision = given.revision,
           container_id = COALESCE(given.container_id::text, run.container_id),
           resource_usage = jsonb_build_object(
               'cpu_us', given.cpu_us, 'memory_peak_bytes', given.memory_peak_bytes,
               'io_read_bytes', given.io_read_bytes, 'io_write_bytes', given.io_write_bytes)
      FROM given
     WHERE run.id = given.id AND run.completed_at IS NULL
 RETURNING run.id
    """,
    "run_changes",
    data=("output_data",),
)

# Each member adds to a row of its own: none waits for another's flush.
_CHARGES: Final = Part(
    "charged",
    "tenant_id uuid, cpu_us bigint, gb_us bigint, moved_bytes bigint",
    """
    INSERT INTO tenant_usage AS used (tenant_id, day, member_id, nodes, cpu_us, gb_us, moved_bytes)
    SELECT given.tenant_id, (stamp.at AT TIME ZONE 'UTC')::date, $1, count(*),
           sum(given.cpu_us), sum(given.gb_us), sum(given.moved_bytes)
      FROM given
     GROUP BY given.tenant_id
     ORDER BY given.tenant_id
        ON CONFLICT (tenant_id, day, member_id) DO UPDATE
       SET nodes = used.nodes + EXCLUDED.nodes, cpu_us = used.cpu_us + EXCLUDED.cpu_us,
           gb_us = used.gb_us + EXCLUDED.gb_us,
           moved_bytes = used.moved_bytes + EXCLUDED.moved_bytes
    """,
    "charges",
    counted=False,
)
# A run's row is changed once, whatever ended of it; it may be gone, where it was swept.
_SPENDS: Final = Part(
    "spent",
    """
    execution_id uuid, nodes bigint, cpu_us bigint, gb_us bigint, moved_bytes bigint, over boolean
    """,
    """
    UPDATE execution_budgets AS budget
       SET nodes_used = budget.nodes_used + each.nodes,
           cpu_us_used = budget.cpu_us_used + each.cpu_us,
           gb_us_used = budget.gb_us_used + each.gb_us,
           moved_bytes_used = budget.moved_bytes_used + each.moved_bytes,
           over = budget.over OR each.over
      FROM (SELECT execution_id, sum(nodes) AS nodes, sum(cpu_us) AS cpu_us, sum(gb_us) AS gb_us,
                   sum(moved_bytes) AS moved_bytes, bool_or(over) AS over
              FROM given GROUP BY execution_id) AS each
     WHERE budget.execution_id = each.execution_id
    """,
    "spends",
    counted=False,
)

_FRESH: Final = "given.pins_id NOT IN (SELECT pins_id FROM stale)"

# The order of tables is the order of locks: runs before nodes before what hangs on them.
PARTS: Final = (
    _FOLLOWS,
    _RUN_INSERTS,
    _RUN_CHANGES,
    _NODE_INSERTS,
    _PLACED,
    _COPIES,
    _COMPLETES,
    _CHANGES,
    _ATTEMPTS,
    _ERRORS,
    _FLOWS,
    _SIGNALS,
    _SLOT_USES,
    _SLOT_FREES,
    _FILE_USES,
    _CHARGES,
    _SPENDS,
)

_FENCE: Final[LiteralString] = """
    SELECT 1 FROM engine_members WHERE id = $1 AND epoch = $2 AND state = 'live' FOR UPDATE
"""
_GIVEN: Final = re.compile(r"(?<=FROM |SING )given(?![.])")  # where rows are read, not a column
_STAMP: Final = "GREATEST(now(), $3::timestamptz)"
# The bits of a statement's mask: its parts, what rows are asked besides, of which parts some row is
# unusual, whether each part has one row.
_ASKED: Final = tuple(column for part in PARTS for column, _ in part.asked)
_UNUSUAL: Final = tuple(part.name for part in PARTS if part.usual)
MASK_BITS: Final = len(PARTS) + len(_ASKED) + len(_UNUSUAL) + 1
_SINGLE: Final = 1 << MASK_BITS - 1


def _bit_asked(column: str) -> int:
    return 1 << len(PARTS) + _ASKED.index(column)


def _bit_unusual(part: Part) -> int:
    return 1 << len(PARTS) + len(_ASKED) + _UNUSUAL.index(part.name)


@dataclass(frozen=True, slots=True)
class Flush:
    """A statement and its arguments after the fence's three."""

    sql: str
    arguments: list[Any]


@cache
def statement(mask: int) -> str:
    """Put together the statement for the parts whose bits are set."""
    at = 4
    parts: list[str] = []
    counted: list[str] = []
    expected: list[str] = []
    follows, starts, single = mask & 1, mask & 2, mask & _SINGLE
    first = f"(NOT given.first OR given.run_id IN {_STARTED})" if starts else "NOT given.first"
    for bit, part in enumerate(PARTS):
        if not mask >> bit & 1:
            continue
        columns = [column.split() for column in part.columns.split(",")]
        sql = part.sql.replace("/*stale*/ true", _FRESH) if follows else part.sql
        if part.usual and not mask & _bit_unusual(part):
            columns, usual = columns[: -len(part.usual)], columns[-len(part.usual) :]
            for (name, kind), value in zip(usual, part.usual, strict=True):
                sql = re.sub(rf"\bgiven[.]{name}\b", f"{_literal(value)}::{kind}", sql)
        names = ", ".join(name for name, _ in columns)
        if single:
            values = ", ".join(f"${at + n}::{kind}" for n, (_, kind) in enumerate(columns))
            rows, count = f"(SELECT {values}) AS given({names})", "1"
        else:
            arrays = [f"${at + n}::{kind}[]" for n, (_, kind) in enumerate(columns)]
            rows = f"unnest({', '.join(arrays)}) AS given({names})"
            count = f"cardinality({arrays[0]})"
        for column, clause in part.asked:
            if mask & _bit_asked(column):
                sql = sql.replace(f"/*{column}*/", clause)
        sql = sql.replace("/*first*/ NOT given.first", first).replace("stamp.at", _STAMP)
        parts.append(f"{part.name} AS ({_GIVEN.sub(rows, sql)})")
        if part.counted:
            counted.append(part.name)
            if part.of_first:
                count = f"(SELECT count(*) FROM {rows} WHERE {first})"
            expected.append(count)
        at += len(columns)
    # The check stands first, and in it the fence, then the guarded parts: before anything is
    # written it is known who writes. Parts that nobody asks for a row are carried out after it.
    written = " UNION ALL ".join(f"SELECT 1 FROM {name}" for name in counted) or "SELECT 1 LIMIT 0"
    due = " + ".join(expected) or "0"
    names = " + ".join(counted) or "fence"
    ids = "ARRAY(SELECT id FROM started)" if starts else "NULL::uuid[]"
    return f"""
        WITH {", ".join(parts)}
        SELECT CASE WHEN count(fence.held) = 0 OR count(written.row) <> {due}
                    THEN engine_check(count(fence.held), {due}, count(written.row), '{names}') END,
               {_STAMP} AS at, {ids} AS started
          FROM ({_FENCE}) AS fence(held) LEFT JOIN ({written}) AS written(row) ON true
    """


def _literal(value: object) -> str:
    """Write one of the code's own values as SQL has it."""
    return "NULL" if value is None else f"'{value}'"


_fields: Final = attrgetter(*(part.rows for part in PARTS))


def prepare(batch: Sequence[Transition], seal: Seal | None = None) -> Flush:
    """Lay a batch out as values or arrays; `seal` gives what is stored in place of user data."""
    mask = 0
    tables: list[tuple[Part, list[tuple[Any, ...]]]] = []
    by_part = zip(*map(_fields, batch), strict=True)
    for bit, (part, found) in enumerate(zip(PARTS, by_part, strict=True)):
        if not any(found):
            continue
        given = [each for each in found if each]
        if part.once:  # by identity first: they may be ten thousand rows, in hundreds of starts
            shared = {id(each): each for each in given}.values()
            rows: Iterable[tuple[Any, ...]] = dict.fromkeys(chain.from_iterable(shared))
        elif isinstance(given[0], dict):
            rows = chain.from_iterable(each.values() for each in given)
        else:
            rows = given[0] if len(given) == 1 else chain.from_iterable(given)
        mask |= 1 << bit
        tables.append((part, list(rows)))
    single = all(len(rows) == 1 for _, rows in tables)
    if single:
        mask |= _SINGLE
    arguments: list[Any] = []
    for part, rows in tables:
        columns, bits = _columns(part, rows)
        mask |= bits
        if seal is not None and part.data:
            columns = _sealed(columns, part, seal)
        arguments.extend(chain.from_iterable(columns) if single else columns)
    return Flush(statement(mask), arguments)


def _columns(part: Part, rows: Sequence[tuple[Any, ...]]) -> tuple[Sequence[Sequence[Any]], int]:
    """Give the columns without those that are usual in all rows, or all; and what the mask has."""
    columns = list(zip(*rows, strict=True))
    if not part.usual:
        return columns, 0
    last = columns[-len(part.usual) :]
    if all(
        column.count(value) == len(rows) for column, value in zip(last, part.usual, strict=True)
    ):
        return columns[: -len(part.usual)], 0
    bits = _bit_unusual(part)
    for column, _ in part.asked:
        if any(getattr(row, column) is not None for row in rows):
            bits |= _bit_asked(column)
    return columns, bits


def _sealed(columns: Sequence[Sequence[Any]], part: Part, seal: Seal) -> Sequence[Sequence[Any]]:
    names = [column.split()[0] for column in part.columns.split(",")]
    return [
        [None if each is None else seal(each) for each in values] if name in part.data else values
        for name, values in zip(names, columns, strict=False)  # the last ones may be left out
    ]


def arguments(flush: Flush, member_id: UUID, epoch: int, last: datetime) -> list[Any]:
    """All arguments of a flush, for one attempt at it: fence, earliest stamp, arrays."""
    return [member_id, epoch, last, *flat(flush.arguments)]
