"""Teams: tenants with members, who are invited, each with a role, and what moves between tenants.

A member is a row, so who may act for a team is asked of the database each time that a caller is told
of, and of `member_role()` by the policies: what a statement may do to a team does not depend on what
the service that runs it believes. All of it is read and written by the login for identities; so are
the ids of tenants on definitions, which no login that acts for a caller may write.
"""

from __future__ import annotations

from migrations.sql import BORROW_GROUPS, RETURN_GROUPS, run

revision = "0040"
down_revision = "0039"

_ROLE = "text NOT NULL CONSTRAINT {}_role_check CHECK (role IN ('admin', 'user', 'viewer'))"
_ME = "(SELECT current_user_id())"
_HERE = "(SELECT current_tenant_id())"
_WRITER = "(SELECT current_role_name()) IN ('admin', 'user')"

_TABLES = (
    "ALTER TABLE tenants ADD COLUMN created_by uuid REFERENCES users(id)",
    "ALTER TABLE tenants ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now()",
    "CREATE INDEX tenants_created_by_idx ON tenants (created_by)",
    f"""
    CREATE TABLE tenant_members (
        tenant_id uuid NOT NULL REFERENCES tenants(id) ON DELETE CASCADE,
        user_id uuid NOT NULL REFERENCES users(id) ON DELETE CASCADE,
        role {_ROLE.format("tenant_members")},
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (tenant_id, user_id)
    )
    """,
    "CREATE INDEX tenant_members_user_id_idx ON tenant_members (user_id, tenant_id)",
    # By address and not by user: whoever invites must not learn who has an account.
    f"""
    CREATE TABLE tenant_invitations (
        id uuid PRIMARY KEY,
        tenant_id uuid NOT NULL REFERENCES tenants(id) ON DELETE CASCADE,
        email varchar(255) NOT NULL
            CONSTRAINT tenant_invitations_email_check CHECK (email = lower(email)),
        role {_ROLE.format("tenant_invitations")},
        created_by uuid NOT NULL REFERENCES users(id) ON DELETE CASCADE,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        expires_at timestamptz NOT NULL,
        CONSTRAINT tenant_invitations_tenant_id_email_key UNIQUE (tenant_id, email)
    )
    """,
    "CREATE INDEX tenant_invitations_email_idx ON tenant_invitations (email)",
    "CREATE INDEX tenant_invitations_created_by_idx ON tenant_invitations (created_by)",
    """
    CREATE TRIGGER tenants_touch BEFORE UPDATE ON tenants
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
    """,
    """
    CREATE TRIGGER tenant_members_touch BEFORE UPDATE ON tenant_members
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
    """,
    # The past of an alias goes with its workflow to another tenant, and stays what it is.
    "DROP TRIGGER workflow_alias_changes_immutable ON workflow_alias_changes",
    """
    CREATE TRIGGER workflow_alias_changes_immutable BEFORE UPDATE ON workflow_alias_changes
    FOR EACH ROW WHEN (to_jsonb(OLD) - 'tenant_id' IS DISTINCT FROM to_jsonb(NEW) - 'tenant_id')
    EXECUTE FUNCTION refuse_change()
    """,
)

# Of whom the transaction acts for: admin of one's own tenant, a member's role in a team, else NULL.
_MEMBER_ROLE = """
    CREATE FUNCTION member_role(of_tenant uuid) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
        SELECT CASE WHEN of_tenant = public.current_user_id() THEN 'admin'
               ELSE (SELECT m.role FROM public.tenant_members m
                      WHERE m.tenant_id = of_tenant AND m.user_id = public.current_user_id()) END
    $$
"""
# Whether whom the transaction acts for is invited to be this in a team.
_IS_INVITED = """
    CREATE FUNCTION is_invited(to_tenant uuid, as_role text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
        SELECT EXISTS (
            SELECT 1 FROM public.tenant_invitations i
              JOIN public.users u ON lower(u.email) = i.email
             WHERE i.tenant_id = to_tenant AND i.role = as_role
               AND u.id = public.current_user_id() AND i.expires_at > clock_timestamp())
    $$
"""
# Whether whom the transaction acts for has just made the team, which nobody is in yet.
_IS_FOUNDER = """
    CREATE FUNCTION is_founder(of_tenant uuid) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
        SELECT EXISTS (SELECT 1 FROM public.tenants t
                        WHERE t.id = of_tenant AND t.kind = 'team'
                          AND t.created_by = public.current_user_id())
           AND NOT EXISTS (SELECT 1 FROM public.tenant_members m WHERE m.tenant_id = of_tenant)
    $$
"""

