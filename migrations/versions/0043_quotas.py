"""Quotas of tenants, what they used of them, and what runs hold of them until they end.

A quota is asked at one moment, when a run begins, by one function under the tenant's lock: so no two
orchestrators give the last of it away twice. What attempts consumed is added by the flush that ends
them, each member to a row of its own, so that no member waits for another's.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0043"
down_revision = "0042"

_TENANT = "tenant_id = (SELECT current_tenant_id())"
_ADMIN = "(SELECT current_role_name()) = 'admin'"
_USER = "(SELECT current_user_id())"
_NUMBERS = (
    "executions_running",
    "executions_per_day",
    "nodes_per_day",
    "cpu_s_per_day",
    "gb_s_per_day",
    "execution_nodes",
    "execution_cpu_s",
    "execution_gb_s",
)
# Far more than a machine has, and few enough that a million times as many are still a bigint.
_MOST = 1_000_000_000

_TABLES = (
    f"""
    CREATE TABLE tenant_quotas (
        tenant_id uuid PRIMARY KEY REFERENCES tenants(id),
        {
        "".join(
            f'''{name} bigint
            CONSTRAINT tenant_quotas_{name}_check CHECK ({name} BETWEEN 1 AND {_MOST}),
        '''
            for name in _NUMBERS
        )
    }revision bigint NOT NULL DEFAULT 1,
        updated_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    "CREATE INDEX tenant_quotas_updated_by_idx ON tenant_quotas (updated_by)",
    """
    CREATE TABLE tenant_usage (
        tenant_id uuid NOT NULL REFERENCES tenants(id),
        day date NOT NULL,
        member_id uuid NOT NULL,
        executions bigint NOT NULL DEFAULT 0,
        nodes bigint NOT NULL DEFAULT 0,
        cpu_us bigint NOT NULL DEFAULT 0,
        gb_us bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (tenant_id, day, member_id),
        CONSTRAINT tenant_usage_positive_check
            CHECK (executions >= 0 AND nodes >= 0 AND cpu_us >= 0 AND gb_us >= 0)
    )
    """,
    # It is there before its run is: no reference to it. What is over, and what a crash left, is swept
    # when the tenant starts its next run, or an orchestrator begins.
    """
    CREATE TABLE execution_budgets (
        execution_id uuid PRIMARY KEY,
        tenant_id uuid NOT NULL REFERENCES tenants(id),
        nodes bigint CONSTRAINT execution_budgets_nodes_check CHECK (nodes > 0),
        cpu_us bigint CONSTRAINT execution_budgets_cpu_us_check CHECK (cpu_us > 0),
        gb_us bigint CONSTRAINT execution_budgets_gb_us_check CHECK (gb_us > 0),
        nodes_used bigint NOT NULL DEFAULT 0,
        cpu_us_used bigint NOT NULL DEFAULT 0,
        gb_us_used bigint NOT NULL DEFAULT 0,
        over boolean NOT NULL DEFAULT false,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        CONSTRAINT execution_budgets_used_check
            CHECK (nodes_used >= 0 AND cpu_us_used >= 0 AND gb_us_used >= 0)
    )
    """,
    "CREATE INDEX execution_budgets_tenant_id_idx ON execution_budgets (tenant_id)",
    *(
        f"ALTER TABLE {table} {what} ROW LEVEL SECURITY"
        for table in ("tenant_quotas", "tenant_usage", "execution_budgets")
        for what in ("ENABLE", "FORCE")
    ),
)

# A tenant reads its own quota and changes none: those who run the deployment do.
_POLICIES = (
    f"""
    CREATE POLICY tenant_quotas_api_select ON tenant_quotas FOR SELECT TO qflow_api
     USING ({_TENANT} OR {_ADMIN})
    """,
    f"""
    CREATE POLICY tenant_quotas_api_insert ON tenant_quotas FOR INSERT TO qflow_api
      WITH CHECK ({_ADMIN} AND updated_by = {_USER})
    """,
    f"""
    CREATE POLICY tenant_quotas_api_update ON tenant_quotas FOR UPDATE TO qflow_api
     USING ({_ADMIN}) WITH CHECK ({_ADMIN} AND updated_by = {_USER})
    """,
    """
    CREATE POLICY tenant_quotas_engine_select ON tenant_quotas FOR SELECT TO qflow_engine
     USING (true)
    """,
    *(
        f"CREATE POLICY {table}_engine_{verb.lower()} ON {table} FOR {verb} TO qflow_engine {rule}"
        for table in ("tenant_usage", "execution_budgets")
        for verb, rule in (
            ("SELECT", "USING (true)"),
            ("INSERT", "WITH CHECK (true)"),
            ("UPDATE", "USING (true) WITH CHECK (true)"),
            ("DELETE", "USING (true)"),
        )
    ),
)

