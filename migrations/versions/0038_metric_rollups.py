"""Metrics summed up by minute and by hour as they are written; callers write metrics; rows are tailed.

A value is kept as a mark, the number of the step that it falls into, where steps grow by one hundredth
of their logarithm: whatever is read from marks is right to half a percent, and marks of any two
stretches of time are added up. A trigger keeps the sums, so that they are right whoever writes.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0038"
down_revision = "0037"

_TENANT = "tenant_id = (SELECT current_tenant_id())"
_WRITTEN = f"{_TENANT} AND (SELECT current_role_name()) IN ('admin', 'user')"
_AGED = "starts_at < now() - interval '1 day'"

_TABLES = (
    # Of workflow 0 are all values of the tenant, those of its workflows included.
    """
    CREATE TABLE metric_rollups (
        tenant_id uuid NOT NULL,
        metric_name varchar(100) NOT NULL,
        workflow_id uuid NOT NULL,
        span_s integer NOT NULL CONSTRAINT metric_rollups_span_s_check CHECK (span_s IN (60, 3600)),
        starts_at timestamptz NOT NULL,
        value_count bigint NOT NULL
            CONSTRAINT metric_rollups_value_count_check CHECK (value_count > 0),
        value_sum double precision NOT NULL,
        value_min double precision NOT NULL,
        value_max double precision NOT NULL,
        marks integer[] NOT NULL,
        mark_counts bigint[] NOT NULL,
        PRIMARY KEY (tenant_id, metric_name, workflow_id, span_s, starts_at),
        CONSTRAINT metric_rollups_marks_check CHECK (cardinality(marks) = cardinality(mark_counts))
    ) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05)
    """,
    "CREATE INDEX metric_rollups_starts_at_idx ON metric_rollups (span_s, starts_at)",
    "ALTER TABLE metric_rollups ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE metric_rollups FORCE ROW LEVEL SECURITY",
    f"""
    CREATE POLICY metric_rollups_api_select ON metric_rollups FOR SELECT TO qflow_api
     USING ({_TENANT})
    """,
    f"""
    CREATE POLICY metric_rollups_api_insert ON metric_rollups FOR INSERT TO qflow_api
      WITH CHECK ({_WRITTEN})
    """,
    f"""
    CREATE POLICY metric_rollups_api_update ON metric_rollups FOR UPDATE TO qflow_api
     USING ({_WRITTEN}) WITH CHECK ({_WRITTEN})
    """,
    *(
        f"CREATE POLICY metric_rollups_maint_{verb.lower()} ON metric_rollups FOR {verb}"
        f" TO qflow_maint {rule}"
        for verb, rule in (
            ("SELECT", "USING (true)"),
            ("INSERT", "WITH CHECK (true)"),
            ("UPDATE", "USING (true) WITH CHECK (true)"),
            ("DELETE", f"USING ({_AGED})"),
        )
    ),
    """
    CREATE POLICY metric_rollups_doctor_select ON metric_rollups FOR SELECT TO qflow_doctor
     USING (true)
    """,
    "GRANT SELECT ON metric_rollups TO qflow_doctor",
    "GRANT SELECT, INSERT ON metric_rollups TO qflow_telemetry, qflow_telemetry_maint",
    """
    GRANT UPDATE (value_count, value_sum, value_min, value_max, marks, mark_counts)
       ON metric_rollups TO qflow_telemetry, qflow_telemetry_maint
    """,
    "GRANT DELETE ON metric_rollups TO qflow_telemetry_maint",
)

_FUNCTIONS = (
    # Marks are in the order of their values; 0 is the mark of nothing. The smallest value that a
    # metric holds is a millionth, whose logarithm is -13.8.
    """
    CREATE FUNCTION metric_mark(given double precision) RETURNS integer
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN given = 0 THEN 0
                ELSE sign(given)::integer * (2000 + ceil(100 * ln(abs(given)))::integer) END
    """,
    # The value in the middle of a step: no other of the step is further from it than half a percent.
    """
    CREATE FUNCTION metric_value_of(mark integer) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE WHEN mark = 0 THEN 0
                ELSE sign(mark) * exp((abs(mark) - 2000) / 100.0::double precision)
                     * 2 / (1 + exp(0.01::double precision)) END
    """,
    # One row for each mark of each minute; each is added to the hour too, and to the whole tenant.
    """
    CREATE FUNCTION add_metric_sums(
        tenants uuid[], names text[], workflows uuid[], minutes timestamptz[], marks integer[],
        counts bigint[], sums double precision[], lows double precision[], highs double precision[]
    ) RETURNS void
    LANGUAGE sql SET search_path = pg_catalog, public
    AS $$
        INSERT INTO public.metric_rollups AS kept
        WITH every AS (
            SELECT fine.tenant_id, fine.metric_name, scope.workflow_id, span.span_s,
                   CASE span.span_s WHEN 60 THEN fine.starts_at
                        ELSE date_trunc('hour', fine.starts_at, 'UTC') END AS starts_at,
                   fine.mark, sum(fine.counted)::bigint AS counted, sum(fine.total) AS total,
                   min(fine.low) AS low, max(fine.high) AS high
              FROM unnest(tenants, names, workflows, minutes, marks, counts, sums, lows, highs)
                   AS fine(tenant_id, metric_name, workflow_id, starts_at, mark, counted, total,
                           low, high)
             CROSS JOIN (VALUES (60), (3600)) AS span(span_s)
             CROSS JOIN LATERAL (VALUES ('00000000-0000-0000-0000-000000000000'::uuid),
                                        (fine.workflow_id)) AS scope(workflow_id)
             WHERE scope.workflow_id IS NOT NULL
             GROUP BY 1, 2, 3, 4, 5, 6)
        SELECT tenant_id, metric_name, workflow_id, span_s, starts_at, sum(counted)::bigint,
               sum(total), min(low), max(high), array_agg(mark ORDER BY mark),
               array_agg(counted ORDER BY mark)
          FROM every
         GROUP BY 1, 2, 3, 4, 5
         ORDER BY 1, 2, 3, 4, 5
            ON CONFLICT (tenant_id, metric_name, workflow_id, span_s, starts_at) DO UPDATE
           SET value_count = kept.value_count + EXCLUDED.value_count,
               value_sum = kept.value_sum + EXCLUDED.value_sum,
               value_min = LEAST(kept.value_min, EXCLUDED.value_min),
               value_max = GREATEST(kept.value_max, EXCLUDED.value_max),
               (marks, mark_counts) = (
                   SELECT array_agg(mark ORDER BY mark), array_agg(counted ORDER BY mark)
                     FROM (SELECT mark, sum(part)::bigint AS counted
                             FROM (SELECT * FROM unnest(kept.marks, kept.mark_counts)
                                    UNION ALL
                                   SELECT * FROM unnest(EXCLUDED.marks, EXCLUDED.mark_counts))
                                  AS both_of(mark, part)
                            GROUP BY mark) AS added_up)
    $$
    """,
    # A transaction that adds to the sums by itself says so: two statements that lock them one after
    # the other might wait for each other's.
    """
    CREATE FUNCTION roll_up_metrics() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    BEGIN
        IF current_setting('qflow.metrics_summed', true) = 'on' THEN
            RETURN NULL;
        END IF;
        PERFORM public.add_metric_sums(
                   array_agg(tenant_id), array_agg(metric_name), array_agg(workflow_id),
                   array_agg(starts_at), array_agg(mark), array_agg(counted), array_agg(total),
                   array_agg(low), array_agg(high))
          FROM (SELECT added.tenant_id, added.metric_name::text, run.workflow_id,
                       date_trunc('minute', added.recorded_at, 'UTC') AS starts_at,
                       public.metric_mark(added.metric_value::double precision) AS mark,
                       count(*) AS counted, sum(added.metric_value)::double precision AS total,
                       min(added.metric_value)::double precision AS low,
                       max(added.metric_value)::double precision AS high
                  FROM added
                  LEFT JOIN public.workflow_executions AS run
                    ON run.id = added.workflow_execution_id
                 GROUP BY 1, 2, 3, 4, 5) AS fine
        HAVING count(*) > 0;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER performance_metrics_roll_up AFTER INSERT ON performance_metrics
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION roll_up_metrics()
    """,
)
# As the login that sees every tenant's: an owner that is no superuser sees nothing. Where that owner
# may not act as it, sums begin with what comes.
_EXISTING = """
    DO $$
    BEGIN
        SET LOCAL ROLE qflow_telemetry_maint;
        PERFORM public.add_metric_sums(
                   array_agg(tenant_id), array_agg(metric_name), array_agg(workflow_id),
                   array_agg(starts_at), array_agg(mark), array_agg(counted), array_agg(total),
                   array_agg(low), array_agg(high))
          FROM (SELECT m.tenant_id, m.metric_name::text, run.workflow_id,
                       date_trunc('minute', m.recorded_at, 'UTC') AS starts_at,
                       public.metric_mark(m.metric_value::double precision) AS mark,
                       count(*) AS counted, sum(m.metric_value)::double precision AS total,
                       min(m.metric_value)::double precision AS low,
                       max(m.metric_value)::double precision AS high
                  FROM public.performance_metrics AS m
                  LEFT JOIN public.workflow_executions AS run ON run.id = m.workflow_execution_id
                 GROUP BY 1, 2, 3, 4, 5) AS fine
        HAVING count(*) > 0;
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;
    END $$