# Who a token is in the tenant that its call names. Without a name it is the token's own: a session's
# is personal, and a service token keeps to the one that it was made in. A NULL tenant says that this
# is somebody, and no member. Nobody administers the deployment from within a team.
_AUTHENTICATE = """
    CREATE FUNCTION authenticate(sha256 text, for_tenant uuid)
    RETURNS TABLE (user_id uuid, tenant_id uuid, role text, is_owner boolean, kind text, name text,
                   scopes text[], session_id uuid, expires_at timestamptz, team_role text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
    DECLARE
        known record;
        wanted uuid;
        as_member text;
    BEGIN
        SELECT a.* INTO known FROM public.authenticate(sha256) AS a;
        IF NOT FOUND THEN
            RETURN;
        END IF;
        wanted := known.tenant_id;
        IF known.kind = 'user' AND for_tenant IS NOT NULL AND for_tenant <> wanted THEN
            wanted := CASE WHEN cardinality(known.scopes) = 0 THEN for_tenant END;
        END IF;
        IF known.kind <> 'user' OR wanted = known.user_id THEN
            RETURN QUERY
            SELECT known.user_id, known.tenant_id, known.role, known.is_owner, known.kind,
                   known.name, known.scopes, known.session_id, known.expires_at, ''::text;
            RETURN;
        END IF;
        SELECT m.role INTO as_member FROM public.tenant_members AS m
         WHERE m.tenant_id = wanted AND m.user_id = known.user_id;
        RETURN QUERY
        SELECT known.user_id, CASE WHEN as_member IS NOT NULL THEN wanted END,
               CASE WHEN as_member IS NULL OR 'viewer' IN (as_member, known.role) THEN 'viewer'
                    ELSE 'user' END,
               false, known.kind, known.name, known.scopes, known.session_id, known.expires_at,
               COALESCE(as_member, '');
    END $$
"""
_FUNCTIONS = (
    "member_role(uuid)",
    "is_invited(uuid, text)",
    "is_founder(uuid)",
    "authenticate(text, uuid)",
)

_ADMIN = "member_role(tenant_id) = 'admin'"
_MY_ADDRESS = f"email = (SELECT lower(u.email) FROM users u WHERE u.id = {_ME})"
_RULES = (
    *(
        f"ALTER TABLE {table} {what} ROW LEVEL SECURITY"
        for table in ("tenant_members", "tenant_invitations")
        for what in ("ENABLE", "FORCE")
    ),
    # Before, any row of a tenant might be written by this group.
    "DROP POLICY tenants_auth_update ON tenants",
    """
    CREATE POLICY tenants_auth_update ON tenants FOR UPDATE TO qflow_auth
     USING (kind = 'personal' OR member_role(id) = 'admin')
      WITH CHECK (kind = 'personal' OR member_role(id) = 'admin')
    """,
    # Whose token it is, is asked before anybody is known.
    "CREATE POLICY tenant_members_auth_select ON tenant_members FOR SELECT TO qflow_auth USING (true)",
    f"""
    CREATE POLICY tenant_members_auth_insert ON tenant_members FOR INSERT TO qflow_auth
      WITH CHECK (user_id = {_ME}
                  AND (is_invited(tenant_id, role) OR (role = 'admin' AND is_founder(tenant_id))))
    """,
    f"""
    CREATE POLICY tenant_members_auth_update ON tenant_members FOR UPDATE TO qflow_auth
     USING ({_ADMIN}) WITH CHECK ({_ADMIN} OR user_id = {_ME})
    """,
    f"""
    CREATE POLICY tenant_members_auth_delete ON tenant_members FOR DELETE TO qflow_auth
     USING ({_ADMIN} OR user_id = {_ME})
    """,
    """
    CREATE POLICY tenant_members_engine_select ON tenant_members FOR SELECT TO qflow_engine
     USING (true)
    """,
    f"""
    CREATE POLICY tenant_invitations_auth_select ON tenant_invitations FOR SELECT TO qflow_auth
     USING ({_ADMIN} OR {_MY_ADDRESS})
    """,
    f"""
    CREATE POLICY tenant_invitations_auth_insert ON tenant_invitations FOR INSERT TO qflow_auth
      WITH CHECK ({_ADMIN} AND created_by = {_ME})
    """,
    f"""
    CREATE POLICY tenant_invitations_auth_update ON tenant_invitations FOR UPDATE TO qflow_auth
     USING ({_ADMIN}) WITH CHECK ({_ADMIN} AND created_by = {_ME})
    """,
    f"""
    CREATE POLICY tenant_invitations_auth_delete ON tenant_invitations FOR DELETE TO qflow_auth
     USING ({_ADMIN} OR {_MY_ADDRESS})
    """,
)

