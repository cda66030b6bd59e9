"""Quotas of bytes and of environments: what runs move, what a tenant keeps, what is built for it.

What runs move is promised and counted as processor time is. What a tenant keeps is refused where it
always was, under the lock of its count; the quota, where it says so, stands above what the
deployment gives everybody. Environments are held to theirs by the runner whose disk they are on.
"""

from __future__ import annotations

from importlib import import_module

from migrations.sql import BORROW_GROUPS, RETURN_GROUPS, run

revision = "0049"
down_revision = "0048"

# A pebibyte, and few enough that a thousand times as many are still a bigint.
_BYTES_MOST = 1 << 50
_COUNT_MOST = 1_000_000_000
_NUMBERS = {
    "moved_bytes_per_day": _BYTES_MOST,
    "execution_moved_bytes": _BYTES_MOST,
    "stored_bytes": _BYTES_MOST,
    "stored_files": _COUNT_MOST,
    "environments": _COUNT_MOST,
    "environment_bytes": _BYTES_MOST,
}

_TABLES = (
    *(
        f"""
        ALTER TABLE tenant_quotas ADD COLUMN {name} bigint
            CONSTRAINT tenant_quotas_{name}_check CHECK ({name} BETWEEN 1 AND {most})
        """
        for name, most in _NUMBERS.items()
    ),
    """
    ALTER TABLE tenant_usage ADD COLUMN moved_bytes bigint NOT NULL DEFAULT 0
        CONSTRAINT tenant_usage_moved_bytes_check CHECK (moved_bytes >= 0)
    """,
    """
    ALTER TABLE execution_budgets
        ADD COLUMN moved_bytes bigint
            CONSTRAINT execution_budgets_moved_bytes_check CHECK (moved_bytes > 0),
        ADD COLUMN moved_bytes_used bigint NOT NULL DEFAULT 0
            CONSTRAINT execution_budgets_moved_bytes_used_check CHECK (moved_bytes_used >= 0)
    """,
)
_POLICIES = (
    """
    CREATE POLICY tenant_quotas_maint_select ON tenant_quotas FOR SELECT TO qflow_maint
     USING (true)
    """,
    """
    CREATE POLICY file_usage_engine_select ON file_usage FOR SELECT TO qflow_engine USING (true)
    """,
)
_GRANTS = (
    f"GRANT UPDATE ({', '.join(_NUMBERS)}) ON tenant_quotas TO qflow_orchestrator",
    "GRANT UPDATE (moved_bytes) ON tenant_usage TO qflow_orchestrator_engine",
    "GRANT UPDATE (moved_bytes_used) ON execution_budgets TO qflow_orchestrator_engine",
    "GRANT SELECT ON file_usage TO qflow_orchestrator_engine",
    "GRANT SELECT ON tenant_quotas TO qflow_runner, qflow_runner_engine",
    # What the trigger needs as its owner's right.
    "GRANT SELECT ON tenant_quotas TO qflow_maint",
)

