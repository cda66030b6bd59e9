"""What was deleted long ago goes for good, as soon as nothing refers to it any more.

A workflow goes when no execution of it is kept and no stored version of another runs it; a node when
no stored version of any tenant's workflow holds it and no execution ran it alone. What hangs on them
goes with them: versions, tags, aliases, variables, schedules.

Before a node is changed, its author is told which schedules start the workflows that would break: the
registry reads which they are.
"""

from __future__ import annotations

from alembic import op

from migrations.sql import run

revision = "0037"
down_revision = "0036"

# Nodes and workflows that stand in a stored version, whoever owns it.
_PLACES = "jsonb_path_query_array({of}nodes, '$[*].node_id')"
_WORKFLOWS = f"""
    CREATE OR REPLACE FUNCTION cleanup_deleted_workflows(
        keep interval DEFAULT '90 days', batch integer DEFAULT 100
    ) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        removed bigint;
    BEGIN
        DELETE FROM public.workflows
         WHERE id IN (
            SELECT w.id FROM public.workflows w
             WHERE w.deleted_at < clock_timestamp() - keep
               AND NOT EXISTS (
                    SELECT FROM public.workflow_executions e WHERE e.workflow_id = w.id)
               AND NOT EXISTS (
                    SELECT FROM public.workflow_versions v
                     WHERE {_PLACES.format(of="v.")} @> jsonb_build_array(w.id::text)
                       AND v.workflow_id <> w.id)
             ORDER BY w.deleted_at, w.id LIMIT batch)
           AND deleted_at < clock_timestamp() - keep;  -- who was undeleted meanwhile stays
        GET DIAGNOSTICS removed = ROW_COUNT;
        RETURN removed;
    END $$
"""
_NODES = f"""
    CREATE OR REPLACE FUNCTION cleanup_deleted_nodes(
        keep interval DEFAULT '90 days', batch integer DEFAULT 100
    ) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        removed bigint;
    BEGIN
        DELETE FROM public.python_nodes
         WHERE id IN (
            SELECT n.id FROM public.python_nodes n
             WHERE n.deleted_at < clock_timestamp() - keep
               AND NOT EXISTS (
                    SELECT FROM public.workflow_versions v
                     WHERE {_PLACES.format(of="v.")} @> jsonb_build_array(n.id::text))
               AND NOT EXISTS (
                    SELECT FROM public.python_node_versions p
                      JOIN public.workflow_executions e ON e.node_version_id = p.id
                     WHERE p.node_id = n.id)
             ORDER BY n.deleted_at, n.id LIMIT batch)
           AND deleted_at < clock_timestamp() - keep;
        GET DIAGNOSTICS removed = ROW_COUNT;
        RETURN removed;
    END $$
"""
_FUNCTIONS = (
    "cleanup_deleted_workflows(interval, integer)",
    "cleanup_deleted_nodes(interval, integer)",
)
_TABLES = ("workflows", "python_nodes")
# Its login sees all tenants, so its policy says what is never due.
_POLICY = """
    CREATE POLICY {table}_maint_delete ON {table} FOR DELETE TO qflow_maint
     USING (deleted_at < clock_timestamp() - interval '1 day')
"""
_INDEXES = {
    "workflow_versions_places_idx": (
        f"workflow_versions USING gin ({_PLACES.format(of='')} jsonb_path_ops)"
    ),
    "workflows_deleted_at_idx": "workflows (deleted_at, id) WHERE deleted_at IS NOT NULL",
    "python_nodes_deleted_at_idx": "python_nodes (deleted_at, id) WHERE deleted_at IS NOT NULL",
}


_SCHEDULES = "(id, name, workflow_id, workflow_version, workflow_alias, paused_at, created_at)"


def upgrade() -> None:
    """Make the functions, say what their login may delete, and index what they look for."""
    run((_WORKFLOWS, _NODES, f"GRANT SELECT {_SCHEDULES} ON schedules TO qflow_registry"))
    for function in _FUNCTIONS:
        run(
            (
                f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC",
                f"GRANT EXECUTE ON FUNCTION {function} TO qflow_telemetry_maint",
            )
        )
    for table in _TABLES:
        run(
            (
                f"GRANT DELETE ON {table} TO qflow_telemetry_maint",
                f"DROP POLICY IF EXISTS {table}_maint_delete ON {table}",
                _POLICY.replace("{table}", table),
            )
        )
    with op.get_context().autocommit_block():
        for name, on in _INDEXES.items():
            # Left behind where this was killed: an index that is not valid.
            run((f"DROP INDEX CONCURRENTLY IF EXISTS {name}",))
            run((f"CREATE INDEX CONCURRENTLY {name} ON {on}",))


def downgrade() -> None:
    """Take all of it away."""
    run((f"REVOKE SELECT {_SCHEDULES} ON schedules FROM qflow_registry",))
    run(f"DROP INDEX {name}" for name in _INDEXES)
    for table in _TABLES:
        run(
            (
                f"DROP POLICY {table}_maint_delete ON {table}",
                f"REVOKE DELETE ON {table} FROM qflow_telemetry_maint",
            )
        )
    run(f"DROP FUNCTION {function}" for function in _FUNCTIONS)
