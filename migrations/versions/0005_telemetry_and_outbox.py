"""Metrics, errors, health; idempotency keys, outbox, and telemetry's watermarks.

Mends S11, S20, S21, S25, S29, S35, S37; adds S59 and S60.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0005"
down_revision = "0004"


# A run's or node's leaves go with it; a sandbox may be gone before its numbers are.
def _subject(table: str) -> tuple[str, ...]:
    return (
        f"CREATE INDEX {table}_node_execution_id_idx ON {table} (node_execution_id)",
        f"CREATE INDEX {table}_container_id_idx ON {table} (container_id)",
    )


_TELEMETRY = (
    """
    CREATE TABLE performance_metrics (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        metric_name varchar(100) NOT NULL,
        metric_value numeric(30, 6) NOT NULL
            CONSTRAINT performance_metrics_metric_value_check CHECK (metric_value <> 'NaN'),
        metric_unit varchar(20),
        workflow_execution_id uuid REFERENCES workflow_executions(id) ON DELETE CASCADE,
        node_execution_id uuid REFERENCES node_executions(id) ON DELETE CASCADE,
        container_id uuid REFERENCES containers(id) ON DELETE SET NULL,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id(),
        recorded_at timestamptz NOT NULL DEFAULT now()
    ) WITH (autovacuum_vacuum_insert_scale_factor = 0.05)
    """,
    "CREATE INDEX idx_performance_metrics_recorded_at ON performance_metrics (recorded_at, id)",
    """
    CREATE INDEX performance_metrics_execution_idx
        ON performance_metrics (workflow_execution_id, metric_name, recorded_at)
    """,
    """
    CREATE INDEX performance_metrics_tenant_id_recorded_at_idx
        ON performance_metrics (tenant_id, recorded_at DESC, id DESC)
    """,
    *_subject("performance_metrics"),
    """
    CREATE TABLE error_logs (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        error_type varchar(100) NOT NULL,
        error_message text NOT NULL,
        stack_trace text,
        workflow_execution_id uuid REFERENCES workflow_executions(id) ON DELETE CASCADE,
        node_execution_id uuid REFERENCES node_executions(id) ON DELETE CASCADE,
        container_id uuid REFERENCES containers(id) ON DELETE SET NULL,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id(),
        severity varchar(20) NOT NULL DEFAULT 'error'
            CONSTRAINT error_logs_severity_check
            CHECK (severity IN ('info', 'warning', 'error', 'critical')),
        stdout_tail text,
        stderr_tail text,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX idx_error_logs_created_at ON error_logs (created_at, id)",
    # Most rows are plain errors; a list by severity asks for the others.
    """
    CREATE INDEX idx_error_logs_severity ON error_logs (severity, created_at DESC)
     WHERE severity <> 'error'
    """,
    "CREATE INDEX error_logs_execution_idx ON error_logs (workflow_execution_id, created_at)",
    "CREATE INDEX error_logs_tenant_id_created_at_idx ON error_logs (tenant_id, created_at DESC, id DESC)",
    *_subject("error_logs"),
    """
    CREATE TABLE system_health (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        cpu_usage_percent decimal(5, 2)
            CONSTRAINT system_health_cpu_check CHECK (cpu_usage_percent BETWEEN 0 AND 100),
        memory_usage_percent decimal(5, 2)
            CONSTRAINT system_health_memory_check CHECK (memory_usage_percent BETWEEN 0 AND 100),
        disk_usage_percent decimal(5, 2)
            CONSTRAINT system_health_disk_check CHECK (disk_usage_percent BETWEEN 0 AND 100),
        active_containers integer
            CONSTRAINT system_health_containers_check CHECK (active_containers >= 0),
        active_workflows integer
            CONSTRAINT system_health_workflows_check CHECK (active_workflows >= 0),
        node_name text,
        recorded_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX system_health_recorded_at_idx ON system_health (recorded_at DESC, id DESC)",
    # How far telemetry has read the finished executions, one row per reader.
    """
    CREATE TABLE telemetry_watermarks (
        name text PRIMARY KEY,
        completed_at timestamptz NOT NULL,
        execution_id uuid,
        updated_at timestamptz NOT NULL DEFAULT now()
    )
    """,
)

_SHARED = (
    """
    CREATE TABLE idempotency_keys (
        tenant_id uuid NOT NULL DEFAULT current_tenant_id(),
        caller_id uuid NOT NULL DEFAULT current_user_id(),
        method text NOT NULL,
        request_id uuid NOT NULL,
        request_digest text NOT NULL,
        response bytea,
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz NOT NULL DEFAULT now() + interval '7 days',
        PRIMARY KEY (tenant_id, caller_id, method, request_id)
    )
    """,
    "CREATE INDEX idempotency_keys_expires_at_idx ON idempotency_keys (expires_at)",
    # What must leave PostgreSQL after a commit, at least once, keyed by the event's id.
    """
    CREATE TABLE outbox_events (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        kind text NOT NULL,
        payload jsonb NOT NULL,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id(),
        created_at timestamptz NOT NULL DEFAULT now(),
        sent_at timestamptz
    ) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 200)
    """,
    "CREATE INDEX outbox_events_unsent_idx ON outbox_events (kind, created_at, id) WHERE sent_at IS NULL",
    "CREATE INDEX outbox_events_sent_idx ON outbox_events (sent_at) WHERE sent_at IS NOT NULL",
    # S20, S26: the row goes in the transaction, the bytes after its commit. Definer, because the
    # delete may be the runner's, retention's or a cascade's, and nobody inserts such an event by hand.
    """
    CREATE FUNCTION queue_file_bytes() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
    BEGIN
        INSERT INTO public.outbox_events (kind, payload, tenant_id)
        VALUES ('file_deleted',
                jsonb_build_object('file_id', OLD.id, 'file_size_bytes', OLD.file_size_bytes),
                OLD.tenant_id);
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER files_queue_bytes AFTER DELETE ON files
    FOR EACH ROW EXECUTE FUNCTION queue_file_bytes()
    """,
)


def upgrade() -> None:
    run(_TELEMETRY)
    run(_SHARED)


def downgrade() -> None:
    run(
        (
            "DROP TRIGGER files_queue_bytes ON files",
            "DROP FUNCTION queue_file_bytes()",
            "DROP TABLE outbox_events, idempotency_keys",
            "DROP TABLE telemetry_watermarks, system_health, error_logs, performance_metrics",
        )
    )
