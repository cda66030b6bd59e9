"""How runs, nodes and edges did is summed up by the hour, before runs are forgotten, each run once.

`roll_up_executions` sums up runs that are over. `rolled_up_executions` holds which were, in the same
transaction, so that whoever calls it, however often, counts a run once. Retention calls it for the
runs that it is about to remove: none goes that was not counted.
"""

from __future__ import annotations

from importlib import import_module

from migrations.sql import run

revision = "0050"
down_revision = "0049"

_TABLES = (
    # Of which kind a row is: all runs of a workflow; one of its nodes; an edge, which has a source too.
    # Marks are those of metric_rollups.
    """
    CREATE TABLE workflow_rollups (
        tenant_id uuid NOT NULL,
        workflow_id uuid NOT NULL,
        kind text NOT NULL
            CONSTRAINT workflow_rollups_kind_check CHECK (kind IN ('run', 'node', 'edge')),
        span_s integer NOT NULL
            CONSTRAINT workflow_rollups_span_s_check CHECK (span_s IN (3600, 86400)),
        starts_at timestamptz NOT NULL,
        workflow_version integer NOT NULL,
        source_node_id text NOT NULL,
        node_id text NOT NULL,
        ended_count bigint NOT NULL
            CONSTRAINT workflow_rollups_ended_count_check CHECK (ended_count >= 0),
        completed_count bigint NOT NULL,
        failed_count bigint NOT NULL,
        flaky_count bigint NOT NULL,
        took_us bigint NOT NULL,
        cpu_us bigint NOT NULL,
        sized_count bigint NOT NULL,
        size_bytes bigint NOT NULL,
        oldest_at timestamptz NOT NULL,
        duration_marks integer[] NOT NULL,
        duration_counts bigint[] NOT NULL,
        queue_marks integer[] NOT NULL,
        queue_counts bigint[] NOT NULL,
        PRIMARY KEY (tenant_id, workflow_id, kind, span_s, starts_at, workflow_version,
                     source_node_id, node_id),
        CONSTRAINT workflow_rollups_marks_check
            CHECK (cardinality(duration_marks) = cardinality(duration_counts)
                   AND cardinality(queue_marks) = cardinality(queue_counts))
    ) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05)
    """,
    "CREATE INDEX workflow_rollups_starts_at_idx ON workflow_rollups (span_s, starts_at)",
    # A row per run that was summed up and is there still.
    "CREATE TABLE rolled_up_executions (execution_id uuid PRIMARY KEY)",
    """
    CREATE POLICY workflow_rollups_api_select ON workflow_rollups FOR SELECT TO qflow_api
     USING (tenant_id = (SELECT current_tenant_id()))
    """,
    *(
        f"CREATE POLICY {table}_maint_{verb.lower()} ON {table} FOR {verb} TO qflow_maint {rule}"
        for table, verb, rule in (
            ("workflow_rollups", "SELECT", "USING (true)"),
            ("workflow_rollups", "INSERT", "WITH CHECK (true)"),
            ("workflow_rollups", "UPDATE", "USING (true) WITH CHECK (true)"),
            ("workflow_rollups", "DELETE", "USING (starts_at < now() - interval '1 day')"),
            ("rolled_up_executions", "SELECT", "USING (true)"),
            ("rolled_up_executions", "INSERT", "WITH CHECK (true)"),
            # With the run itself, and no sooner: or it would be counted twice.
            (
                "rolled_up_executions",
                "DELETE",
                "USING (NOT EXISTS (SELECT FROM workflow_executions r WHERE r.id = execution_id))",
            ),
        )
    ),
    *(
        statement
        for table in ("workflow_rollups", "rolled_up_executions")
        for statement in (
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
            f"CREATE POLICY {table}_doctor_select ON {table} FOR SELECT TO qflow_doctor USING (true)",
            f"GRANT SELECT ON {table} TO qflow_doctor",
        )
    ),
    "GRANT SELECT ON workflow_rollups TO qflow_telemetry",
    "GRANT SELECT, INSERT, DELETE ON workflow_rollups, rolled_up_executions TO qflow_telemetry_maint",
    """
    GRANT UPDATE (ended_count, completed_count, failed_count, flaky_count, took_us, cpu_us,
                  sized_count, size_bytes, oldest_at, duration_marks, duration_counts, queue_marks,
                  queue_counts)
       ON workflow_rollups TO qflow_telemetry_maint
    """,
)

