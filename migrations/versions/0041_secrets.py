"""Secrets: sealed values of tenants, their versions, and the nodes that they are granted to.

What is here opens nothing: each version is encrypted under a key of its own, and that under one that
never enters the database. The one login that reads what is sealed is the one by which runners work
for nodes; the login that answers callers can write a version, and not read it again.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0041"
down_revision = "0040"

_TENANT = "tenant_id = (SELECT current_tenant_id())"
_USER = "(SELECT current_user_id())"
# In a team its administrators decide who gets what; in a personal tenant it is the user.
_LED = f"""{_TENANT} AND (SELECT current_role_name()) IN ('admin', 'user')
    AND (SELECT member_role((SELECT current_tenant_id()))) = 'admin'"""
_OF_OWN = """EXISTS (SELECT 1 FROM secrets parent
    WHERE parent.id = {0}.secret_id AND parent.tenant_id = {0}.tenant_id)"""
_OWN_NODE = f"""EXISTS (SELECT 1 FROM python_nodes parent
    WHERE parent.id = secret_grants.node_id AND parent.{_TENANT})"""

_TABLES = (
    """
    CREATE TABLE secrets (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        name varchar(63) NOT NULL
            CONSTRAINT secrets_name_check CHECK (name ~ '^[A-Z][A-Z0-9_]*$'),
        description text NOT NULL DEFAULT '',
        current_version integer NOT NULL
            CONSTRAINT secrets_current_version_check CHECK (current_version >= 1),
        last_version integer NOT NULL
            CONSTRAINT secrets_last_version_check CHECK (last_version >= current_version),
        revision bigint NOT NULL DEFAULT 1,
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        updated_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT secrets_tenant_id_name_key UNIQUE (tenant_id, name)
    )
    """,
    "CREATE INDEX secrets_tenant_id_created_at_idx ON secrets (tenant_id, created_at DESC, id DESC)",
    "CREATE INDEX secrets_created_by_idx ON secrets (created_by)",
    "CREATE INDEX secrets_updated_by_idx ON secrets (updated_by)",
    """
    CREATE TABLE secret_versions (
        secret_id uuid NOT NULL REFERENCES secrets(id) ON DELETE CASCADE,
        version integer NOT NULL CONSTRAINT secret_versions_version_check CHECK (version >= 1),
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        key_id varchar(63) NOT NULL,
        wrapped_key bytea NOT NULL
            CONSTRAINT secret_versions_wrapped_key_check
            CHECK (octet_length(wrapped_key) BETWEEN 32 AND 1024),
        sealed bytea NOT NULL
            CONSTRAINT secret_versions_sealed_check CHECK (octet_length(sealed) <= 32768),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (secret_id, version)
    )
    """,
    "CREATE INDEX secret_versions_tenant_id_idx ON secret_versions (tenant_id)",
    "CREATE INDEX secret_versions_created_by_idx ON secret_versions (created_by)",
    "CREATE INDEX secret_versions_key_id_idx ON secret_versions (key_id)",
    """
    CREATE TABLE secret_grants (
        secret_id uuid NOT NULL REFERENCES secrets(id) ON DELETE CASCADE,
        node_id uuid NOT NULL REFERENCES python_nodes(id) ON DELETE CASCADE,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (secret_id, node_id)
    )
    """,
    "CREATE INDEX secret_grants_node_id_idx ON secret_grants (node_id)",
    "CREATE INDEX secret_grants_tenant_id_idx ON secret_grants (tenant_id)",
    "CREATE INDEX secret_grants_created_by_idx ON secret_grants (created_by)",
    """
    CREATE TRIGGER secrets_touch BEFORE UPDATE ON secrets
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
    """,
    *(
        f"ALTER TABLE {table} {what} ROW LEVEL SECURITY"
        for table in ("secrets", "secret_versions", "secret_grants")
        for what in ("ENABLE", "FORCE")
    ),
)

_POLICIES = (
    *(
        f"CREATE POLICY {table}_api_select ON {table} FOR SELECT TO qflow_api USING ({_TENANT})"
        for table in ("secrets", "secret_versions", "secret_grants")
    ),
    *(
        f"CREATE POLICY {table}_api_delete ON {table} FOR DELETE TO qflow_api USING ({_LED})"
        for table in ("secrets", "secret_versions", "secret_grants")
    ),
    *(
        f"CREATE POLICY {table}_engine_select ON {table} FOR SELECT TO qflow_engine USING (true)"
        for table in ("secrets", "secret_versions", "secret_grants")
    ),
    f"""
    CREATE POLICY secrets_api_insert ON secrets FOR INSERT TO qflow_api
      WITH CHECK ({_LED} AND created_by = {_USER} AND updated_by = {_USER})
    """,
    f"""
    CREATE POLICY secrets_api_update ON secrets FOR UPDATE TO qflow_api
     USING ({_LED}) WITH CHECK ({_LED} AND updated_by = {_USER})
    """,
    f"""
    CREATE POLICY secret_versions_api_insert ON secret_versions FOR INSERT TO qflow_api
      WITH CHECK ({_LED} AND created_by = {_USER} AND {_OF_OWN.format("secret_versions")})
    """,
    f"""
    CREATE POLICY secret_grants_api_insert ON secret_grants FOR INSERT TO qflow_api
      WITH CHECK ({_LED} AND created_by = {_USER} AND {_OF_OWN.format("secret_grants")}
                  AND {_OWN_NODE})
    """,
    # What is sealed stays; the key that it is under is wrapped anew.
    """
    CREATE POLICY secret_versions_engine_update ON secret_versions FOR UPDATE TO qflow_engine
     USING (true) WITH CHECK (true)
    """,
)

_GRANTS = (
    "GRANT SELECT, INSERT, DELETE ON secrets, secret_grants TO qflow_runner",
    """
    GRANT UPDATE (description, current_version, last_version, revision, updated_by)
       ON secrets TO qflow_runner
    """,
    """
    GRANT SELECT (secret_id, version, tenant_id, key_id, created_by, created_at), INSERT, DELETE
       ON secret_versions TO qflow_runner
    """,
    "GRANT SELECT ON secrets, secret_versions, secret_grants TO qflow_runner_engine",
    "GRANT UPDATE (key_id, wrapped_key) ON secret_versions TO qflow_runner_engine",
)


def upgrade() -> None:
    run(_TABLES)
    run(_POLICIES)
    run(_GRANTS)


def downgrade() -> None:
    run(("DROP TABLE secret_grants, secret_versions, secrets",))