_GIVES = f"tenant_id = {_HERE} AND {_WRITER} AND member_role(tenant_id) = 'admin'"
_TAKES = "member_role(tenant_id) IN ('admin', 'user')"
_MOVED = (
    "python_nodes",
    "node_version_locks",
    "workflows",
    "workflow_node_uses",
    "workflow_aliases",
    "workflow_alias_changes",
    "variables",
)
_PARENTS = {
    "python_node_tag_relations": ("python_nodes", "node_id"),
    "workflow_tag_relations": ("workflows", "workflow_id"),
}
_READ = {
    "python_nodes": "id, name, version, tenant_id, updated_at",
    "node_version_locks": "node_version_id, tenant_id",
    "workflows": "id, name, version, tenant_id, updated_at, deleted_at, is_active",
    "workflow_node_uses": "workflow_id, node_id, tenant_id",
    "workflow_aliases": "workflow_id, tenant_id",
    "workflow_alias_changes": "workflow_id, tenant_id",
    "variables": "workflow_id, tenant_id",
    "python_node_versions": "id, node_id",
    "custom_type_uses": "node_version_id, tenant_id",
}


def _transfers() -> list[str]:
    made = []
    for table in _MOVED:
        made += [
            f"""
            CREATE POLICY {table}_auth_select ON {table} FOR SELECT TO qflow_auth
             USING (tenant_id = {_HERE} OR {_TAKES})
            """,
            f"""
            CREATE POLICY {table}_auth_update ON {table} FOR UPDATE TO qflow_auth
             USING ({_GIVES}) WITH CHECK ({_TAKES})
            """,
            f"GRANT UPDATE (tenant_id) ON {table} TO qflow_registry_auth",
        ]
    for table, (parent, key) in _PARENTS.items():
        of_giver = f"""EXISTS (SELECT 1 FROM {parent} parent WHERE parent.id = {table}.{key}
                                  AND parent.tenant_id = {_HERE} AND {_WRITER}
                                  AND member_role(parent.tenant_id) = 'admin')"""
        made += [
            f"CREATE POLICY {table}_auth_{verb.lower()} ON {table} FOR {verb} TO qflow_auth"
            f" USING ({of_giver})"
            for verb in ("SELECT", "DELETE")
        ]
        made.append(f"GRANT SELECT, DELETE ON {table} TO qflow_registry_auth")
    made += [
        f"""
        CREATE POLICY python_node_versions_auth_select ON python_node_versions
           FOR SELECT TO qflow_auth
         USING (EXISTS (SELECT 1 FROM python_nodes parent
                         WHERE parent.id = python_node_versions.node_id
                           AND parent.tenant_id = {_HERE}))
        """,
        f"""
        CREATE POLICY custom_type_uses_auth_select ON custom_type_uses FOR SELECT TO qflow_auth
         USING (tenant_id = {_HERE})
        """,
    ]
    made += [
        f"GRANT SELECT ({columns}) ON {table} TO qflow_registry_auth"
        for table, columns in _READ.items()
    ]
    return made


