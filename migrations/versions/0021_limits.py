"""Limits: how many runs or attempts of something go at once, how many begin in a time, and by whom.

A place that is taken is a row: its ordinal is below the limit and unique, so no two members can
take the same one. Members take places by one function, which locks the limits that it asks, and
give them back in the flush that ends what had them. Tokens of a rate stand by the database's clock.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0021"
down_revision = "0020"

_TENANT = "tenant_id = (SELECT current_tenant_id())"
_USER = "(SELECT current_user_id())"
_WRITTEN = f"{_TENANT} AND (SELECT current_role_name()) IN ('admin', 'user')"
_READ_SUBJECT = """(workflow_id IS NULL OR EXISTS (
        SELECT 1 FROM workflows parent WHERE parent.id = execution_limits.workflow_id))
    AND (node_id IS NULL OR EXISTS (
        SELECT 1 FROM python_nodes parent WHERE parent.id = execution_limits.node_id))"""

_TABLES = (
    """
    CREATE TABLE execution_limits (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        name varchar(63) NOT NULL
            CONSTRAINT execution_limits_name_check CHECK (name ~ '^[A-Za-z_][A-Za-z0-9_-]*$'),
        workflow_id uuid REFERENCES workflows(id) ON DELETE CASCADE,
        node_id uuid REFERENCES python_nodes(id) ON DELETE CASCADE,
        max_running integer
            CONSTRAINT execution_limits_max_running_check CHECK (max_running BETWEEN 1 AND 100000),
        max_starts integer
            CONSTRAINT execution_limits_max_starts_check CHECK (max_starts BETWEEN 1 AND 1000000),
        period_ms bigint
            CONSTRAINT execution_limits_period_check CHECK (period_ms BETWEEN 1000 AND 2678400000),
        key_expression text NOT NULL DEFAULT '',
        revision bigint NOT NULL DEFAULT 1,
        request_id uuid,
        request_digest text,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        updated_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT execution_limits_subject_check
            CHECK (workflow_id IS NULL OR node_id IS NULL),
        CONSTRAINT execution_limits_rate_check
            CHECK ((max_starts IS NULL) = (period_ms IS NULL)),
        CONSTRAINT execution_limits_some_check
            CHECK (max_running IS NOT NULL OR max_starts IS NOT NULL)
    )
    """,
    "CREATE UNIQUE INDEX execution_limits_tenant_id_name_key ON execution_limits (tenant_id, name)",
    """
    CREATE INDEX execution_limits_tenant_id_created_at_idx
        ON execution_limits (tenant_id, created_at DESC, id DESC)
    """,
    "CREATE INDEX execution_limits_workflow_id_idx ON execution_limits (workflow_id)",
    "CREATE INDEX execution_limits_node_id_idx ON execution_limits (node_id)",
    "CREATE INDEX execution_limits_created_by_idx ON execution_limits (created_by)",
    "CREATE INDEX execution_limits_updated_by_idx ON execution_limits (updated_by)",
    """
    CREATE TRIGGER execution_limits_touch BEFORE UPDATE ON execution_limits
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
    """,
    # A place that is taken: by a member first, and then for a run or for an attempt at a node.
    """
    CREATE TABLE limit_slots (
        limit_id uuid NOT NULL REFERENCES execution_limits(id) ON DELETE CASCADE,
        key varchar(255) NOT NULL,
        ordinal integer NOT NULL CONSTRAINT limit_slots_ordinal_check CHECK (ordinal > 0),
        id uuid NOT NULL,
        tenant_id uuid NOT NULL REFERENCES tenants(id),
        member_id uuid NOT NULL,
        epoch bigint NOT NULL,
        execution_id uuid REFERENCES workflow_executions(id) ON DELETE CASCADE,
        node_execution_id uuid REFERENCES node_executions(id) ON DELETE CASCADE,
        taken_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (limit_id, key, ordinal),
        CONSTRAINT limit_slots_id_key UNIQUE (id),
        CONSTRAINT limit_slots_held_check
            CHECK (node_execution_id IS NULL OR execution_id IS NOT NULL)
    )
    """,
    "CREATE INDEX limit_slots_tenant_id_idx ON limit_slots (tenant_id)",
    "CREATE INDEX limit_slots_execution_id_idx ON limit_slots (execution_id)",
    "CREATE INDEX limit_slots_node_execution_id_idx ON limit_slots (node_execution_id)",
    # What is left of a rate; a bucket that would be full again is as good as none.
    """
    CREATE TABLE limit_buckets (
        limit_id uuid NOT NULL REFERENCES execution_limits(id) ON DELETE CASCADE,
        key varchar(255) NOT NULL,
        tenant_id uuid NOT NULL REFERENCES tenants(id),
        tokens double precision NOT NULL
            CONSTRAINT limit_buckets_tokens_check CHECK (tokens >= 0),
        updated_at timestamptz NOT NULL,
        PRIMARY KEY (limit_id, key)
    )
    """,
    "CREATE INDEX limit_buckets_tenant_id_idx ON limit_buckets (tenant_id)",
    *(
        f"ALTER TABLE {table} {what} ROW LEVEL SECURITY"
        for table in ("execution_limits", "limit_slots", "limit_buckets")
        for what in ("ENABLE", "FORCE")
    ),
)

_POLICIES = (
    f"""
    CREATE POLICY execution_limits_api_select ON execution_limits FOR SELECT TO qflow_api
     USING ({_TENANT})
    """,
    f"""
    CREATE POLICY execution_limits_api_insert ON execution_limits FOR INSERT TO qflow_api
      WITH CHECK ({_WRITTEN} AND created_by = {_USER} AND updated_by = {_USER} AND {_READ_SUBJECT})
    """,
    f"""
    CREATE POLICY execution_limits_api_update ON execution_limits FOR UPDATE TO qflow_api
     USING ({_WRITTEN}) WITH CHECK ({_WRITTEN} AND updated_by = {_USER})
    """,
    f"""
    CREATE POLICY execution_limits_api_delete ON execution_limits FOR DELETE TO qflow_api
     USING ({_WRITTEN})
    """,
    """
    CREATE POLICY execution_limits_engine_select ON execution_limits FOR SELECT TO qflow_engine
     USING (true)
    """,
    *(
        f"CREATE POLICY {table}_engine_{verb} ON {table} FOR {verb} TO qflow_engine {rule}"
        for table in ("limit_slots", "limit_buckets")
        for verb, rule in (
            ("SELECT", "USING (true)"),
            ("INSERT", "WITH CHECK (true)"),
            ("UPDATE", "USING (true) WITH CHECK (true)"),
            ("DELETE", "USING (true)"),
        )
    ),
)

_GRANTS = (
    "GRANT SELECT, INSERT, DELETE ON execution_limits TO qflow_orchestrator",
    """
    GRANT UPDATE (max_running, max_starts, period_ms, key_expression, revision, request_id,
                  request_digest, updated_by)
       ON execution_limits TO qflow_orchestrator
    """,
    "GRANT SELECT ON execution_limits TO qflow_orchestrator_engine",
    "GRANT SELECT, INSERT, DELETE ON limit_slots, limit_buckets TO qflow_orchestrator_engine",
    "GRANT UPDATE (execution_id, node_execution_id) ON limit_slots TO qflow_orchestrator_engine",
    "GRANT UPDATE (tokens, updated_at) ON limit_buckets TO qflow_orchestrator_engine",
)

# Claims are asked in their order, each wholly or not at all. Each statement of a function sees what
# was committed before it began, so what is counted under the locks is so.
_TAKE = """
    CREATE FUNCTION engine_take_slots(
        of_member uuid, of_epoch bigint, claims integer[], limits uuid[], keys text[], slots uuid[]
    ) RETURNS TABLE (claim integer, refused_by uuid, wait_ms bigint)
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public
    AS $$
    DECLARE
        asked record;
        now_at timestamptz;
        is_left double precision;
    BEGIN
        PERFORM 1 FROM public.engine_members
          WHERE id = of_member AND epoch = of_epoch AND state = 'live' FOR SHARE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'fenced' USING ERRCODE = 'QF002';
        END IF;
        PERFORM pg_advisory_xact_lock(hashtextextended('limit ' || each::text, 0))
           FROM (SELECT DISTINCT unnest(limits) AS each ORDER BY 1) AS sorted;
        now_at := clock_timestamp();
        FOR claim IN SELECT DISTINCT unnest(claims) ORDER BY 1 LOOP
            refused_by := NULL;
            wait_ms := NULL;
            FOR asked IN
                SELECT given.limit_id, given.key, l.max_running, l.max_starts, l.period_ms,
                       bucket.tokens, bucket.updated_at
                  FROM unnest(claims, limits, keys) AS given(claim, limit_id, key)
                  JOIN public.execution_limits AS l ON l.id = given.limit_id
                  LEFT JOIN public.limit_buckets AS bucket
                    ON bucket.limit_id = given.limit_id AND bucket.key = given.key
                 WHERE given.claim = engine_take_slots.claim
                 ORDER BY given.limit_id
            LOOP
                IF asked.max_running <= (
                    SELECT count(*) FROM public.limit_slots AS slot
                     WHERE slot.limit_id = asked.limit_id AND slot.key = asked.key
                ) THEN
                    refused_by := asked.limit_id;
                ELSIF asked.max_starts IS NOT NULL AND asked.tokens IS NOT NULL THEN
                    is_left := LEAST(asked.max_starts, asked.tokens + asked.max_starts
                        * EXTRACT(epoch FROM now_at - asked.updated_at) * 1000 / asked.period_ms);
                    IF is_left < 1 THEN
                        refused_by := asked.limit_id;
                        wait_ms := ceil((1 - is_left) * asked.period_ms / asked.max_starts);
                    END IF;
                END IF;
                EXIT WHEN refused_by IS NOT NULL;
            END LOOP;
            IF refused_by IS NULL THEN
                INSERT INTO public.limit_slots
                       (limit_id, key, ordinal, id, tenant_id, member_id, epoch)
                SELECT given.limit_id, given.key, (
                           SELECT min(place) FROM generate_series(1, l.max_running) AS place
                            WHERE NOT EXISTS (
                                  SELECT 1 FROM public.limit_slots AS slot
                                   WHERE slot.limit_id = given.limit_id AND slot.key = given.key
                                     AND slot.ordinal = place)),
                       given.id, l.tenant_id, of_member, of_epoch
                  FROM unnest(claims, limits, keys, slots) AS given(claim, limit_id, key, id)
                  JOIN public.execution_limits AS l ON l.id = given.limit_id
                 WHERE given.claim = engine_take_slots.claim AND l.max_running IS NOT NULL
                 ORDER BY given.limit_id;
                INSERT INTO public.limit_buckets AS bucket
                       (limit_id, key, tenant_id, tokens, updated_at)
                SELECT given.limit_id, given.key, l.tenant_id, l.max_starts - 1, now_at
                  FROM unnest(claims, limits, keys) AS given(claim, limit_id, key)
                  JOIN public.execution_limits AS l ON l.id = given.limit_id
                 WHERE given.claim = engine_take_slots.claim AND l.max_starts IS NOT NULL
                 ORDER BY given.limit_id
                    ON CONFLICT ON CONSTRAINT limit_buckets_pkey DO UPDATE
                   SET tokens = GREATEST(0, LEAST(EXCLUDED.tokens + 1,
                           bucket.tokens + (
                               SELECT l.max_starts
                                      * EXTRACT(epoch FROM now_at - bucket.updated_at) * 1000
                                      / l.period_ms
                                 FROM public.execution_limits AS l
                                WHERE l.id = bucket.limit_id)) - 1),
                       updated_at = now_at;
            END IF;
            RETURN NEXT;
        END LOOP;
    END $$
"""
_TAKE_SIGNATURE = "engine_take_slots(uuid, bigint, integer[], uuid[], text[], uuid[])"


def upgrade() -> None:
    run(_TABLES)
    run(_POLICIES)
    run(_GRANTS)
    run(
        (
            _TAKE,
            f"REVOKE ALL ON FUNCTION {_TAKE_SIGNATURE} FROM PUBLIC",
            f"GRANT EXECUTE ON FUNCTION {_TAKE_SIGNATURE} TO qflow_engine",
        )
    )


def downgrade() -> None:
    run(
        (
            f"DROP FUNCTION {_TAKE_SIGNATURE}",
            "DROP TABLE limit_buckets, limit_slots, execution_limits",
        )
    )
