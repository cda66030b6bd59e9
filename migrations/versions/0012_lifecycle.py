"""Copies, deletion and sharing: where a copy comes from, which workflows use a node, who sees what.

- `cloned_from_*` tells what a copy was made of. No foreign key: a copy outlives its model.
- `workflow_node_uses` has a row for each node of a workflow's current version. It is the workflow's
  own graph, indexed: a trigger keeps it, so that no writer of graphs can forget it. A node is found
  in it by equality, which row-level security lets an index answer; a search in the JSON is not.
  As in the graph itself, `node_id` is no foreign key: a draft in which a node is gone is kept.
  Nor is `tenant_id`, which is the workflow's: a graph of 10,000 nodes would pay for it 10,000 times.
- A public node or a template that is deleted is seen by its own tenant alone.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0012"
down_revision = "0011"

_ORIGINS = tuple(
    f"""
    ALTER TABLE {table}
        ADD COLUMN cloned_from_id uuid,
        ADD COLUMN cloned_from_version integer,
        ADD CONSTRAINT {table}_cloned_from_check
            CHECK ((cloned_from_id IS NULL) = (cloned_from_version IS NULL)
                   AND cloned_from_version >= 1)
    """
    for table in ("python_nodes", "workflows")
)

_USES = (
    """
    CREATE TABLE workflow_node_uses (
        workflow_id uuid NOT NULL REFERENCES workflows(id) ON DELETE CASCADE,
        node_id uuid NOT NULL,
        tenant_id uuid NOT NULL,
        PRIMARY KEY (workflow_id, node_id)
    )
    """,
    "CREATE INDEX workflow_node_uses_node_id_idx ON workflow_node_uses (node_id, tenant_id)",
    """
    CREATE FUNCTION keep_node_uses() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        used uuid[] := ARRAY(
            SELECT DISTINCT place.node_id
              FROM jsonb_to_recordset(NEW.nodes) AS place (node_id uuid)
             WHERE place.node_id IS NOT NULL
             ORDER BY place.node_id);
    BEGIN
        IF TG_OP = 'UPDATE' THEN
            DELETE FROM public.workflow_node_uses
             WHERE workflow_id = NEW.id AND node_id <> ALL (used);
        END IF;
        INSERT INTO public.workflow_node_uses (workflow_id, node_id, tenant_id)
        SELECT NEW.id, each.node_id, NEW.tenant_id
          FROM unnest(used) AS each (node_id)
            ON CONFLICT DO NOTHING;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER workflows_node_uses_insert AFTER INSERT ON workflows
    FOR EACH ROW EXECUTE FUNCTION keep_node_uses()
    """,
    """
    CREATE TRIGGER workflows_node_uses_update AFTER UPDATE OF nodes ON workflows
    FOR EACH ROW WHEN (OLD.nodes IS DISTINCT FROM NEW.nodes) EXECUTE FUNCTION keep_node_uses()
    """,
    "REVOKE ALL ON FUNCTION keep_node_uses() FROM PUBLIC",
)

# The owner sees nobody's rows while row-level security is forced upon it. The table is locked
# already, and everything here is one transaction.
_BACKFILL = (
    "ALTER TABLE workflows NO FORCE ROW LEVEL SECURITY",
    """
    INSERT INTO workflow_node_uses (workflow_id, node_id, tenant_id)
    SELECT DISTINCT workflow.id, place.node_id, workflow.tenant_id
      FROM workflows AS workflow
     CROSS JOIN jsonb_to_recordset(workflow.nodes) AS place (node_id uuid)
     WHERE place.node_id IS NOT NULL
    """,
    "ALTER TABLE workflows FORCE ROW LEVEL SECURITY",
)

_TENANT = "tenant_id = (SELECT current_tenant_id())"
_WRITTEN = f"{_TENANT} AND (SELECT current_role_name()) IN ('admin', 'user')"
_OF_OWN_WORKFLOW = f"""{_WRITTEN} AND EXISTS (
    SELECT 1 FROM workflows parent
     WHERE parent.id = workflow_node_uses.workflow_id AND parent.{_TENANT})"""

_RULES = (
    "ALTER TABLE workflow_node_uses ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE workflow_node_uses FORCE ROW LEVEL SECURITY",
    f"""
    CREATE POLICY workflow_node_uses_api_select ON workflow_node_uses
    FOR SELECT TO qflow_api USING ({_TENANT})
    """,
    f"""
    CREATE POLICY workflow_node_uses_api_insert ON workflow_node_uses
    FOR INSERT TO qflow_api WITH CHECK ({_OF_OWN_WORKFLOW})
    """,
    f"""
    CREATE POLICY workflow_node_uses_api_delete ON workflow_node_uses
    FOR DELETE TO qflow_api USING ({_WRITTEN})
    """,
    "GRANT SELECT, INSERT, DELETE ON workflow_node_uses TO qflow_registry",
    "GRANT UPDATE (deleted_at, is_public, is_template) ON python_nodes TO qflow_registry",
    "GRANT UPDATE (deleted_at, is_template) ON workflows TO qflow_registry",
)

_SHOWN = "(SELECT current_user_id()) IS NOT NULL"


def _sharing(*, live: str) -> tuple[str, ...]:
    """Who sees nodes and workflows; `live` narrows what is shown to other tenants."""
    return (
        f"""
        ALTER POLICY python_node_access_policy ON python_nodes
        USING ({_TENANT} OR ((is_public OR is_template){live} AND {_SHOWN}))
        """,
        f"""
        ALTER POLICY workflow_access_policy ON workflows
        USING ({_TENANT} OR (is_template{live} AND {_SHOWN}))
        """,
    )


def upgrade() -> None:
    for statements in (
        _ORIGINS,
        _USES,
        _BACKFILL,
        _RULES,
        _sharing(live=" AND deleted_at IS NULL"),
    ):
        run(statements)


def downgrade() -> None:
    run(_sharing(live=""))
    run(
        (
            "REVOKE UPDATE (deleted_at, is_template) ON workflows FROM qflow_registry",
            "REVOKE UPDATE (deleted_at, is_public, is_template) ON python_nodes FROM qflow_registry",
            "DROP TRIGGER workflows_node_uses_update ON workflows",
            "DROP TRIGGER workflows_node_uses_insert ON workflows",
            "DROP FUNCTION keep_node_uses()",
            "DROP TABLE workflow_node_uses",
            "ALTER TABLE workflows DROP COLUMN cloned_from_id, DROP COLUMN cloned_from_version",
            "ALTER TABLE python_nodes DROP COLUMN cloned_from_id, DROP COLUMN cloned_from_version",
        )
    )
