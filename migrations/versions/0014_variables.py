"""Variables: plain typed values of a tenant or of one of its workflows, and what a run took of them.

A value is kept as the exact JSON text, and what a start took stands beside the node versions that
it took: runs that took the same share the row, and nothing that changes later reaches them.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0014"
down_revision = "0013"

_TENANT = "tenant_id = (SELECT current_tenant_id())"
_USER = "(SELECT current_user_id())"
_WRITTEN = f"{_TENANT} AND (SELECT current_role_name()) IN ('admin', 'user')"
_OWN_WORKFLOW = f"""(workflow_id IS NULL OR EXISTS (
    SELECT 1 FROM workflows parent WHERE parent.id = variables.workflow_id AND parent.{_TENANT}))"""

_TABLE = (
    """
    CREATE TABLE variables (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        workflow_id uuid REFERENCES workflows(id) ON DELETE CASCADE,
        name varchar(63) NOT NULL
            CONSTRAINT variables_name_check CHECK (name ~ '^[A-Za-z_][A-Za-z0-9_]*$'),
        description text NOT NULL DEFAULT '',
        type jsonb NOT NULL
            CONSTRAINT variables_type_check CHECK (jsonb_typeof(type) = 'object'),
        value json NOT NULL
            CONSTRAINT variables_value_check CHECK (octet_length(value::text) <= 65536),
        revision bigint NOT NULL DEFAULT 1,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        updated_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE UNIQUE INDEX variables_tenant_key ON variables (tenant_id, name) WHERE workflow_id IS NULL",
    "CREATE UNIQUE INDEX variables_workflow_key ON variables (workflow_id, name)",
    """
    CREATE INDEX variables_tenant_id_created_at_idx
        ON variables (tenant_id, created_at DESC, id DESC)
    """,
    "CREATE INDEX variables_created_by_idx ON variables (created_by)",
    "CREATE INDEX variables_updated_by_idx ON variables (updated_by)",
    """
    CREATE TRIGGER variables_touch BEFORE UPDATE ON variables
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
    """,
    "ALTER TABLE variables ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE variables FORCE ROW LEVEL SECURITY",
    # Null where a run took none: the rows of the release before stay as they are.
    "ALTER TABLE execution_pins ADD COLUMN variables jsonb",
)

_POLICIES = (
    f"CREATE POLICY variables_api_select ON variables FOR SELECT TO qflow_api USING ({_TENANT})",
    f"""
    CREATE POLICY variables_api_insert ON variables FOR INSERT TO qflow_api
      WITH CHECK ({_WRITTEN} AND created_by = {_USER} AND updated_by = {_USER} AND {_OWN_WORKFLOW})
    """,
    f"""
    CREATE POLICY variables_api_update ON variables FOR UPDATE TO qflow_api
     USING ({_WRITTEN}) WITH CHECK ({_WRITTEN} AND updated_by = {_USER} AND {_OWN_WORKFLOW})
    """,
    f"CREATE POLICY variables_api_delete ON variables FOR DELETE TO qflow_api USING ({_WRITTEN})",
    "CREATE POLICY variables_engine_select ON variables FOR SELECT TO qflow_engine USING (true)",
)

_GRANTS = (
    "GRANT SELECT, INSERT, DELETE ON variables TO qflow_registry",
    "GRANT UPDATE (description, type, value, revision, updated_by) ON variables TO qflow_registry",
    "GRANT SELECT ON variables TO qflow_orchestrator_engine",
)


def upgrade() -> None:
    run(_TABLE)
    run(_POLICIES)
    run(_GRANTS)


def downgrade() -> None:
    run(
        (
            "ALTER TABLE execution_pins DROP COLUMN variables",
            "DROP TABLE variables",
        )
    )