"""

_CALLERS = (
    f"""
    CREATE POLICY performance_metrics_api_insert ON performance_metrics FOR INSERT TO qflow_api
      WITH CHECK ({_WRITTEN}
        AND (workflow_execution_id IS NULL OR EXISTS (
             SELECT 1 FROM workflow_executions AS run
              WHERE run.id = performance_metrics.workflow_execution_id))
        AND node_execution_id IS NULL AND container_id IS NULL)
    """,
    """
    GRANT INSERT (id, metric_name, metric_value, metric_unit, workflow_execution_id, tenant_id,
                  recorded_at)
       ON performance_metrics TO qflow_telemetry
    """,
)

# A row's transaction orders it among all others: what is below every open one is whole. Rows from
# before have none. Most metrics are of no node and no sandbox, and their entries would say nothing.
_TAILS = (
    *(
        statement
        for table in ("performance_metrics", "error_logs")
        for statement in (
            f"ALTER TABLE {table} ADD COLUMN written_by xid8",
            f"ALTER TABLE {table} ALTER COLUMN written_by SET DEFAULT pg_current_xact_id()",
            f"""
            CREATE INDEX {table}_written_by_idx ON {table} (tenant_id, written_by, id)
             WHERE written_by IS NOT NULL
            """,
        )
    ),
    *(
        statement
        for key in ("node_execution_id", "container_id")
        for statement in (
            f"DROP INDEX performance_metrics_{key}_idx",
            f"""
            CREATE INDEX performance_metrics_{key}_idx ON performance_metrics ({key})
             WHERE {key} IS NOT NULL
            """,
        )
    ),
)

_CLEANUP = """
    CREATE FUNCTION cleanup_old_metric_rollups(
        of_span_s integer, keep interval, batch integer DEFAULT 5000
    ) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        removed bigint;
    BEGIN
        DELETE FROM public.metric_rollups
         WHERE (tenant_id, metric_name, workflow_id, span_s, starts_at) IN (
            SELECT tenant_id, metric_name, workflow_id, span_s, starts_at
              FROM public.metric_rollups
             WHERE span_s = of_span_s AND starts_at < clock_timestamp() - keep
             ORDER BY starts_at LIMIT batch);
        GET DIAGNOSTICS removed = ROW_COUNT;
        RETURN removed;
    END $$