_FUNCTIONS = (
    """
    CREATE FUNCTION add_marks(
        some_marks integer[], some_counts bigint[], more_marks integer[], more_counts bigint[],
        OUT marks integer[], OUT counts bigint[]
    )
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    BEGIN ATOMIC
        SELECT COALESCE(array_agg(mark ORDER BY mark), '{}'),
               COALESCE(array_agg(counted ORDER BY mark), '{}')
          FROM (SELECT each.mark, sum(each.counted)::bigint AS counted
                  FROM (SELECT * FROM unnest(some_marks, some_counts)
                         UNION ALL
                        SELECT * FROM unnest(more_marks, more_counts)) AS each(mark, counted)
                 GROUP BY each.mark) AS summed;
    END
    """,
    # Rows that were given for the same place are added to each other first, then to what is kept, in
    # the order of their keys: two that add at once wait for each other and never in a ring.
    """
    CREATE FUNCTION add_workflow_sums(given workflow_rollups[]) RETURNS void
    LANGUAGE sql SET search_path = pg_catalog, public
    AS $$
        INSERT INTO public.workflow_rollups AS kept
        WITH place AS (
            SELECT part.tenant_id, part.workflow_id, part.kind, part.span_s, part.starts_at,
                   part.workflow_version, part.source_node_id, part.node_id,
                   sum(part.ended_count)::bigint AS ended_count,
                   sum(part.completed_count)::bigint AS completed_count,
                   sum(part.failed_count)::bigint AS failed_count,
                   sum(part.flaky_count)::bigint AS flaky_count,
                   sum(part.took_us)::bigint AS took_us, sum(part.cpu_us)::bigint AS cpu_us,
                   sum(part.sized_count)::bigint AS sized_count,
                   sum(part.size_bytes)::bigint AS size_bytes, min(part.oldest_at) AS oldest_at,
                   array_agg(part) AS parts
              FROM unnest(given) AS part
             GROUP BY 1, 2, 3, 4, 5, 6, 7, 8)
        SELECT place.tenant_id, place.workflow_id, place.kind, place.span_s, place.starts_at,
               place.workflow_version, place.source_node_id, place.node_id, place.ended_count,
               place.completed_count, place.failed_count, place.flaky_count, place.took_us,
               place.cpu_us, place.sized_count, place.size_bytes, place.oldest_at,
               took.marks, took.counts, queued.marks, queued.counts
          FROM place
         CROSS JOIN LATERAL (
               SELECT COALESCE(array_agg(mark ORDER BY mark), '{}') AS marks,
                      COALESCE(array_agg(counted ORDER BY mark), '{}') AS counts
                 FROM (SELECT each.mark, sum(each.counted)::bigint AS counted
                         FROM unnest(place.parts) AS part,
                              unnest(part.duration_marks, part.duration_counts) AS each(mark, counted)
                        GROUP BY each.mark) AS summed) AS took
         CROSS JOIN LATERAL (
               SELECT COALESCE(array_agg(mark ORDER BY mark), '{}') AS marks,
                      COALESCE(array_agg(counted ORDER BY mark), '{}') AS counts
                 FROM (SELECT each.mark, sum(each.counted)::bigint AS counted
                         FROM unnest(place.parts) AS part,
                              unnest(part.queue_marks, part.queue_counts) AS each(mark, counted)
                        GROUP BY each.mark) AS summed) AS queued
         ORDER BY 1, 2, 3, 4, 5, 6, 7, 8
            ON CONFLICT (tenant_id, workflow_id, kind, span_s, starts_at, workflow_version,
                         source_node_id, node_id) DO UPDATE
           SET ended_count = kept.ended_count + EXCLUDED.ended_count,
               completed_count = kept.completed_count + EXCLUDED.completed_count,
               failed_count = kept.failed_count + EXCLUDED.failed_count,
               flaky_count = kept.flaky_count + EXCLUDED.flaky_count,
               took_us = kept.took_us + EXCLUDED.took_us,
               cpu_us = kept.cpu_us + EXCLUDED.cpu_us,
               sized_count = kept.sized_count + EXCLUDED.sized_count,
               size_bytes = kept.size_bytes + EXCLUDED.size_bytes,
               oldest_at = LEAST(kept.oldest_at, EXCLUDED.oldest_at),
               (duration_marks, duration_counts) = (
                   SELECT marks, counts
                     FROM public.add_marks(kept.duration_marks, kept.duration_counts,
                          EXCLUDED.duration_marks, EXCLUDED.duration_counts)),
               (queue_marks, queue_counts) = (
                   SELECT marks, counts
                     FROM public.add_marks(kept.queue_marks, kept.queue_counts,
                          EXCLUDED.queue_marks, EXCLUDED.queue_counts))
    $$
    """,
    # A run belongs to the hour in which it was created, as it does for whoever asks. Of elements and
    # turns only the place is kept: `load[3]#2` is `load`. What a runner says it took is taken for a
    # number of a possible size, or for nothing: one strange row must hold up neither sums nor retention.
    """
    CREATE FUNCTION roll_up_executions(of_runs uuid[]) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        fresh uuid[];
    BEGIN
        IF cardinality(of_runs) = 0 THEN
            RETURN 0;
        END IF;
        -- One at a time: what waits for a row of another's never holds one that the other waits for.
        PERFORM pg_advisory_xact_lock(hashtext('qflow.telemetry'), hashtext('workflow_rollups'));
        WITH written AS (
            INSERT INTO public.rolled_up_executions
            SELECT id FROM public.workflow_executions
             WHERE id = ANY (of_runs) AND completed_at IS NOT NULL AND workflow_id IS NOT NULL
             ORDER BY id
                ON CONFLICT DO NOTHING
         RETURNING execution_id)
        SELECT array_agg(execution_id) INTO fresh FROM written;
        IF fresh IS NULL THEN
            RETURN 0;
        END IF;
        PERFORM public.add_workflow_sums(array_agg(ROW(
                   tenant_id, workflow_id, kind, 3600, starts_at, workflow_version, source_node_id,
                   node_id, ended_count, completed_count, failed_count, flaky_count, took_us,
                   cpu_us, sized_count, size_bytes, oldest_at,
                   array_remove(ARRAY[took_mark], NULL),
                   CASE WHEN took_mark IS NULL THEN '{}' ELSE ARRAY[counted] END,
                   array_remove(ARRAY[queue_mark], NULL),
                   CASE WHEN queue_mark IS NULL THEN '{}' ELSE ARRAY[counted] END
               )::public.workflow_rollups))
          FROM (
            WITH run AS MATERIALIZED (
                SELECT id, tenant_id, workflow_id, workflow_version, status, created_at, queued_at,
                       started_at, completed_at, resource_usage,
                       date_trunc('hour', created_at, 'UTC') AS starts_at
                  FROM public.workflow_executions
                 WHERE id = ANY (fresh)),
            one AS (
                SELECT run.tenant_id, run.workflow_id, 'run' AS kind, run.starts_at,
                       run.workflow_version, '' AS source_node_id, '' AS node_id, run.status,
                       false AS is_retried, run.completed_at - run.started_at AS took,
                       run.started_at - run.queued_at AS queued, run.resource_usage,
                       NULL::bigint AS size_bytes, run.created_at
                  FROM run
                 UNION ALL
                SELECT run.tenant_id, run.workflow_id, 'node', run.starts_at, run.workflow_version, '',
                       COALESCE(node.definition_node_id, node.node_id), node.status,
                       node.retry_count > 0, node.completed_at - node.started_at, NULL,
                       node.resource_usage, NULL, run.created_at
                  FROM run
                  JOIN public.node_executions AS node ON node.workflow_execution_id = run.id
                 WHERE node.started_at IS NOT NULL AND node.completed_at IS NOT NULL
                 UNION ALL
                SELECT run.tenant_id, run.workflow_id, 'edge', run.starts_at, run.workflow_version,
                       regexp_replace(flow.source_node_id, '[[#].*', ''),
                       regexp_replace(flow.target_node_id, '[[#].*', ''), 'completed', false,
                       (COALESCE(flow.serialization_time_us, 0) + COALESCE(flow.transfer_time_us, 0))
                           * interval '1 us', NULL, NULL, flow.data_size_bytes, run.created_at
                  FROM run
                  JOIN public.node_data_flow AS flow ON flow.workflow_execution_id = run.id)
            SELECT tenant_id, workflow_id, kind, starts_at, workflow_version, source_node_id,
                   node_id, count(*) FILTER (WHERE status IN ('completed', 'failed', 'cancelled'))
                       AS ended_count,
                   count(*) FILTER (WHERE status = 'completed') AS completed_count,
                   count(*) FILTER (WHERE status = 'failed') AS failed_count,
                   count(*) FILTER (WHERE status = 'completed' AND is_retried) AS flaky_count,
                   COALESCE(sum(date_part('epoch', took) * 1000000), 0)::bigint AS took_us,
                   COALESCE(sum(LEAST(GREATEST((resource_usage ->> 'cpu_us')::numeric, 0), 1e15))
                       FILTER (WHERE jsonb_typeof(resource_usage -> 'cpu_us') = 'number'), 0)::bigint
                       AS cpu_us,
                   count(size_bytes) AS sized_count,
                   COALESCE(sum(size_bytes), 0)::bigint AS size_bytes,
                   min(created_at) AS oldest_at,
                   CASE WHEN status = 'completed'
                        THEN public.metric_mark(date_part('epoch', took) * 1000) END AS took_mark,
                   public.metric_mark(date_part('epoch', queued) * 1000) AS queue_mark,
                   count(*) AS counted
              FROM one
             GROUP BY tenant_id, workflow_id, kind, starts_at, workflow_version, source_node_id,
                      node_id, took_mark, queue_mark) AS alike;
        RETURN cardinality(fresh);
    END $$
    """,
)

