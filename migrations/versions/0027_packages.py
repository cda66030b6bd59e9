"""Packages of tenants: the wheels that they bring, and the rules on what their nodes may have."""

from __future__ import annotations

from migrations.sql import run

revision = "0027"
down_revision = "0026"

_TENANT = "tenant_id = (SELECT current_tenant_id())"
_USER = "(SELECT current_user_id())"
_WRITTEN = f"{_TENANT} AND (SELECT current_role_name()) IN ('admin', 'user')"

_TABLES = (
    # The bytes lie in the runner's folder of wheels, under the tenant and the id, before the row is.
    """
    CREATE TABLE tenant_wheels (
        id uuid PRIMARY KEY,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        filename varchar(255) NOT NULL
            CONSTRAINT tenant_wheels_filename_check CHECK (filename ~ '^[A-Za-z0-9_.+!-]+[.]whl$'),
        name varchar(255) NOT NULL,
        version varchar(100) NOT NULL,
        summary text NOT NULL DEFAULT '',
        requires_python text NOT NULL DEFAULT '',
        requirements jsonb NOT NULL DEFAULT '[]'
            CONSTRAINT tenant_wheels_requirements_check
            CHECK (jsonb_typeof(requirements) = 'array'),
        size_bytes bigint NOT NULL CONSTRAINT tenant_wheels_size_bytes_check CHECK (size_bytes > 0),
        sha256 varchar(64) NOT NULL
            CONSTRAINT tenant_wheels_sha256_check CHECK (sha256 ~ '^[0-9a-f]{64}$'),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT tenant_wheels_tenant_id_filename_key UNIQUE (tenant_id, filename)
    )
    """,
    """
    CREATE INDEX tenant_wheels_tenant_id_created_at_idx
        ON tenant_wheels (tenant_id, created_at DESC, id DESC)
    """,
    "CREATE INDEX tenant_wheels_created_by_idx ON tenant_wheels (created_by)",
    """
    CREATE TABLE package_rules (
        tenant_id uuid PRIMARY KEY DEFAULT current_tenant_id() REFERENCES tenants(id),
        allowed text[] NOT NULL DEFAULT '{}'
            CONSTRAINT package_rules_allowed_check CHECK (cardinality(allowed) <= 1000),
        denied text[] NOT NULL DEFAULT '{}'
            CONSTRAINT package_rules_denied_check CHECK (cardinality(denied) <= 1000),
        release_age_days_min integer NOT NULL DEFAULT 0
            CONSTRAINT package_rules_release_age_check CHECK (release_age_days_min BETWEEN 0 AND 366),
        revision bigint NOT NULL DEFAULT 1,
        updated_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        updated_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX package_rules_updated_by_idx ON package_rules (updated_by)",
    """
    CREATE TRIGGER package_rules_touch BEFORE UPDATE ON package_rules
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
    """,
    *(
        f"ALTER TABLE {table} {what} ROW LEVEL SECURITY"
        for table in ("tenant_wheels", "package_rules")
        for what in ("ENABLE", "FORCE")
    ),
)

_POLICIES = (
    f"CREATE POLICY tenant_wheels_api_select ON tenant_wheels FOR SELECT TO qflow_api USING ({_TENANT})",
    f"""
    CREATE POLICY tenant_wheels_api_insert ON tenant_wheels FOR INSERT TO qflow_api
      WITH CHECK ({_WRITTEN} AND created_by = {_USER})
    """,
    f"CREATE POLICY tenant_wheels_api_delete ON tenant_wheels FOR DELETE TO qflow_api USING ({_WRITTEN})",
    "CREATE POLICY tenant_wheels_engine_select ON tenant_wheels FOR SELECT TO qflow_engine USING (true)",
    f"CREATE POLICY package_rules_api_select ON package_rules FOR SELECT TO qflow_api USING ({_TENANT})",
    f"""
    CREATE POLICY package_rules_api_insert ON package_rules FOR INSERT TO qflow_api
      WITH CHECK ({_WRITTEN} AND updated_by = {_USER})
    """,
    f"""
    CREATE POLICY package_rules_api_update ON package_rules FOR UPDATE TO qflow_api
     USING ({_WRITTEN}) WITH CHECK ({_WRITTEN} AND updated_by = {_USER})
    """,
    "CREATE POLICY package_rules_engine_select ON package_rules FOR SELECT TO qflow_engine USING (true)",
)

_GRANTS = (
    "GRANT SELECT, INSERT, DELETE ON tenant_wheels TO qflow_runner",
    "GRANT SELECT, INSERT ON package_rules TO qflow_runner",
    """
    GRANT UPDATE (allowed, denied, release_age_days_min, revision, updated_by)
       ON package_rules TO qflow_runner
    """,
    "GRANT SELECT ON tenant_wheels, package_rules TO qflow_runner_engine",
)


def upgrade() -> None:
    run(_TABLES)
    run(_POLICIES)
    run(_GRANTS)


def downgrade() -> None:
    run(("DROP TABLE package_rules, tenant_wheels",))
