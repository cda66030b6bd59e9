"""Custom types: what they need to be changed, and which node versions were proven with them.

A node version keeps the shape that it was proven with in its own row; `custom_type_uses` only says
that it took it from a custom type, and at which version of that.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0016"
down_revision = "0015"

_COLUMNS = """
    ALTER TABLE custom_types
        ADD COLUMN description text NOT NULL DEFAULT '',
        ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now(),
        ADD COLUMN version integer NOT NULL DEFAULT 1
            CONSTRAINT custom_types_version_check CHECK (version >= 1)
"""

# A source names a type without saying whose: within a tenant it means one.
_UNIQUE = """
    ALTER TABLE custom_types
        ADD CONSTRAINT custom_types_tenant_id_name_key UNIQUE (tenant_id, name)
"""

_TOUCH = """
    CREATE TRIGGER custom_types_touch BEFORE UPDATE ON custom_types
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
"""

_USES = """
    CREATE TABLE custom_type_uses (
        custom_type_id uuid NOT NULL REFERENCES custom_types(id) ON DELETE CASCADE,
        node_version_id uuid NOT NULL REFERENCES python_node_versions(id) ON DELETE CASCADE,
        custom_type_version integer NOT NULL
            CONSTRAINT custom_type_uses_custom_type_version_check CHECK (custom_type_version >= 1),
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        PRIMARY KEY (custom_type_id, node_version_id)
    )
"""

_OWN = "tenant_id = (SELECT current_tenant_id())"
_WRITER = "(SELECT current_role_name()) IN ('admin', 'user')"
_POLICIES = (
    "ALTER TABLE custom_type_uses ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE custom_type_uses FORCE ROW LEVEL SECURITY",
    f"""
    CREATE POLICY custom_type_uses_api_select ON custom_type_uses
    FOR SELECT TO qflow_api USING ({_OWN})
    """,
    f"""
    CREATE POLICY custom_type_uses_api_insert ON custom_type_uses
    FOR INSERT TO qflow_api
    WITH CHECK ({_OWN} AND {_WRITER}
        AND EXISTS (SELECT 1 FROM custom_types parent WHERE parent.id = custom_type_id
                       AND parent.{_OWN})
        AND EXISTS (SELECT 1 FROM python_node_versions version
                      JOIN python_nodes node ON node.id = version.node_id
                     WHERE version.id = node_version_id AND node.{_OWN}))
    """,
)


def upgrade() -> None:
    run(
        (
            _COLUMNS,
            _UNIQUE,
            _TOUCH,
            _USES,
            """
            CREATE INDEX custom_type_uses_node_version_id_idx ON custom_type_uses (node_version_id)
            """,
            "CREATE INDEX custom_type_uses_tenant_id_idx ON custom_type_uses (tenant_id)",
            "GRANT UPDATE (description, version) ON custom_types TO qflow_registry",
            "GRANT SELECT, INSERT ON custom_type_uses TO qflow_registry",
            *_POLICIES,
        )
    )


def downgrade() -> None:
    run(
        (
            "DROP TABLE custom_type_uses",
            "DROP TRIGGER custom_types_touch ON custom_types",
            """
            ALTER TABLE custom_types
                DROP CONSTRAINT custom_types_tenant_id_name_key,
                DROP COLUMN description, DROP COLUMN updated_at, DROP COLUMN version
            """,
        )
    )