_GRANTS = (
    "GRANT SELECT, INSERT ON tenant_quotas TO qflow_orchestrator",
    f"""
    GRANT UPDATE ({", ".join(_NUMBERS)}, revision, updated_by, updated_at)
       ON tenant_quotas TO qflow_orchestrator
    """,
    "GRANT SELECT ON tenant_quotas TO qflow_orchestrator_engine",
    "GRANT SELECT, INSERT, DELETE ON tenant_usage, execution_budgets TO qflow_orchestrator_engine",
    """
    GRANT UPDATE (executions, nodes, cpu_us, gb_us) ON tenant_usage TO qflow_orchestrator_engine
    """,
    """
    GRANT UPDATE (nodes_used, cpu_us_used, gb_us_used, over)
       ON execution_budgets TO qflow_orchestrator_engine
    """,
)

# Each statement of a function sees what was committed before it began, so what is counted under the
# lock is so. Held is what the open runs may still take of their budgets: they were promised it.
_RESERVE = """
    CREATE FUNCTION engine_reserve(
        of_tenant uuid, of_member uuid, of_execution uuid,
        of_nodes bigint, of_cpu_us bigint, of_gb_us bigint
    ) RETURNS TABLE (
        refused_by text, most bigint, used bigint, held_nodes bigint, held_cpu_us bigint,
        held_gb_us bigint
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
        IF quota.tenant_id IS NOT NULL THEN
            SELECT COALESCE(sum(u.executions), 0)::bigint AS executions,
                   COALESCE(sum(u.nodes), 0)::bigint AS nodes,
                   COALESCE(sum(u.cpu_us), 0)::bigint AS cpu_us,
                   COALESCE(sum(u.gb_us), 0)::bigint AS gb_us
              INTO spent FROM public.tenant_usage AS u
             WHERE u.tenant_id = of_tenant AND u.day = today;
            SELECT COALESCE(sum(GREATEST(0, b.nodes - b.nodes_used)), 0)::bigint AS nodes,
                   COALESCE(sum(GREATEST(0, b.cpu_us - b.cpu_us_used)), 0)::bigint AS cpu_us,
                   COALESCE(sum(GREATEST(0, b.gb_us - b.gb_us_used)), 0)::bigint AS gb_us,
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
                 spent.gb_us + held.gb_us, COALESCE(held_gb_us, 1))
              ) AS asked(name, most, used, wanted)
             WHERE asked.used + asked.wanted > asked.most
             LIMIT 1;
        END IF;
        IF refused_by IS NULL THEN
            INSERT INTO public.execution_budgets (execution_id, tenant_id, nodes, cpu_us, gb_us)
            VALUES (of_execution, of_tenant, held_nodes, held_cpu_us, held_gb_us);
            INSERT INTO public.tenant_usage AS u (tenant_id, day, member_id, executions)
            VALUES (of_tenant, today, of_member, 1)
                ON CONFLICT ON CONSTRAINT tenant_usage_pkey
                DO UPDATE SET executions = u.executions + 1;
        END IF;
        RETURN NEXT;
    END $$
"""
_RESERVE_SIGNATURE = "engine_reserve(uuid, uuid, uuid, bigint, bigint, bigint)"


def upgrade() -> None:
    run(_TABLES)
    run(_POLICIES)
    run(_GRANTS)
    run(
        (
            _RESERVE,
            f"REVOKE ALL ON FUNCTION {_RESERVE_SIGNATURE} FROM PUBLIC",
            f"GRANT EXECUTE ON FUNCTION {_RESERVE_SIGNATURE} TO qflow_engine",
        )
    )


def downgrade() -> None:
    run(
        (
            f"DROP FUNCTION {_RESERVE_SIGNATURE}",
            "DROP TABLE execution_budgets, tenant_usage, tenant_quotas",
        )
    )
