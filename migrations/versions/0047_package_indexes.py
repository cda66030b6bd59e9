"""Private package indexes of tenants, and the secrets that they ask for.

An index names its secret and holds nothing of it. Whoever names an address is sent the secret: so
the same people change indexes who set secrets. A secret that an index asks for is not deleted.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0047"
down_revision = "0046"

_TENANT = "tenant_id = (SELECT current_tenant_id())"
_USER = "(SELECT current_user_id())"
_LED = f"""{_TENANT} AND (SELECT current_role_name()) IN ('admin', 'user')
    AND (SELECT member_role((SELECT current_tenant_id()))) = 'admin'"""
_OWN_SECRET = f"""(secret_id IS NULL OR EXISTS (SELECT 1 FROM secrets parent
    WHERE parent.id = package_indexes.secret_id AND parent.{_TENANT}))"""

_UP = (
    """
    CREATE TABLE package_indexes (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        name varchar(31) NOT NULL
            CONSTRAINT package_indexes_name_check CHECK (name ~ '^[a-z][a-z0-9]*(-[a-z0-9]+)*$'),
        url text NOT NULL
            CONSTRAINT package_indexes_url_check CHECK (octet_length(url) BETWEEN 1 AND 2048),
        username varchar(255) NOT NULL DEFAULT '',
        secret_id uuid REFERENCES secrets(id),
        revision bigint NOT NULL DEFAULT 1,
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        updated_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT package_indexes_tenant_id_name_key UNIQUE (tenant_id, name),
        CONSTRAINT package_indexes_secret_check CHECK (secret_id IS NULL OR username <> '')
    )
    """,
    "CREATE INDEX package_indexes_secret_id_idx ON package_indexes (secret_id)",
    "CREATE INDEX package_indexes_created_by_idx ON package_indexes (created_by)",
    "CREATE INDEX package_indexes_updated_by_idx ON package_indexes (updated_by)",
    """
    CREATE TRIGGER package_indexes_touch BEFORE UPDATE ON package_indexes
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
    """,
    *(f"ALTER TABLE package_indexes {what} ROW LEVEL SECURITY" for what in ("ENABLE", "FORCE")),
    f"""
    CREATE POLICY package_indexes_api_select ON package_indexes FOR SELECT TO qflow_api
     USING ({_TENANT})
    """,
    f"""
    CREATE POLICY package_indexes_api_delete ON package_indexes FOR DELETE TO qflow_api
     USING ({_LED})
    """,
    f"""
    CREATE POLICY package_indexes_api_insert ON package_indexes FOR INSERT TO qflow_api
      WITH CHECK ({_LED} AND created_by = {_USER} AND updated_by = {_USER} AND {_OWN_SECRET})
    """,
    f"""
    CREATE POLICY package_indexes_api_update ON package_indexes FOR UPDATE TO qflow_api
     USING ({_LED}) WITH CHECK ({_LED} AND updated_by = {_USER} AND {_OWN_SECRET})
    """,
    """
    CREATE POLICY package_indexes_engine_select ON package_indexes FOR SELECT TO qflow_engine
     USING (true)
    """,
    "GRANT SELECT, INSERT, DELETE ON package_indexes TO qflow_runner",
    "GRANT UPDATE (url, username, secret_id, revision, updated_by) ON package_indexes TO qflow_runner",
    "GRANT SELECT ON package_indexes TO qflow_runner_engine",
)


def upgrade() -> None:
    run(_UP)


def downgrade() -> None:
    run(("DROP TABLE package_indexes",))
