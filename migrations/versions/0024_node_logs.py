"""What nodes print and log: lines in the order in which they were written, and how many there are.

One row of `execution_logs` counts the lines of one run. Whoever adds lines locks it until its commit,
so lines are numbered without gaps and become visible in their order: a reader that has seen line n
misses none before it, however many runners write.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0024"
down_revision = "0023"

_TENANT = "tenant_id = (SELECT current_tenant_id())"
# A run that is being purged is gone to callers, and its lines with it: the run's own policy says so.
_RUN = """EXISTS (SELECT 1 FROM workflow_executions run WHERE run.id = {}.workflow_execution_id)"""

_TABLES = (
    """
    CREATE TABLE execution_logs (
        workflow_execution_id uuid PRIMARY KEY
            REFERENCES workflow_executions(id) ON DELETE CASCADE,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id(),
        line_count bigint NOT NULL
            CONSTRAINT execution_logs_line_count_check CHECK (line_count >= 0),
        size_bytes bigint NOT NULL
            CONSTRAINT execution_logs_size_bytes_check CHECK (size_bytes >= 0),
        left_out_count bigint NOT NULL DEFAULT 0
            CONSTRAINT execution_logs_left_out_count_check CHECK (left_out_count >= 0),
        updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
    ) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01,
            autovacuum_vacuum_threshold = 200)
    """,
    # The run's key alone: it goes before its nodes do, and a second key would double what a line costs.
    """
    CREATE TABLE node_logs (
        workflow_execution_id uuid NOT NULL
            REFERENCES execution_logs(workflow_execution_id) ON DELETE CASCADE,
        sequence bigint NOT NULL CONSTRAINT node_logs_sequence_check CHECK (sequence > 0),
        tenant_id uuid NOT NULL DEFAULT current_tenant_id(),
        node_execution_id uuid NOT NULL,
        node_id varchar(255) NOT NULL,
        attempt integer NOT NULL CONSTRAINT node_logs_attempt_check CHECK (attempt >= 1),
        stream text NOT NULL
            CONSTRAINT node_logs_stream_check CHECK (stream IN ('stdout', 'stderr', 'log')),
        level smallint CONSTRAINT node_logs_level_check CHECK (level BETWEEN 0 AND 100),
        logger varchar(255),
        line text NOT NULL CONSTRAINT node_logs_line_check CHECK (octet_length(line) <= 32768),
        continued boolean NOT NULL DEFAULT false,
        left_out_bytes bigint NOT NULL DEFAULT 0
            CONSTRAINT node_logs_left_out_bytes_check CHECK (left_out_bytes >= 0),
        logged_at timestamptz NOT NULL,
        PRIMARY KEY (workflow_execution_id, sequence),
        CONSTRAINT node_logs_level_of_record_check CHECK ((stream = 'log') = (level IS NOT NULL))
    ) WITH (autovacuum_vacuum_insert_scale_factor = 0.05)
    """,
    "CREATE INDEX execution_logs_updated_at_idx ON execution_logs (updated_at)",
    "CREATE INDEX execution_logs_tenant_id_idx ON execution_logs (tenant_id)",
)

_POLICIES = (
    *(
        statement
        for table in ("execution_logs", "node_logs")
        for statement in (
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
            f"""
            CREATE POLICY {table}_api_select ON {table} FOR SELECT TO qflow_api
             USING ({_TENANT} AND {_RUN.format(table)})
            """,
            f"CREATE POLICY {table}_engine_select ON {table} FOR SELECT TO qflow_engine USING (true)",
            f"""
            CREATE POLICY {table}_engine_insert ON {table} FOR INSERT TO qflow_engine
              WITH CHECK (true)
            """,
            f"CREATE POLICY {table}_maint_select ON {table} FOR SELECT TO qflow_maint USING (true)",
        )
    ),
    """
    CREATE POLICY execution_logs_engine_update ON execution_logs FOR UPDATE TO qflow_engine
     USING (true) WITH CHECK (true)
    """,
    # What is a day old, the least that the setting may say, or belongs to a run that is purged.
    """
    CREATE POLICY node_logs_maint_delete ON node_logs FOR DELETE TO qflow_maint
     USING (logged_at < now() - interval '1 day'
            OR EXISTS (SELECT 1 FROM workflow_executions run
                        WHERE run.id = node_logs.workflow_execution_id
                          AND run.purge_started_at IS NOT NULL))
    """,
    """
    CREATE POLICY execution_logs_maint_delete ON execution_logs FOR DELETE TO qflow_maint
     USING (updated_at < now() - interval '1 day')
    """,
)

_GRANTS = (
    "GRANT SELECT ON execution_logs, node_logs TO qflow_runner",
    "GRANT SELECT, INSERT ON execution_logs, node_logs TO qflow_runner_engine",
    """
    GRANT UPDATE (line_count, size_bytes, left_out_count, updated_at)
       ON execution_logs TO qflow_runner_engine
    """,
    "GRANT SELECT, DELETE ON execution_logs, node_logs TO qflow_telemetry_maint",
)

# The lines first, at most a batch; the count once none is left. A run that goes on keeps its own.
_CLEANUP = """
    CREATE FUNCTION cleanup_old_node_logs(
        keep interval DEFAULT '30 days', batch integer DEFAULT 5000
    ) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        victims uuid[];
        removed bigint := 0;
        gone bigint;
    BEGIN
        victims := ARRAY(
            SELECT log.workflow_execution_id FROM public.execution_logs log
              JOIN public.workflow_executions run ON run.id = log.workflow_execution_id
             WHERE log.updated_at < clock_timestamp() - keep AND run.completed_at IS NOT NULL
             ORDER BY log.updated_at LIMIT batch);
        DELETE FROM public.node_logs WHERE (workflow_execution_id, sequence) IN (
            SELECT workflow_execution_id, sequence FROM public.node_logs
             WHERE workflow_execution_id = ANY (victims) LIMIT batch);
        GET DIAGNOSTICS removed = ROW_COUNT;
        IF removed < batch THEN
            DELETE FROM public.execution_logs WHERE workflow_execution_id = ANY (victims);
            GET DIAGNOSTICS gone = ROW_COUNT;
            removed := removed + gone;
        END IF;
        RETURN removed;
    END $$
