"""The seed's three cleanup functions, made right, and the ones it forgot.

Mends S3, S4, S20-S28. One call is one batch, which the caller commits; it returns the number of rows
removed (the seed's `void` cannot say that nothing was), and is called again until that is 0. They run
as their caller: only the maintenance login sees and may delete every tenant's expired rows.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0006"
down_revision = "0005"

_EXECUTIONS = """
    CREATE FUNCTION cleanup_old_executions(
        keep interval DEFAULT '30 days', batch integer DEFAULT 1000, leaves integer DEFAULT 5000
    ) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        victims uuid[];
        removed bigint := 0;
        gone bigint;
    BEGIN
        -- Hidden first: from here on nobody reads half an execution.
        UPDATE public.workflow_executions SET purge_started_at = clock_timestamp()
         WHERE id IN (
            SELECT id FROM public.workflow_executions
             WHERE completed_at IS NOT NULL
               AND status IN ('completed', 'failed', 'cancelled')
               AND completed_at < clock_timestamp() - keep
               AND purge_started_at IS NULL
             ORDER BY completed_at, id LIMIT batch
               FOR UPDATE SKIP LOCKED);

        victims := ARRAY(
            SELECT id FROM public.workflow_executions
             WHERE purge_started_at IS NOT NULL
             ORDER BY purge_started_at, id LIMIT batch
               FOR UPDATE SKIP LOCKED);
        IF cardinality(victims) = 0 THEN
            RETURN 0;
        END IF;

        -- Leaves go at most so many a transaction, in one fixed order, the parents last.
        DELETE FROM public.files WHERE id IN (
            SELECT id FROM public.files
             WHERE workflow_execution_id = ANY (victims) LIMIT leaves);
        GET DIAGNOSTICS gone = ROW_COUNT;
        removed := removed + gone;
        DELETE FROM public.performance_metrics WHERE id IN (
            SELECT id FROM public.performance_metrics
             WHERE workflow_execution_id = ANY (victims) LIMIT leaves - removed);
        GET DIAGNOSTICS gone = ROW_COUNT;
        removed := removed + gone;
        DELETE FROM public.error_logs WHERE id IN (
            SELECT id FROM public.error_logs
             WHERE workflow_execution_id = ANY (victims) LIMIT leaves - removed);
        GET DIAGNOSTICS gone = ROW_COUNT;
        removed := removed + gone;
        DELETE FROM public.containers WHERE id IN (
            SELECT id FROM public.containers
             WHERE workflow_execution_id = ANY (victims) LIMIT leaves - removed);
        GET DIAGNOSTICS gone = ROW_COUNT;
        removed := removed + gone;
        DELETE FROM public.node_data_flow WHERE id IN (
            SELECT id FROM public.node_data_flow
             WHERE workflow_execution_id = ANY (victims) LIMIT leaves - removed);
        GET DIAGNOSTICS gone = ROW_COUNT;
        removed := removed + gone;
        DELETE FROM public.node_executions WHERE id IN (
            SELECT id FROM public.node_executions
             WHERE workflow_execution_id = ANY (victims) LIMIT leaves - removed);
        GET DIAGNOSTICS gone = ROW_COUNT;
        removed := removed + gone;

        IF removed < leaves THEN
            DELETE FROM public.workflow_executions WHERE id = ANY (victims);
            GET DIAGNOSTICS gone = ROW_COUNT;
            removed := removed + gone;
        END IF;
        RETURN removed;
    END $$
"""

# The bytes follow through the outbox. Kept while an execution that is not over may still read it.
_TEMPORARY_FILES = """
    CREATE FUNCTION cleanup_temporary_files(batch integer DEFAULT 1000) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        removed bigint;
    BEGIN
        DELETE FROM public.files WHERE is_temporary AND id IN (
            SELECT f.id FROM public.files f
              LEFT JOIN public.workflow_executions e ON e.id = f.workflow_execution_id
             WHERE f.is_temporary AND f.expires_at < clock_timestamp()
               AND (e.id IS NULL OR e.completed_at IS NOT NULL)
             ORDER BY f.expires_at, f.id LIMIT batch);
        GET DIAGNOSTICS removed = ROW_COUNT;
        RETURN removed;
    END $$
"""


# Kept while an execution runs by them, or a start may still take them: that ends when a node which
# floats has moved on, since versions never go back. The executions are found by their workflow.
_PINS = """
    CREATE FUNCTION cleanup_unused_pins(
        keep interval DEFAULT '30 days', batch integer DEFAULT 1000
    ) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        removed bigint;
    BEGIN
        DELETE FROM public.execution_pins WHERE id IN (
            SELECT p.id FROM public.execution_pins p
             WHERE p.created_at < clock_timestamp() - keep
               AND EXISTS (
                    SELECT FROM public.workflow_versions w
                     CROSS JOIN jsonb_array_elements(w.nodes) AS place
                      JOIN public.python_node_versions taken
                        ON taken.id = (p.pins ->> (place ->> 'id'))::uuid
                      JOIN public.python_node_versions later
                        ON later.node_id = taken.node_id AND later.version > taken.version
                     WHERE w.workflow_id = p.workflow_id AND w.version = p.workflow_version
                       AND COALESCE((place ->> 'version')::integer, 0) = 0
                       AND later.created_at < clock_timestamp() - keep)
               AND NOT EXISTS (
                    SELECT FROM public.workflow_executions e
                     WHERE e.workflow_id = p.workflow_id AND e.pins_id = p.id)
             LIMIT batch);
        GET DIAGNOSTICS removed = ROW_COUNT;
        RETURN removed;
    END $$