# Hours of days that are over become days. A run that ends later than that makes a new hour, which goes
# the same way.
_CLEANUP = """
    CREATE FUNCTION cleanup_old_workflow_rollups(
        of_span_s integer, keep interval, batch integer DEFAULT 5000
    ) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        gone public.workflow_rollups[];
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtext('qflow.telemetry'), hashtext('workflow_rollups'));
        WITH removed AS (
            DELETE FROM public.workflow_rollups AS kept WHERE kept.ctid = ANY (ARRAY(
                SELECT ctid FROM public.workflow_rollups
                 WHERE span_s = of_span_s
                   AND starts_at < date_trunc('day', clock_timestamp() - keep, 'UTC')
                 ORDER BY starts_at LIMIT batch))
         RETURNING kept)
        SELECT array_agg(kept) INTO gone FROM removed;
        IF of_span_s = 3600 AND gone IS NOT NULL THEN
            PERFORM public.add_workflow_sums(array_agg(ROW(
                       tenant_id, workflow_id, kind, 86400, date_trunc('day', starts_at, 'UTC'),
                       workflow_version, source_node_id, node_id, ended_count, completed_count,
                       failed_count, flaky_count, took_us, cpu_us, sized_count, size_bytes,
                       oldest_at, duration_marks, duration_counts, queue_marks, queue_counts
                   )::public.workflow_rollups))
              FROM unnest(gone);
        END IF;
        RETURN COALESCE(cardinality(gone), 0);
    END $$
"""

