"""Executions: checks of what they were started from, inserts and changes."""

from __future__ import annotations

from typing import Final

from services.orchestrator.domain.rows import RunChange, RunInsert
from services.orchestrator.storage.flush_parts.part import Asked, Part

# Pins of plans that use a node's current version, which has changed or is not readable any more.
FOLLOWS: Final = Part(
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

FRESH: Final = "given.pins_id NOT IN (SELECT pins_id FROM stale)"

# A run is not inserted, nor are its nodes, if its plan is out of date: its workflow is gone or has
# another current version, its alias has another version, its plan is stale, or the node of a single
# run is gone. Neither is one whose business key is held by an open run (a unique index) or excluded
# by earlier runs; since these are seen as of the start of the statement, a run that ends in the
# same flush still counts as open. Nor one that would compensate what another run has already taken
# over (a unique index). The statement returns which runs were inserted.
RUN_INSERTS: Final = Part(
    "started",
    """
    id uuid, workflow_id uuid, tenant_id uuid, created_by uuid, workflow_version int,
    current_version int, pins_id uuid, shard smallint, status text, input_data text,
    request_id uuid, request_digest text, python_version text, timeout_ms bigint, revision bigint,
    alias text, business_key text, key_reuse text, labels text, priority smallint,
    start_at timestamptz, parent_execution_id uuid, relation text, node_version_id uuid,
    parent_node_id text, ignores_cache boolean, traceparent text,
    undoes_parent boolean, budget text
    """,
    """
    INSERT INTO workflow_executions
           (id, workflow_id, tenant_id, created_by, workflow_version, pins_id, shard, status,
            input_data, request_id, request_digest, python_version, revision, engine_format,
            created_at, queued_at, started_at, deadline_at, business_key, labels, priority,
            start_at, parent_execution_id, relation, node_version_id, parent_node_id,
            ignores_cache, traceparent, undoes_parent, budget)
    SELECT given.id, given.workflow_id, given.tenant_id, given.created_by, given.workflow_version,
           given.pins_id, given.shard, given.status, given.input_data::json, given.request_id,
           given.request_digest, given.python_version, given.revision, 1,
           clock.at, GREATEST(clock.at, given.start_at),
           CASE WHEN given.status = 'running' THEN clock.at END,
           GREATEST(clock.at, given.start_at) + given.timeout_ms * interval '1 millisecond',
           given.business_key, given.labels::jsonb, given.priority, given.start_at,
           given.parent_execution_id, given.relation, given.node_version_id, given.parent_node_id,
           NULLIF(given.ignores_cache, false), given.traceparent,
           NULLIF(given.undoes_parent, false), given.budget::jsonb
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
        Asked(
            "node_version_id",
            """
            OR EXISTS (
            SELECT 1 FROM python_node_versions AS version
              JOIN python_nodes AS node ON node.id = version.node_id
             WHERE version.id = given.node_version_id AND node.deleted_at IS NULL
               AND (node.tenant_id = given.tenant_id OR node.is_public OR node.is_template))
            """,
        ),
        Asked(
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
        Asked(
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

RUN_CHANGES: Final = Part(
    "moved",
    """
    id uuid, status text, starts boolean, final boolean, output_data text, revision bigint,
    cpu_us bigint, memory_peak_bytes bigint, container_id uuid, cancels boolean, error_type text,
    error_message text, stack_trace text, failed_node_id text, io_read_bytes bigint,
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
    usual=tuple(RunChange._field_defaults.values()),
)