# Each statement of a function sees what was committed before it began, so what is counted under the
# lock is so. Held is what the open runs may still take of their budgets: they were promised it.
_RESERVE = """
    CREATE FUNCTION engine_reserve(
        of_tenant uuid, of_member uuid, of_execution uuid,
        of_nodes bigint, of_cpu_us bigint, of_gb_us bigint, of_moved_bytes bigint
    ) RETURNS TABLE (
        refused_by text, most bigint, used bigint, held_nodes bigint, held_cpu_us bigint,
        held_gb_us bigint, held_moved_bytes bigint
    )
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public
    AS $$
    DECLARE
        quota public.tenant_quotas;
        today date;
        spent record;
        held record;
        running bigint;
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended('quota ' || of_tenant::text, 0));
        today := (clock_timestamp() AT TIME ZONE 'UTC')::date;
        DELETE FROM public.execution_budgets AS b
         WHERE b.tenant_id = of_tenant
           AND (b.over OR b.created_at < clock_timestamp() - interval '1 minute' AND NOT EXISTS (
               SELECT 1 FROM public.workflow_executions AS w
                WHERE w.id = b.execution_id AND w.completed_at IS NULL));
        DELETE FROM public.tenant_usage AS u
         WHERE u.tenant_id = of_tenant AND u.day < today - 31;
        SELECT * INTO quota FROM public.tenant_quotas AS q WHERE q.tenant_id = of_tenant;
        held_nodes := LEAST(of_nodes, quota.execution_nodes);
        held_cpu_us := LEAST(of_cpu_us, quota.execution_cpu_s * 1000000);
        held_gb_us := LEAST(of_gb_us, quota.execution_gb_s * 1000000);
        held_moved_bytes := LEAST(of_moved_bytes, quota.execution_moved_bytes);
        IF quota.tenant_id IS NOT NULL THEN
            SELECT COALESCE(sum(u.executions), 0)::bigint AS executions,
                   COALESCE(sum(u.nodes), 0)::bigint AS nodes,
                   COALESCE(sum(u.cpu_us), 0)::bigint AS cpu_us,
                   COALESCE(sum(u.gb_us), 0)::bigint AS gb_us,
                   COALESCE(sum(u.moved_bytes), 0)::bigint AS moved_bytes
              INTO spent FROM public.tenant_usage AS u
             WHERE u.tenant_id = of_tenant AND u.day = today;
            SELECT COALESCE(sum(GREATEST(0, b.nodes - b.nodes_used)), 0)::bigint AS nodes,
                   COALESCE(sum(GREATEST(0, b.cpu_us - b.cpu_us_used)), 0)::bigint AS cpu_us,
                   COALESCE(sum(GREATEST(0, b.gb_us - b.gb_us_used)), 0)::bigint AS gb_us,
                   COALESCE(sum(GREATEST(0, b.moved_bytes - b.moved_bytes_used)), 0)::bigint
                       AS moved_bytes,
                   count(*) FILTER (WHERE NOT EXISTS (
                       SELECT 1 FROM public.workflow_executions AS w
                        WHERE w.id = b.execution_id)) AS coming
              INTO held FROM public.execution_budgets AS b
             WHERE b.tenant_id = of_tenant;
            SELECT count(*) + held.coming INTO running
              FROM public.workflow_executions AS w
             WHERE w.tenant_id = of_tenant AND w.status IN ('pending', 'running', 'paused')
               AND w.relation IS DISTINCT FROM 'sub_workflow';
            SELECT asked.name, asked.most, asked.used INTO refused_by, most, used
              FROM (VALUES
                ('executions_running', quota.executions_running, running, 1),
                ('executions_per_day', quota.executions_per_day, spent.executions, 1),
                ('nodes_per_day', quota.nodes_per_day, spent.nodes + held.nodes,
                 COALESCE(held_nodes, 1)),
                ('cpu_seconds_per_day', quota.cpu_s_per_day * 1000000,
                 spent.cpu_us + held.cpu_us, COALESCE(held_cpu_us, 1)),
                ('gb_seconds_per_day', quota.gb_s_per_day * 1000000,
                 spent.gb_us + held.gb_us, COALESCE(held_gb_us, 1)),
                ('moved_bytes_per_day', quota.moved_bytes_per_day,
                 spent.moved_bytes + held.moved_bytes, COALESCE(held_moved_bytes, 1))
              ) AS asked(name, most, used, wanted)
             WHERE asked.used + asked.wanted > asked.most
             LIMIT 1;
        END IF;
        IF refused_by IS NULL THEN
            INSERT INTO public.execution_budgets
                   (execution_id, tenant_id, nodes, cpu_us, gb_us, moved_bytes)
            VALUES (of_execution, of_tenant, held_nodes, held_cpu_us, held_gb_us, held_moved_bytes);
            INSERT INTO public.tenant_usage AS u (tenant_id, day, member_id, executions)
            VALUES (of_tenant, today, of_member, 1)
                ON CONFLICT ON CONSTRAINT tenant_usage_pkey
                DO UPDATE SET executions = u.executions + 1;
        END IF;
        RETURN NEXT;
    END $$
"""
_RESERVE_SIGNATURE = "engine_reserve(uuid, uuid, uuid, bigint, bigint, bigint, bigint)"
# What the release before calls: the same, of which it knows no bytes. It goes with the next.
_RESERVE_BEFORE = """
    CREATE OR REPLACE FUNCTION engine_reserve(
        of_tenant uuid, of_member uuid, of_execution uuid,
        of_nodes bigint, of_cpu_us bigint, of_gb_us bigint
    ) RETURNS TABLE (
        refused_by text, most bigint, used bigint, held_nodes bigint, held_cpu_us bigint,
        held_gb_us bigint
    )
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public
    AS $$
    BEGIN
        RETURN QUERY SELECT r.refused_by, r.most, r.used, r.held_nodes, r.held_cpu_us, r.held_gb_us
          FROM public.engine_reserve(
               of_tenant, of_member, of_execution, of_nodes, of_cpu_us, of_gb_us, NULL) AS r;
    END $$
"""

