"""Aliases of workflows: names such as `prod` that stand for a version, and every change of one.

A row of the history never changes and no login may delete one; it goes with its workflow. `previous_id`
leads from what put a version in place to what had put the one before it there, so rolling back goes
one step further each time, never back to what was rolled back from.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0013"
down_revision = "0012"

_TENANT = "tenant_id = (SELECT current_tenant_id())"
_USER = "(SELECT current_user_id())"
_WRITTEN = f"{_TENANT} AND (SELECT current_role_name()) IN ('admin', 'user')"


def _of_workflow(table: str, rule: str) -> str:
    return (
        f"EXISTS (SELECT 1 FROM workflows parent WHERE parent.id = {table}.workflow_id AND {rule})"
    )


_TABLES = (
    """
    CREATE TABLE workflow_alias_changes (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        workflow_id uuid NOT NULL REFERENCES workflows(id) ON DELETE CASCADE,
        alias varchar(63) NOT NULL
            CONSTRAINT workflow_alias_changes_alias_check CHECK (alias ~ '^[a-z][a-z0-9_-]*$'),
        kind text NOT NULL
            CONSTRAINT workflow_alias_changes_kind_check CHECK (kind IN ('set', 'roll_back', 'delete')),
        from_version integer,
        to_version integer,
        previous_id uuid REFERENCES workflow_alias_changes(id),
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        CONSTRAINT workflow_alias_changes_to_version_check
            CHECK ((kind = 'delete') = (to_version IS NULL))
    )
    """,
    """
    CREATE INDEX workflow_alias_changes_workflow_id_idx
        ON workflow_alias_changes (workflow_id, created_at DESC, id DESC)
    """,
    "CREATE INDEX workflow_alias_changes_previous_id_idx ON workflow_alias_changes (previous_id)",
    "CREATE INDEX workflow_alias_changes_tenant_id_idx ON workflow_alias_changes (tenant_id)",
    "CREATE INDEX workflow_alias_changes_created_by_idx ON workflow_alias_changes (created_by)",
    """
    CREATE TRIGGER workflow_alias_changes_immutable BEFORE UPDATE ON workflow_alias_changes
    FOR EACH ROW EXECUTE FUNCTION refuse_change()
    """,
    # promotion_id put the version in place; change_id is the last change, which a rollback differs in.
    """
    CREATE TABLE workflow_aliases (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        workflow_id uuid NOT NULL REFERENCES workflows(id) ON DELETE CASCADE,
        name varchar(63) NOT NULL
            CONSTRAINT workflow_aliases_name_check CHECK (name ~ '^[a-z][a-z0-9_-]*$'),
        version integer NOT NULL,
        promotion_id uuid NOT NULL REFERENCES workflow_alias_changes(id),
        change_id uuid NOT NULL REFERENCES workflow_alias_changes(id),
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (workflow_id, name),
        FOREIGN KEY (workflow_id, version) REFERENCES workflow_versions (workflow_id, version)
            ON DELETE CASCADE
    )
    """,
    "CREATE INDEX workflow_aliases_promotion_id_idx ON workflow_aliases (promotion_id)",
    "CREATE INDEX workflow_aliases_change_id_idx ON workflow_aliases (change_id)",
    "CREATE INDEX workflow_aliases_tenant_id_idx ON workflow_aliases (tenant_id)",
    "CREATE INDEX workflow_aliases_created_by_idx ON workflow_aliases (created_by)",
)

_ALIAS_OWN = _of_workflow("workflow_aliases", f"parent.{_TENANT}")
_CHANGE_OWN = _of_workflow("workflow_alias_changes", f"parent.{_TENANT}")

# Whoever may start a workflow may see its aliases; who moved them, and when, is the owner's to know.
_POLICIES = (
    f"""
    CREATE POLICY workflow_aliases_api_select ON workflow_aliases FOR SELECT TO qflow_api
     USING ({_of_workflow("workflow_aliases", "true")})
    """,
    f"""
    CREATE POLICY workflow_aliases_api_insert ON workflow_aliases FOR INSERT TO qflow_api
      WITH CHECK ({_WRITTEN} AND created_by = {_USER} AND {_ALIAS_OWN})
    """,
    f"""
    CREATE POLICY workflow_aliases_api_update ON workflow_aliases FOR UPDATE TO qflow_api
     USING ({_WRITTEN}) WITH CHECK ({_WRITTEN} AND {_ALIAS_OWN})
    """,
    f"""
    CREATE POLICY workflow_aliases_api_delete ON workflow_aliases FOR DELETE TO qflow_api
     USING ({_WRITTEN})
    """,
    """
    CREATE POLICY workflow_aliases_engine_select ON workflow_aliases FOR SELECT TO qflow_engine
     USING (true)
    """,
    f"""
    CREATE POLICY workflow_alias_changes_api_select ON workflow_alias_changes
       FOR SELECT TO qflow_api USING ({_TENANT})
    """,
    f"""
    CREATE POLICY workflow_alias_changes_api_insert ON workflow_alias_changes
       FOR INSERT TO qflow_api
      WITH CHECK ({_WRITTEN} AND created_by = {_USER} AND {_CHANGE_OWN})
    """,
)

_GRANTS = (
    "GRANT SELECT, INSERT, DELETE ON workflow_aliases TO qflow_registry",
    "GRANT UPDATE (version, promotion_id, change_id) ON workflow_aliases TO qflow_registry",
    "GRANT SELECT, INSERT ON workflow_alias_changes TO qflow_registry",
    "GRANT SELECT ON workflow_aliases TO qflow_orchestrator, qflow_orchestrator_engine",
)


def upgrade() -> None:
    run(_TABLES)
    for table in ("workflow_aliases", "workflow_alias_changes"):
        run(
            (
                f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
                f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
            )
        )
    run(_POLICIES)
    run(_GRANTS)


def downgrade() -> None:
    run(("DROP TABLE workflow_aliases, workflow_alias_changes",))