"""

# The lines of a run that is purged go with its other leaves, so many at a time.
_LOGS = """        DELETE FROM public.node_logs WHERE (workflow_execution_id, sequence) IN (
            SELECT workflow_execution_id, sequence FROM public.node_logs
             WHERE workflow_execution_id = ANY (victims) LIMIT leaves - removed);
        GET DIAGNOSTICS gone = ROW_COUNT;
        removed := removed + gone;
"""
_EXECUTIONS = """
    CREATE OR REPLACE FUNCTION cleanup_old_executions(
        keep interval DEFAULT '30 days', batch integer DEFAULT 1000, leaves integer DEFAULT 5000
    ) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        victims uuid[];
        held uuid[];
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
        held := ARRAY(
            SELECT id FROM public.files
             WHERE workflow_execution_id = ANY (victims) ORDER BY id LIMIT leaves FOR UPDATE);
        WITH heirs AS (
            SELECT DISTINCT ON (used.file_id)
                   used.file_id, used.node_execution_id, node.workflow_execution_id
              FROM public.file_uses AS used
              JOIN public.node_executions AS node ON node.id = used.node_execution_id
              JOIN public.workflow_executions AS run
                ON run.id = node.workflow_execution_id AND run.purge_started_at IS NULL
             WHERE used.file_id = ANY (held)
             ORDER BY used.file_id, used.node_execution_id
        ), taken AS (
            DELETE FROM public.file_uses AS used USING heirs
             WHERE used.node_execution_id = heirs.node_execution_id
            RETURNING heirs.*
        )
        UPDATE public.files
           SET workflow_execution_id = taken.workflow_execution_id,
               node_execution_id = taken.node_execution_id
          FROM taken WHERE files.id = taken.file_id;
        GET DIAGNOSTICS gone = ROW_COUNT;
        removed := removed + gone;
        DELETE FROM public.files
         WHERE id = ANY (held) AND workflow_execution_id = ANY (victims);
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
@LOGS@        DELETE FROM public.node_data_flow WHERE id IN (
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


def upgrade() -> None:
    run(_TABLES)
    run(_POLICIES)
    run(_GRANTS)
    run(
        (
            _CLEANUP,
            "REVOKE ALL ON FUNCTION cleanup_old_node_logs(interval, integer) FROM PUBLIC",
            "GRANT EXECUTE ON FUNCTION cleanup_old_node_logs(interval, integer) TO qflow_maint",
            _EXECUTIONS.replace("@LOGS@", _LOGS),
        )
    )


def downgrade() -> None:
    run(
        (
            _EXECUTIONS.replace("@LOGS@", ""),
            "DROP FUNCTION cleanup_old_node_logs(interval, integer)",
            "DROP TABLE node_logs, execution_logs",
        )
    )
