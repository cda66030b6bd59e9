"""Node executions: that begin, are copied from another run, wait, and end."""

from __future__ import annotations

from typing import Final

from services.orchestrator.domain.rows import NodeComplete
from services.orchestrator.storage.flush_parts.part import Part

# The runs inserted by this flush, on which their first nodes depend.
STARTED: Final = "(SELECT id FROM started)"

NODE_INSERTS: Final = Part(
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
     WHERE /*first*/ true
    """,
    "node_inserts",
    counted=False,  # a duplicate key raises anyway; rows of refused runs are left out
)

# Results that a rerun takes over: copied from final rows of the other run, which never change; the
# copies end when the run begins.
COPIES: Final = Part(
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
     WHERE /*first*/ true
     ORDER BY given.id
 RETURNING id
    """,
    "copies",
    of_first=True,
)

PLACED: Final = Part(
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
           clock.at + given.due_ms * interval '1 millisecond', given.child_id,
           given.output_data::json, given.error_type, given.error_message,
           given.error_detail::json
      FROM given
     WHERE /*first*/ true
    """,
    "placed",
    counted=False,
    data=("output_data",),
)

COMPLETES: Final = Part(
    "completed",
    """
    id uuid, token bigint, output_data text, revision bigint, cpu_us bigint,
    memory_peak_bytes bigint, container_id uuid, output_file_id uuid, stdout_tail text,
    stderr_tail text, io_read_bytes bigint, io_write_bytes bigint
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
    usual=tuple(NodeComplete._field_defaults.values()),
)

CHANGES: Final = Part(
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
           due_at = clock.at + given.due_ms * interval '1 millisecond',
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
