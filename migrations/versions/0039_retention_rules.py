"""How long a tenant keeps what is its own; what retention did; the last tables that only grew."""

from __future__ import annotations

from migrations.sql import run

revision = "0039"
down_revision = "0038"

_TENANT = "tenant_id = (SELECT current_tenant_id())"
_WRITTEN = f"{_TENANT} AND (SELECT current_role_name()) IN ('admin', 'user')"
_USER = "(SELECT current_user_id())"
_ADMIN = "(SELECT current_role_name()) = 'admin'"

_RULES = (
    # A tenant may keep its own for less long than the deployment does, never for longer.
    """
    CREATE TABLE retention_rules (
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        subject text NOT NULL
            CONSTRAINT retention_rules_subject_check
            CHECK (subject IN ('executions', 'metrics', 'error_logs')),
        keep_days integer NOT NULL
            CONSTRAINT retention_rules_keep_days_check CHECK (keep_days BETWEEN 1 AND 36500),
        revision bigint NOT NULL DEFAULT 1,
        updated_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (tenant_id, subject)
    )
    """,
    "CREATE INDEX retention_rules_updated_by_idx ON retention_rules (updated_by)",
    f"""
    CREATE POLICY retention_rules_api_select ON retention_rules FOR SELECT TO qflow_api
     USING ({_TENANT})
    """,
    f"""
    CREATE POLICY retention_rules_api_insert ON retention_rules FOR INSERT TO qflow_api
      WITH CHECK ({_WRITTEN} AND updated_by = {_USER})
    """,
    f"""
    CREATE POLICY retention_rules_api_update ON retention_rules FOR UPDATE TO qflow_api
     USING ({_WRITTEN}) WITH CHECK ({_WRITTEN} AND updated_by = {_USER})
    """,
    f"""
    CREATE POLICY retention_rules_api_delete ON retention_rules FOR DELETE TO qflow_api
     USING ({_WRITTEN})
    """,
    """
    CREATE POLICY retention_rules_maint_select ON retention_rules FOR SELECT TO qflow_maint
     USING (true)
    """,
    "GRANT SELECT, INSERT, DELETE ON retention_rules TO qflow_telemetry",
    """
    GRANT UPDATE (keep_days, revision, updated_by, updated_at)
       ON retention_rules TO qflow_telemetry
    """,
    "GRANT SELECT ON retention_rules TO qflow_telemetry_maint",
)

_RUNS = (
    """
    CREATE TABLE retention_runs (
        id uuid PRIMARY KEY,
        state text NOT NULL
            CONSTRAINT retention_runs_state_check
            CHECK (state IN ('asked', 'running', 'completed', 'failed', 'interrupted')),
        requested_by uuid REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        started_at timestamptz,
        ended_at timestamptz,
        report jsonb NOT NULL DEFAULT '[]',
        CONSTRAINT retention_runs_ended_check
            CHECK ((state IN ('completed', 'failed', 'interrupted')) = (ended_at IS NOT NULL))
    )
    """,
    "CREATE INDEX retention_runs_requested_by_idx ON retention_runs (requested_by)",
    "CREATE INDEX retention_runs_created_at_idx ON retention_runs (created_at DESC, id DESC)",
    """
    CREATE INDEX retention_runs_open_idx ON retention_runs (created_at)
     WHERE state IN ('asked', 'running')
    """,
    f"""
    CREATE POLICY retention_runs_api_select ON retention_runs FOR SELECT TO qflow_api
     USING ({_ADMIN})
    """,
    f"""
    CREATE POLICY retention_runs_api_insert ON retention_runs FOR INSERT TO qflow_api
      WITH CHECK ({_ADMIN} AND requested_by = {_USER} AND state = 'asked')
    """,
    *(
        f"CREATE POLICY retention_runs_maint_{verb.lower()} ON retention_runs FOR {verb}"
        f" TO qflow_maint {rule}"
        for verb, rule in (
            ("SELECT", "USING (true)"),
            ("INSERT", "WITH CHECK (true)"),
            ("UPDATE", "USING (true) WITH CHECK (true)"),
            ("DELETE", "USING (ended_at < now() - interval '1 day')"),
        )
    ),
    "GRANT SELECT, INSERT ON retention_runs TO qflow_telemetry",
    "GRANT SELECT, INSERT, DELETE ON retention_runs TO qflow_telemetry_maint",
    "GRANT UPDATE (state, started_at, ended_at, report) ON retention_runs TO qflow_telemetry_maint",
)