_BEFORE: str = vars(import_module("migrations.versions.0045_purge_whole_runs"))["_EXECUTIONS"]
_HIDDEN = "        -- Hidden first: from here on nobody reads half an execution."
_COUNTED = """\
        -- Counted before anything of them goes, if they were not yet.
        PERFORM public.roll_up_executions(ARRAY(
            SELECT victim FROM unnest(victims) AS victim
             WHERE NOT EXISTS (
                SELECT FROM public.rolled_up_executions WHERE execution_id = victim)));

"""
_GONE = "            DELETE FROM public.workflow_executions WHERE id = ANY (victims);\n"
_ROWS = "            GET DIAGNOSTICS gone = ROW_COUNT;\n"
_FORGOTTEN = """\
            DELETE FROM public.rolled_up_executions WHERE execution_id = ANY (victims);
"""
_METRICS = "        DELETE FROM public.performance_metrics WHERE id IN ("
_LASTING = """\
        -- Their bytes go after the commit: no crash of the database may undo it.
        IF cardinality(held) > 0 THEN
            PERFORM set_config('synchronous_commit', reset_val, true)
               FROM pg_settings WHERE name = 'synchronous_commit';
        END IF;
"""
_EXECUTIONS = (
    _BEFORE.replace(_HIDDEN, _COUNTED + _HIDDEN)
    .replace(_METRICS, _LASTING + _METRICS)
    .replace(_GONE + _ROWS, _GONE + _ROWS + _FORGOTTEN)
)
assert all(part in _EXECUTIONS for part in (_COUNTED, _LASTING, _FORGOTTEN))

_CLEANUP_SIGNATURE = "cleanup_old_workflow_rollups(integer, interval, integer)"
_SIGNATURES = (
    "roll_up_executions(uuid[])",
    "add_workflow_sums(workflow_rollups[])",
    "add_marks(integer[], bigint[], integer[], bigint[])",
    _CLEANUP_SIGNATURE,
)


def upgrade() -> None:
    """Make the sums; telemetry fills them from the runs that are there, oldest first."""
    run((*_TABLES, *_FUNCTIONS, _CLEANUP))
    for signature in _SIGNATURES:
        run(
            (
                f"REVOKE ALL ON FUNCTION {signature} FROM PUBLIC",
                f"GRANT EXECUTE ON FUNCTION {signature} TO qflow_maint",
            )
        )
    run((_EXECUTIONS,))


def downgrade() -> None:
    """Forget the sums."""
    run(
        (
            _BEFORE,
            *(f"DROP FUNCTION {signature}" for signature in reversed(_SIGNATURES[1:])),
            "DROP FUNCTION roll_up_executions(uuid[])",
            "DROP TABLE workflow_rollups",
            "DROP TABLE rolled_up_executions",
        )
    )