"""
_ADD = """add_metric_sums(uuid[], text[], uuid[], timestamptz[], integer[], bigint[],
    double precision[], double precision[], double precision[])"""
_SIGNATURE = "cleanup_old_metric_rollups(integer, interval, integer)"


def upgrade() -> None:
    """Make the sums, and let callers write what they measure."""
    run(_TABLES)
    run(_FUNCTIONS)
    run(
        (
            _CLEANUP,
            f"REVOKE ALL ON FUNCTION {_SIGNATURE} FROM PUBLIC",
            f"GRANT EXECUTE ON FUNCTION {_SIGNATURE} TO qflow_maint",
            "REVOKE ALL ON FUNCTION roll_up_metrics() FROM PUBLIC",
            f"REVOKE ALL ON FUNCTION {_ADD} FROM PUBLIC",
            f"GRANT EXECUTE ON FUNCTION {_ADD} TO qflow_api, qflow_maint",
            "REVOKE ALL ON FUNCTION metric_mark(double precision) FROM PUBLIC",
            "REVOKE ALL ON FUNCTION metric_value_of(integer) FROM PUBLIC",
            "GRANT EXECUTE ON FUNCTION metric_mark(double precision) TO qflow_api, qflow_maint",
            "GRANT EXECUTE ON FUNCTION metric_value_of(integer) TO qflow_api, qflow_maint",
        )
    )
    run((_EXISTING, "RESET ROLE"))
    run(_CALLERS)
    run(_TAILS)


def downgrade() -> None:
    """Forget the sums; what they were made of stays."""
    run(
        (
            f"DROP FUNCTION {_SIGNATURE}",
            "DROP TRIGGER performance_metrics_roll_up ON performance_metrics",
            "DROP FUNCTION roll_up_metrics()",
            f"DROP FUNCTION {_ADD}",
            "DROP FUNCTION metric_mark(double precision)",
            "DROP FUNCTION metric_value_of(integer)",
            "DROP TABLE metric_rollups",
            "DROP POLICY performance_metrics_api_insert ON performance_metrics",
            """
            REVOKE INSERT (id, metric_name, metric_value, metric_unit, workflow_execution_id,
                           tenant_id, recorded_at)
                ON performance_metrics FROM qflow_telemetry
            """,
            "ALTER TABLE performance_metrics DROP COLUMN written_by",
            "ALTER TABLE error_logs DROP COLUMN written_by",
            "DROP INDEX performance_metrics_node_execution_id_idx",
            "DROP INDEX performance_metrics_container_id_idx",
            """
            CREATE INDEX performance_metrics_node_execution_id_idx
                ON performance_metrics (node_execution_id)
            """,
            "CREATE INDEX performance_metrics_container_id_idx ON performance_metrics (container_id)",
        )
    )