_GUARDED = tuple(
    statement
    for table in ("retention_rules", "retention_runs")
    for statement in (
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY {table}_doctor_select ON {table} FOR SELECT TO qflow_doctor USING (true)",
        f"GRANT SELECT ON {table} TO qflow_doctor",
    )
)

# What is one tenant's alone is found by an index that begins with the tenant. Runs are hidden and
# left to the function that purges; one that ended before a moment was created before it.
_OF_TENANTS = (
    """
    CREATE FUNCTION hide_tenant_executions(
        of_tenant uuid, keep interval, batch integer DEFAULT 1000
    ) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        horizon timestamptz := clock_timestamp() - keep;
        hidden bigint;
    BEGIN
        UPDATE public.workflow_executions SET purge_started_at = clock_timestamp()
         WHERE id IN (
            SELECT id FROM public.workflow_executions
             WHERE tenant_id = of_tenant AND created_at < horizon
               AND completed_at < horizon AND purge_started_at IS NULL
               AND status IN ('completed', 'failed', 'cancelled')
             ORDER BY created_at, id LIMIT batch
               FOR UPDATE SKIP LOCKED);
        GET DIAGNOSTICS hidden = ROW_COUNT;
        RETURN hidden;
    END $$
    """,
    *(
        f"""
        CREATE FUNCTION cleanup_tenant_{name}(
            of_tenant uuid, keep interval, batch integer DEFAULT 5000
        ) RETURNS bigint
        LANGUAGE plpgsql SET search_path = pg_catalog, public
        AS $$
        DECLARE
            removed bigint;
        BEGIN
            DELETE FROM public.{table} WHERE id IN (
                SELECT id FROM public.{table}
                 WHERE tenant_id = of_tenant AND {moment} < clock_timestamp() - keep
                 ORDER BY {moment}, id LIMIT batch);
            GET DIAGNOSTICS removed = ROW_COUNT;
            RETURN removed;
        END $$
        """
        for name, table, moment in (
            ("metrics", "performance_metrics", "recorded_at"),
            ("error_logs", "error_logs", "created_at"),
        )
    ),
)


def _cleanup(name: str, table: str, due: str) -> str:
    return f"""
    CREATE FUNCTION {name}(keep interval, batch integer DEFAULT 5000) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        removed bigint;
    BEGIN
        DELETE FROM public.{table} WHERE id IN (
            SELECT id FROM public.{table} WHERE {due} LIMIT batch);
        GET DIAGNOSTICS removed = ROW_COUNT;
        RETURN removed;
    END $$
    """


_LAST = (
    _cleanup(
        "cleanup_old_retention_runs",
        "retention_runs",
        "ended_at < clock_timestamp() - keep ORDER BY created_at, id",
    ),
    _cleanup(
        "cleanup_gone_environments",
        "environments",
        "state IN ('evicted', 'failed') AND GREATEST(last_used_at, created_at)"
        " < clock_timestamp() - keep",
    ),
    """
    CREATE POLICY environments_maint_delete ON environments FOR DELETE TO qflow_maint
     USING (state IN ('evicted', 'failed')
            AND GREATEST(last_used_at, created_at) < now() - interval '1 day')
    """,
    "GRANT DELETE ON environments TO qflow_telemetry_maint",
)
_SIGNATURES = (
    "hide_tenant_executions(uuid, interval, integer)",
    "cleanup_tenant_metrics(uuid, interval, integer)",
    "cleanup_tenant_error_logs(uuid, interval, integer)",
    "cleanup_old_retention_runs(interval, integer)",
    "cleanup_gone_environments(interval, integer)",
)


def upgrade() -> None:
    """Make the rules, the history, and the functions that were missing."""
    run((*_RULES, *_RUNS, *_GUARDED, *_OF_TENANTS, *_LAST))
    run(f"REVOKE ALL ON FUNCTION {each} FROM PUBLIC" for each in _SIGNATURES)
    run(f"GRANT EXECUTE ON FUNCTION {each} TO qflow_maint" for each in _SIGNATURES)


def downgrade() -> None:
    """Take them away."""
    run(f"DROP FUNCTION {each}" for each in _SIGNATURES)
    run(
        (
            "DROP POLICY environments_maint_delete ON environments",
            "REVOKE DELETE ON environments FROM qflow_telemetry_maint",
            "DROP TABLE retention_runs, retention_rules",
        )
    )
