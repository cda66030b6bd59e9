"""Rows that refer to nodes: attempts, errors, data flow, signals, limit slots, files."""

from __future__ import annotations

from typing import Final

from services.orchestrator.domain.rows import FlowInsert
from services.orchestrator.storage.flush_parts.part import Asked, Part

ATTEMPTS: Final = Part(
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

ERRORS: Final = Part(
    "logged",
    """
    id uuid, run_id uuid, node_execution_id uuid, tenant_id uuid, container_id uuid,
    error_type text, error_message text, stack_trace text, stdout_tail text, stderr_tail text,
    error_detail text
    """,
    # The runner writes the sandbox's row itself, perhaps later than this.
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

# User code can return any file id, so a file is referred to only if it is the tenant's.
FLOWS: Final = Part(
    "flowed",
    """
    id uuid, run_id uuid, source_node_id text, target_node_id text, data_size_bytes bigint,
    serialization_us bigint, transfer_us bigint, data_type text, conversion text, file_id uuid
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
      /*file_id*/
    """,
    "flows",
    counted=False,
    usual=tuple(FlowInsert._field_defaults.values()),
    asked=(
        Asked(
            "file_id",
            """
            LEFT JOIN files AS carried ON carried.id = given.file_id AND carried.tenant_id = (
            SELECT tenant_id FROM workflow_executions AS run WHERE run.id = given.run_id)
            """,
            """
            CROSS JOIN (SELECT NULL::uuid AS id, NULL::text AS format,
                               NULL::bigint AS file_size_bytes) AS carried
            """,
        ),
    ),
)

# Written when the signal arrives, and again when a node takes it.
SIGNALS: Final = Part(
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

# Slots of limits. Not guarded: a deleted limit takes its slots along. No slot can belong to another
# member by now, since slots are freed for others only after their member was fenced.
SLOT_USES: Final = Part(
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

SLOT_FREES: Final = Part(
    "freed",
    "id uuid, limit_id uuid, key text",
    """
    DELETE FROM limit_slots AS slot USING given WHERE slot.id = given.id
    """,
    "frees",
    counted=False,
)

# Records which runs use a file, so that retention keeps it. A file that is gone fails the flush.
FILE_USES: Final = Part(
    "used_files",
    "id uuid, run_id uuid, file_id uuid, first boolean",
    """
    INSERT INTO file_uses (node_execution_id, file_id, tenant_id)
    SELECT given.id, given.file_id, file.tenant_id
      FROM given
      JOIN files AS file ON file.id = given.file_id
     WHERE /*first*/ true
     ORDER BY given.file_id, given.id
 RETURNING node_execution_id
    """,
    "file_uses",
    of_first=True,
)
