"""Limits of owners: for one user of a tenant alone, or with a count for each of them.

Whom a limit is about stays as long as the limit: the columns are in no grant to update. Whether a user
is in a tenant is told by a function, as logins of the API read no members.
"""

from __future__ import annotations

from migrations.sql import BORROW_GROUPS, RETURN_GROUPS, run

revision = "0055"
down_revision = "0054"

_USER = "(SELECT current_user_id())"
_WRITTEN = """tenant_id = (SELECT current_tenant_id())
    AND (SELECT current_role_name()) IN ('admin', 'user')"""
_READ_SUBJECT = """(workflow_id IS NULL OR EXISTS (
        SELECT 1 FROM workflows parent WHERE parent.id = execution_limits.workflow_id))
    AND (node_id IS NULL OR EXISTS (
        SELECT 1 FROM python_nodes parent WHERE parent.id = execution_limits.node_id))"""
_INSERT = f"""{_WRITTEN} AND created_by = {_USER} AND updated_by = {_USER} AND {_READ_SUBJECT}"""

_IS_MEMBER = """
    CREATE FUNCTION is_member(of_user uuid) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
        SELECT of_user = public.current_tenant_id()
            OR EXISTS (SELECT 1 FROM public.tenant_members m
                        WHERE m.tenant_id = public.current_tenant_id() AND m.user_id = of_user)
    $$
"""


def upgrade() -> None:
    run(
        (
            """
            ALTER TABLE execution_limits
              ADD COLUMN owner_id uuid REFERENCES users(id) ON DELETE CASCADE,
              ADD COLUMN per_owner boolean NOT NULL DEFAULT false,
              ADD CONSTRAINT execution_limits_owner_check CHECK (owner_id IS NULL OR NOT per_owner)
            """,
            "CREATE INDEX execution_limits_owner_id_idx ON execution_limits (owner_id)",
            _IS_MEMBER,
            "REVOKE ALL ON FUNCTION is_member(uuid) FROM PUBLIC",
            "GRANT EXECUTE ON FUNCTION is_member(uuid) TO qflow_auth, qflow_api",
            *BORROW_GROUPS,
            "ALTER FUNCTION is_member(uuid) OWNER TO qflow_auth",
            *RETURN_GROUPS,
            f"""
            ALTER POLICY execution_limits_api_insert ON execution_limits
             WITH CHECK ({_INSERT} AND (owner_id IS NULL OR is_member(owner_id)))
            """,
        )
    )


def downgrade() -> None:
    """Take limits of owners out too: what is left of one would hold for everybody."""
    run(
        (
            f"ALTER POLICY execution_limits_api_insert ON execution_limits WITH CHECK ({_INSERT})",
            *BORROW_GROUPS,
            "DROP FUNCTION is_member(uuid)",
            *RETURN_GROUPS,
            "ALTER TABLE execution_limits NO FORCE ROW LEVEL SECURITY",
            "DELETE FROM execution_limits WHERE owner_id IS NOT NULL OR per_owner",
            "ALTER TABLE execution_limits FORCE ROW LEVEL SECURITY",
            "ALTER TABLE execution_limits DROP COLUMN owner_id, DROP COLUMN per_owner",
        )
    )
