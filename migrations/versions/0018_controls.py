"""Controls over runs: keys of business, times to start, priorities, runs of one node, reuse of results.

A run of a node alone has no workflow: the seed's column may be empty then, and the node's version
stands in its place. Rows that exist need no change.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0018"
down_revision = "0017"

_COLUMNS = (
    """
    ALTER TABLE workflow_executions
        ADD COLUMN priority smallint NOT NULL DEFAULT 0,
        ADD COLUMN start_at timestamptz,
        ADD COLUMN node_version_id uuid,
        ALTER COLUMN workflow_id DROP NOT NULL,
        ALTER COLUMN workflow_version DROP NOT NULL
    """,
    """
    ALTER TABLE workflow_executions
        ADD CONSTRAINT workflow_executions_priority_check
            CHECK (priority BETWEEN -100 AND 100) NOT VALID,
        ADD CONSTRAINT workflow_executions_subject_check
            CHECK ((workflow_id IS NULL) = (workflow_version IS NULL)
               AND (workflow_id IS NULL) = (node_version_id IS NOT NULL)) NOT VALID,
        ADD CONSTRAINT workflow_executions_node_version_fkey FOREIGN KEY (node_version_id)
            REFERENCES python_node_versions (id) ON DELETE CASCADE NOT VALID
    """,
    "ALTER TABLE workflow_executions VALIDATE CONSTRAINT workflow_executions_priority_check",
    "ALTER TABLE workflow_executions VALIDATE CONSTRAINT workflow_executions_subject_check",
    "ALTER TABLE workflow_executions VALIDATE CONSTRAINT workflow_executions_node_version_fkey",
    """
    ALTER TABLE execution_pins
        ADD COLUMN node_version_id uuid REFERENCES python_node_versions (id) ON DELETE CASCADE,
        ADD COLUMN inputs jsonb,
        ALTER COLUMN workflow_id DROP NOT NULL,
        ALTER COLUMN workflow_version DROP NOT NULL
    """,
    """
    ALTER TABLE execution_pins
        ADD CONSTRAINT execution_pins_subject_check
            CHECK ((workflow_id IS NULL) = (node_version_id IS NOT NULL)) NOT VALID
    """,
    "ALTER TABLE execution_pins VALIDATE CONSTRAINT execution_pins_subject_check",
    # Of a result that was taken over: the node execution that gave it. No key, since that may be
    # purged before.
    "ALTER TABLE node_executions ADD COLUMN copied_from uuid",
)

# Every label of a row, hashed with whose row it is: one tenant's search never walks another's rows.
_MARKS = (
    """
    CREATE FUNCTION label_marks(whose uuid, labels jsonb) RETURNS bigint[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog
    AS $$
        SELECT array_agg(hashtextextended(value, hashtextextended(key,
                         hashtextextended(whose::text, 0))))
          FROM jsonb_each_text(labels)
    $$
    """,
    "REVOKE ALL ON FUNCTION label_marks(uuid, jsonb) FROM PUBLIC",
    # Whoever writes a row computes its entries in the index.
    "GRANT EXECUTE ON FUNCTION label_marks(uuid, jsonb) TO qflow_api, qflow_engine, qflow_maint",
)

_INDEXES = (
    # By key alone in lists, with the workflow where a start looks for earlier runs.
    "DROP INDEX workflow_executions_business_key_idx",
    """
    CREATE INDEX workflow_executions_business_key_idx
        ON workflow_executions (tenant_id, business_key, workflow_id)
     WHERE business_key IS NOT NULL
    """,
    # What a start waits for: one open run has the key, until it is over or asked to stop.
    """
    CREATE UNIQUE INDEX workflow_executions_business_key_open_key
        ON workflow_executions (tenant_id, workflow_id, business_key)
     WHERE business_key IS NOT NULL AND completed_at IS NULL AND cancel_requested_at IS NULL
    """,
    # What is rare among many is what lists are asked for; what completed fills any page soon.
    """
    CREATE INDEX workflow_executions_open_idx
        ON workflow_executions (tenant_id, created_at DESC, id DESC)
     WHERE status IN ('pending', 'running', 'paused')
    """,
    """
    CREATE INDEX workflow_executions_failed_idx
        ON workflow_executions (tenant_id, created_at DESC, id DESC) WHERE status = 'failed'
    """,
    """
    CREATE INDEX workflow_executions_cancelled_idx
        ON workflow_executions (tenant_id, created_at DESC, id DESC) WHERE status = 'cancelled'
    """,
    """
    CREATE INDEX workflow_executions_ended_idx
        ON workflow_executions (tenant_id, completed_at DESC, id DESC)
     WHERE completed_at IS NOT NULL
    """,
    # Read by the engine's login, which gives candidates: row-level security keeps `@>` from it.
    """
    CREATE INDEX workflow_executions_labels_idx
        ON workflow_executions USING gin (label_marks(tenant_id, labels)) WITH (fastupdate = off)
     WHERE labels <> '{}'
    """,
    """
    CREATE INDEX workflow_executions_node_version_id_idx ON workflow_executions (node_version_id)
     WHERE node_version_id IS NOT NULL
    """,
    """
    CREATE INDEX execution_pins_node_version_id_idx ON execution_pins (node_version_id)
     WHERE node_version_id IS NOT NULL
    """,
)

# Pins with inputs of their own are of the runs that were made with them, and no start takes them.
_PINS = """
    CREATE OR REPLACE FUNCTION cleanup_unused_pins(
        keep interval DEFAULT '30 days', batch integer DEFAULT 1000
    ) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        removed bigint;
    BEGIN
        DELETE FROM public.execution_pins WHERE id IN (
            SELECT p.id FROM public.execution_pins p
             WHERE p.created_at < clock_timestamp() - keep
               AND p.workflow_id IS NOT NULL
               AND ({edited} EXISTS (
                    SELECT FROM public.workflow_versions w
                     CROSS JOIN jsonb_array_elements(w.nodes) AS place
                      JOIN public.python_node_versions taken
                        ON taken.id = (p.pins ->> (place ->> 'id'))::uuid
                      JOIN public.python_node_versions later
                        ON later.node_id = taken.node_id AND later.version > taken.version
                     WHERE w.workflow_id = p.workflow_id AND w.version = p.workflow_version
                       AND COALESCE((place ->> 'version')::integer, 0) = 0
                       AND later.created_at < clock_timestamp() - keep))
               AND NOT EXISTS (
                    SELECT FROM public.workflow_executions e
                     WHERE e.workflow_id = p.workflow_id AND e.pins_id = p.id)
             LIMIT batch);
        GET DIAGNOSTICS removed = ROW_COUNT;
        RETURN removed;
    END $$
"""
_UNUSED = """created_at < now() - interval '1 day' AND NOT EXISTS
    (SELECT 1 FROM workflow_executions run
      WHERE run.workflow_id = execution_pins.workflow_id AND run.pins_id = execution_pins.id)"""


def upgrade() -> None:
    run(_COLUMNS)
    run(_MARKS)
    run(_INDEXES)
    run(
        (
            _PINS.format(edited="p.inputs IS NOT NULL OR"),
            f"""
            ALTER POLICY execution_pins_maint_delete ON execution_pins
            USING (workflow_id IS NOT NULL AND {_UNUSED})
            """,
        )
    )


def downgrade() -> None:
    run(
        (
            # What the release before knows no form of.
            "DELETE FROM workflow_executions WHERE workflow_id IS NULL",
            "DELETE FROM execution_pins WHERE workflow_id IS NULL",
            f"ALTER POLICY execution_pins_maint_delete ON execution_pins USING ({_UNUSED})",
            _PINS.format(edited=""),
            """
            DROP INDEX workflow_executions_business_key_open_key, workflow_executions_open_idx,
                workflow_executions_failed_idx, workflow_executions_cancelled_idx,
                workflow_executions_ended_idx, workflow_executions_labels_idx,
                workflow_executions_business_key_idx
            """,
            """
            CREATE INDEX workflow_executions_business_key_idx
                ON workflow_executions (tenant_id, workflow_id, business_key)
             WHERE business_key IS NOT NULL
            """,
            "DROP FUNCTION label_marks(uuid, jsonb)",
            "ALTER TABLE node_executions DROP COLUMN copied_from",
            """
            ALTER TABLE execution_pins
                DROP COLUMN node_version_id, DROP COLUMN inputs,
                ALTER COLUMN workflow_id SET NOT NULL, ALTER COLUMN workflow_version SET NOT NULL
            """,
            """
            ALTER TABLE workflow_executions
                DROP COLUMN priority, DROP COLUMN start_at, DROP COLUMN node_version_id,
                ALTER COLUMN workflow_id SET NOT NULL, ALTER COLUMN workflow_version SET NOT NULL
            """,
        )
    )
