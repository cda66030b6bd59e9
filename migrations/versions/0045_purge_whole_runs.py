"""Runs that are due go whole, and are hidden when it is their turn and no sooner."""

from __future__ import annotations

from importlib import import_module

from migrations.sql import run

revision = "0045"
down_revision = "0044"

# So many runs are taken as leave together no more leaves than a transaction may delete; they were
# a fixed number before, whose leaves took two transactions more than their runs, and as many again
# were hidden each time. One run alone may have more: it stays hidden until its last leaves are gone.
# Nodes are found where they lie: by their keys each would be looked up twice.
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
        victims := ARRAY(
            SELECT id FROM public.workflow_executions
             WHERE purge_started_at IS NOT NULL
             ORDER BY purge_started_at, id LIMIT batch
               FOR UPDATE SKIP LOCKED);
        IF cardinality(victims) < batch THEN
            victims := victims || ARRAY(
                SELECT id FROM public.workflow_executions
                 WHERE completed_at IS NOT NULL
                   AND status IN ('completed', 'failed', 'cancelled')
                   AND completed_at < clock_timestamp() - keep
                   AND purge_started_at IS NULL
                 ORDER BY completed_at, id LIMIT batch - cardinality(victims)
                   FOR UPDATE SKIP LOCKED);
        END IF;
        IF cardinality(victims) = 0 THEN
            RETURN 0;
        END IF;
        victims := ARRAY(
            SELECT counted.id
              FROM (SELECT victim.id, victim.place,
                           sum(node.count) OVER (ORDER BY victim.place) AS total
                      FROM unnest(victims) WITH ORDINALITY AS victim(id, place)
                     CROSS JOIN LATERAL (
                        SELECT count(*) FROM (
                            SELECT FROM public.node_executions
                             WHERE workflow_execution_id = victim.id LIMIT leaves) AS lying
                           ) AS node) AS counted
             WHERE counted.total < leaves OR counted.place = 1
             ORDER BY counted.place);

        -- Hidden first: from here on nobody reads half an execution.
        UPDATE public.workflow_executions SET purge_started_at = clock_timestamp()
         WHERE id = ANY (victims) AND purge_started_at IS NULL
           AND completed_at IS NOT NULL;

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
        DELETE FROM public.node_logs WHERE (workflow_execution_id, sequence) IN (
            SELECT workflow_execution_id, sequence FROM public.node_logs
             WHERE workflow_execution_id = ANY (victims) LIMIT leaves - removed);
        GET DIAGNOSTICS gone = ROW_COUNT;
        removed := removed + gone;
        DELETE FROM public.node_data_flow WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM public.node_data_flow
             WHERE workflow_execution_id = ANY (victims) LIMIT leaves - removed));
        GET DIAGNOSTICS gone = ROW_COUNT;
        removed := removed + gone;
        DELETE FROM public.node_executions WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM public.node_executions
             WHERE workflow_execution_id = ANY (victims) LIMIT leaves - removed));
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
    run((_EXECUTIONS,))


def downgrade() -> None:
    before = vars(import_module("migrations.versions.0024_node_logs"))
    run((before["_EXECUTIONS"].replace("@LOGS@", before["_LOGS"]),))