"""

# The highest epoch stays, whoever had it: the next is counted from it.
_DEAD_ENGINE = """(state IN ('fenced', 'gone') AND updated_at < clock_timestamp() - keep
                   OR state = 'live' AND expires_at < clock_timestamp() - keep)
               AND epoch < (SELECT max(epoch) FROM public.engine_members)
               AND NOT EXISTS (
                    SELECT FROM public.engine_shards WHERE member_id = engine_members.id)
             ORDER BY updated_at, id"""
# A runner that rests writes nothing, so that an idle row is old says nothing. The next runner of
# its home closes by this row what it left open.
_DEAD_RUNNER = """(state IN ('fenced', 'gone') AND updated_at < clock_timestamp() - keep
                   OR state = 'live' AND expires_at < clock_timestamp() - keep)
               AND NOT EXISTS (
                    SELECT FROM public.containers
                     WHERE runner_incarnation = incarnation
                       AND status IN ('creating', 'running', 'removing'))
             ORDER BY updated_at, incarnation"""


def _cleanup(name: str, *, table: str, key: str, due: str, keep: str | None) -> str:
    """One batch of rows that are due, oldest first."""
    window = f"keep interval DEFAULT '{keep}', " if keep else ""
    return f"""
    CREATE FUNCTION {name}({window}batch integer DEFAULT 5000) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        removed bigint;
    BEGIN
        DELETE FROM public.{table} WHERE ({key}) IN (
            SELECT {key} FROM public.{table} WHERE {due} LIMIT batch);
        GET DIAGNOSTICS removed = ROW_COUNT;
        RETURN removed;
    END $$
    """


_OTHERS = (
    _cleanup(
        "cleanup_old_metrics",
        table="performance_metrics",
        key="id",
        due="recorded_at < clock_timestamp() - keep ORDER BY recorded_at, id",
        keep="90 days",
    ),
    _cleanup(
        "cleanup_old_error_logs",
        table="error_logs",
        key="id",
        due="created_at < clock_timestamp() - keep ORDER BY created_at, id",
        keep="90 days",
    ),
    _cleanup(
        "cleanup_old_system_health",
        table="system_health",
        key="id",
        due="recorded_at < clock_timestamp() - keep ORDER BY recorded_at, id",
        keep="30 days",
    ),
    _cleanup(
        "cleanup_old_file_access_logs",
        table="file_access_logs",
        key="id",
        due="accessed_at < clock_timestamp() - keep ORDER BY accessed_at, id",
        keep="90 days",
    ),
    _cleanup(
        "cleanup_old_containers",
        table="containers",
        key="id",
        due="stopped_at < clock_timestamp() - keep"
        " AND status IN ('stopped', 'error', 'removed') ORDER BY stopped_at, id",
        keep="30 days",
    ),
    _cleanup(
        "cleanup_expired_sessions",
        table="user_sessions",
        key="id",
        due="expires_at < clock_timestamp() ORDER BY expires_at, id",
        keep=None,
    ),
    _cleanup(
        "cleanup_expired_idempotency_keys",
        table="idempotency_keys",
        key="tenant_id, caller_id, method, request_id",
        due="expires_at < clock_timestamp()"
        " ORDER BY expires_at, tenant_id, caller_id, method, request_id",
        keep=None,
    ),
    _cleanup(
        "cleanup_sent_outbox_events",
        table="outbox_events",
        key="id",
        due="sent_at < clock_timestamp() - keep ORDER BY sent_at, id",
        keep="7 days",
    ),
    _cleanup(
        "cleanup_dead_engine_members",
        table="engine_members",
        key="id",
        due=_DEAD_ENGINE,
        keep="7 days",
    ),
    _cleanup(
        "cleanup_dead_runner_members",
        table="runner_members",
        key="incarnation",
        due=_DEAD_RUNNER,
        keep="7 days",
    ),
)

_NAMES = (
    "cleanup_old_executions(interval, integer, integer)",
    "cleanup_temporary_files(integer)",
    "cleanup_old_metrics(interval, integer)",
    "cleanup_old_error_logs(interval, integer)",
    "cleanup_old_system_health(interval, integer)",
    "cleanup_old_file_access_logs(interval, integer)",
    "cleanup_old_containers(interval, integer)",
    "cleanup_expired_sessions(integer)",
    "cleanup_expired_idempotency_keys(integer)",
    "cleanup_sent_outbox_events(interval, integer)",
    "cleanup_unused_pins(interval, integer)",
    "cleanup_dead_engine_members(interval, integer)",
    "cleanup_dead_runner_members(interval, integer)",
)


def upgrade() -> None:
    run((_EXECUTIONS, _TEMPORARY_FILES, _PINS, *_OTHERS))


def downgrade() -> None:
    run(f"DROP FUNCTION {name}" for name in _NAMES)