_GRANTS = (
    "GRANT SELECT, INSERT, UPDATE (role), DELETE ON tenant_members TO qflow_registry_auth",
    """
    GRANT SELECT, INSERT, DELETE, UPDATE (role, created_by, created_at, expires_at)
       ON tenant_invitations TO qflow_registry_auth
    """,
    # Who makes a run start by itself acts in a team while they are in it.
    "GRANT SELECT ON tenant_members TO qflow_orchestrator_engine",
    # Whoever writes a row computes its entries in the index.
    "GRANT EXECUTE ON FUNCTION search_grams(uuid, text) TO qflow_auth",
    "GRANT EXECUTE ON FUNCTION search_letters(uuid, text) TO qflow_auth",
    # What the functions read as their owner.
    "GRANT SELECT ON tenant_members, tenant_invitations, tenants TO qflow_auth",
)


def upgrade() -> None:
    run(_TABLES)
    run((_MEMBER_ROLE, _IS_INVITED, _IS_FOUNDER, _AUTHENTICATE))
    run(f"REVOKE ALL ON FUNCTION {each} FROM PUBLIC" for each in _FUNCTIONS)
    run(f"GRANT EXECUTE ON FUNCTION {each} TO qflow_auth" for each in _FUNCTIONS)
    run(
        (
            """
            GRANT EXECUTE ON FUNCTION authenticate(text, uuid) TO qflow_api, qflow_engine, qflow_maint
            """,
            # For policies of what only those who lead a tenant may change.
            "GRANT EXECUTE ON FUNCTION member_role(uuid) TO qflow_api",
        )
    )
    run(_RULES)
    run(_GRANTS)
    run(_transfers())
    run(
        (
            *BORROW_GROUPS,
            *(f"ALTER FUNCTION {each} OWNER TO qflow_auth" for each in _FUNCTIONS),
            *RETURN_GROUPS,
        )
    )


def downgrade() -> None:
    run(BORROW_GROUPS)
    for table in (*_MOVED, *_PARENTS, "python_node_versions", "custom_type_uses"):
        run(
            f"DROP POLICY IF EXISTS {table}_auth_{verb} ON {table}"
            for verb in ("select", "update", "delete")
        )
    run(f"REVOKE UPDATE (tenant_id) ON {table} FROM qflow_registry_auth" for table in _MOVED)
    run(f"REVOKE SELECT, DELETE ON {table} FROM qflow_registry_auth" for table in _PARENTS)
    run(
        f"REVOKE SELECT ({columns}) ON {table} FROM qflow_registry_auth"
        for table, columns in _READ.items()
    )
    run(
        (
            "REVOKE EXECUTE ON FUNCTION search_grams(uuid, text) FROM qflow_auth",
            "REVOKE EXECUTE ON FUNCTION search_letters(uuid, text) FROM qflow_auth",
            "REVOKE SELECT ON tenants FROM qflow_auth",
            "DROP POLICY tenants_auth_update ON tenants",
            """
            CREATE POLICY tenants_auth_update ON tenants FOR UPDATE TO qflow_auth
            USING (true) WITH CHECK (true)
            """,
            "DROP TRIGGER workflow_alias_changes_immutable ON workflow_alias_changes",
            """
            CREATE TRIGGER workflow_alias_changes_immutable BEFORE UPDATE ON workflow_alias_changes
            FOR EACH ROW EXECUTE FUNCTION refuse_change()
            """,
            "DROP TABLE tenant_invitations, tenant_members",
            "DROP TRIGGER tenants_touch ON tenants",
            "ALTER TABLE tenants DROP COLUMN created_by, DROP COLUMN updated_at",
            *(f"DROP FUNCTION {each}" for each in reversed(_FUNCTIONS)),
        )
    )
    run(RETURN_GROUPS)
