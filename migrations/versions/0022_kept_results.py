"""Results that other runs keep or are given again: who uses whose file, and what is cached.

A kept file is not copied: the run that keeps it has a row in `file_uses`, and retention hands the file on to
such a run instead of deleting it with the one that made it. A cached result is a pointer to the node row that
gave it, found by the digest of what it was made of, within one tenant.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0022"
down_revision = "0021"

_TABLES = (
    """
    CREATE TABLE file_uses (
        node_execution_id uuid PRIMARY KEY REFERENCES node_executions(id) ON DELETE CASCADE,
        file_id uuid NOT NULL REFERENCES files(id) ON DELETE CASCADE,
        tenant_id uuid NOT NULL REFERENCES tenants(id)
    )
    """,
    "CREATE INDEX file_uses_file_id_idx ON file_uses (file_id)",
    "CREATE INDEX file_uses_tenant_id_idx ON file_uses (tenant_id)",
    """
    CREATE TABLE cached_results (
        tenant_id uuid NOT NULL REFERENCES tenants(id),
        digest text NOT NULL
            CONSTRAINT cached_results_digest_check CHECK (digest ~ '^[0-9a-f]{64}$'),
        node_version_id uuid NOT NULL REFERENCES python_node_versions(id) ON DELETE CASCADE,
        node_execution_id uuid NOT NULL REFERENCES node_executions(id) ON DELETE CASCADE,
        file_sha256 text
            CONSTRAINT cached_results_file_sha256_check CHECK (file_sha256 ~ '^[0-9a-f]{64}$'),
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        expires_at timestamptz NOT NULL,
        PRIMARY KEY (tenant_id, digest)
    )
    """,
    "CREATE INDEX cached_results_node_version_id_idx ON cached_results (node_version_id)",
    "CREATE INDEX cached_results_node_execution_id_idx ON cached_results (node_execution_id)",
    "CREATE INDEX cached_results_expires_at_idx ON cached_results (expires_at)",
    # Whether the result in the row was taken from the cache; unset where it was not.
    "ALTER TABLE node_executions ADD COLUMN cache_hit boolean",
    # Whether nothing of the run may be taken from the cache; unset where it may.
    "ALTER TABLE workflow_executions ADD COLUMN ignores_cache boolean",
    *(
        f"ALTER TABLE {table} {what} ROW LEVEL SECURITY"
        for table in ("file_uses", "cached_results")
        for what in ("ENABLE", "FORCE")
    ),
)

_PURGED = """EXISTS (SELECT 1 FROM workflow_executions parent
    WHERE parent.id = files.workflow_execution_id AND parent.purge_started_at IS NOT NULL)"""
_LIVES = _PURGED.replace("IS NOT NULL", "IS NULL")
_HEIRS_USE = """EXISTS (SELECT 1 FROM files
    WHERE files.id = file_uses.file_id AND files.tenant_id = file_uses.tenant_id)"""
_POLICIES = (
    "CREATE POLICY file_uses_engine_select ON file_uses FOR SELECT TO qflow_engine USING (true)",
    f"""
    CREATE POLICY file_uses_engine_insert ON file_uses FOR INSERT TO qflow_engine
      WITH CHECK ({_HEIRS_USE})
    """,
    "CREATE POLICY file_uses_maint_select ON file_uses FOR SELECT TO qflow_maint USING (true)",
    """
    CREATE POLICY file_uses_maint_delete ON file_uses FOR DELETE TO qflow_maint
     USING (EXISTS (SELECT 1 FROM files file
                      JOIN workflow_executions parent ON parent.id = file.workflow_execution_id
                     WHERE file.id = file_uses.file_id AND parent.purge_started_at IS NOT NULL))
    """,
    # A file goes from a run that is purged to one that is not.
    f"""
    CREATE POLICY files_maint_update ON files FOR UPDATE TO qflow_maint
     USING ({_PURGED}) WITH CHECK ({_LIVES})
    """,
    *(
        f"CREATE POLICY cached_results_engine_{verb} ON cached_results FOR {verb} TO qflow_engine {rule}"
        for verb, rule in (
            ("SELECT", "USING (true)"),
            ("INSERT", "WITH CHECK (true)"),
            ("UPDATE", "USING (true) WITH CHECK (true)"),
        )
    ),
    """
    CREATE POLICY cached_results_maint_select ON cached_results FOR SELECT TO qflow_maint
     USING (true)
    """,
    """
    CREATE POLICY cached_results_maint_delete ON cached_results FOR DELETE TO qflow_maint
     USING (expires_at < now())
    """,
)

_GRANTS = (
    "GRANT SELECT, INSERT ON file_uses, cached_results TO qflow_orchestrator_engine",
    """
    GRANT UPDATE (node_version_id, node_execution_id, file_sha256, created_at, expires_at)
       ON cached_results TO qflow_orchestrator_engine
    """,
    "GRANT SELECT, DELETE ON file_uses, cached_results TO qflow_telemetry_maint",
    "GRANT UPDATE (workflow_execution_id, node_execution_id) ON files TO qflow_telemetry_maint",
)

# Nobody may begin to use a file that is locked here: such a start waits, and fails if it is gone.
_HAND_ON = """\
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
"""
_DELETE_FILES = """\
        DELETE FROM public.files WHERE id IN (
            SELECT id FROM public.files
             WHERE workflow_execution_id = ANY (victims) LIMIT leaves);
"""

_EXPIRED = (
    """
    CREATE FUNCTION cleanup_expired_results(batch integer DEFAULT 5000) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        removed bigint;
    BEGIN
        DELETE FROM public.cached_results WHERE (tenant_id, digest) IN (
            SELECT tenant_id, digest FROM public.cached_results
             WHERE expires_at < clock_timestamp()
             ORDER BY expires_at, tenant_id, digest LIMIT batch);
        GET DIAGNOSTICS removed = ROW_COUNT;
        RETURN removed;
    END $$
    """,
    "REVOKE ALL ON FUNCTION cleanup_expired_results(integer) FROM PUBLIC",
    "GRANT EXECUTE ON FUNCTION cleanup_expired_results(integer) TO qflow_maint",
)


_EXECUTIONS = """
    CREATE OR REPLACE FUNCTION cleanup_old_executions(
        keep interval DEFAULT '30 days', batch integer DEFAULT 1000, leaves integer DEFAULT 5000
    ) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        victims uuid[];{more}
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
{files}        GET DIAGNOSTICS gone = ROW_COUNT;
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


def _executions(*, hands_on: bool) -> str:
    if hands_on:
        return _EXECUTIONS.format(more="\n        held uuid[];", files=_HAND_ON)
    return _EXECUTIONS.format(more="", files=_DELETE_FILES)


def upgrade() -> None:
    run(_TABLES)
    run(_POLICIES)
    run(_GRANTS)
    run(_EXPIRED)
    run((_executions(hands_on=True),))


def downgrade() -> None:
    run(
        (
            _executions(hands_on=False),
            "DROP FUNCTION cleanup_expired_results(integer)",
            "DROP POLICY files_maint_update ON files",
            """
            REVOKE UPDATE (workflow_execution_id, node_execution_id) ON files
              FROM qflow_telemetry_maint
            """,
            "ALTER TABLE workflow_executions DROP COLUMN ignores_cache",
            "ALTER TABLE node_executions DROP COLUMN cache_hit",
            "DROP TABLE cached_results, file_uses",
        )
    )