# Rows of one tenant stand in line for its count, so of two that fit alone only one gets in. Who is
# refused is told by which number, in a detail that programs read.
_COUNT = """
    CREATE OR REPLACE FUNCTION count_files() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
    DECLARE
        of_tenant record;
        known public.file_usage;
        quota public.tenant_quotas;
        refused record;
    BEGIN
        FOR of_tenant IN
            SELECT tenant_id, sum(file_size_bytes)::bigint AS bytes, count(*) AS files
              FROM changed GROUP BY tenant_id ORDER BY tenant_id
        LOOP
            IF TG_OP = 'DELETE' THEN
                UPDATE public.file_usage AS u
                   SET bytes = GREATEST(0, u.bytes - of_tenant.bytes),
                       files = GREATEST(0, u.files - of_tenant.files)
                 WHERE u.tenant_id = of_tenant.tenant_id;
                CONTINUE;
            END IF;
            INSERT INTO public.file_usage AS u (tenant_id, bytes, files)
            VALUES (of_tenant.tenant_id, of_tenant.bytes, of_tenant.files)
                ON CONFLICT (tenant_id) DO UPDATE
               SET bytes = u.bytes + EXCLUDED.bytes, files = u.files + EXCLUDED.files
         RETURNING * INTO known;
            SELECT * INTO quota FROM public.tenant_quotas AS q
             WHERE q.tenant_id = of_tenant.tenant_id;
            SELECT asked.name, asked.most, asked.now - asked.more AS used INTO refused
              FROM (VALUES
                ('stored_bytes', COALESCE(quota.stored_bytes, known.bytes_max), known.bytes,
                 of_tenant.bytes),
                ('stored_files', COALESCE(quota.stored_files, known.files_max), known.files,
                 of_tenant.files)
              ) AS asked(name, most, now, more)
             WHERE asked.now > asked.most
             LIMIT 1;
            IF FOUND THEN
                RAISE EXCEPTION 'file quota reached' USING ERRCODE = 'QF003',
                    DETAIL = json_build_object(
                        'quota', refused.name, 'limit', refused.most, 'used', refused.used,
                        'subject', 'tenant/' || of_tenant.tenant_id)::text;
            END IF;
        END LOOP;
        RETURN NULL;
    END $$
"""


def upgrade() -> None:
    run(_TABLES)
    run(_POLICIES)
    run(_GRANTS)
    run(
        (
            _RESERVE,
            f"REVOKE ALL ON FUNCTION {_RESERVE_SIGNATURE} FROM PUBLIC",
            f"GRANT EXECUTE ON FUNCTION {_RESERVE_SIGNATURE} TO qflow_engine",
            _RESERVE_BEFORE,
            *BORROW_GROUPS,
            _COUNT,
            *RETURN_GROUPS,
        )
    )


def downgrade() -> None:
    reserve_before = vars(import_module("migrations.versions.0043_quotas"))["_RESERVE"]
    count_before = vars(import_module("migrations.versions.0028_uploads"))["_COUNT"]
    run(
        (
            f"DROP FUNCTION {_RESERVE_SIGNATURE}",
            reserve_before.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"),
            *BORROW_GROUPS,
            count_before.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"),
            *RETURN_GROUPS,
            "REVOKE SELECT ON file_usage FROM qflow_orchestrator_engine",
            "REVOKE SELECT ON tenant_quotas FROM qflow_runner, qflow_runner_engine, qflow_maint",
            "DROP POLICY file_usage_engine_select ON file_usage",
            "DROP POLICY tenant_quotas_maint_select ON tenant_quotas",
            "ALTER TABLE execution_budgets DROP COLUMN moved_bytes, DROP COLUMN moved_bytes_used",
            "ALTER TABLE tenant_usage DROP COLUMN moved_bytes",
            *(f"ALTER TABLE tenant_quotas DROP COLUMN {name}" for name in _NUMBERS),
        )
    )
