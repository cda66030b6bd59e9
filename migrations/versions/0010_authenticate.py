"""authenticate(): the one door from a token's digest to its caller; and who owns what runs as definer.

A function that runs as its owner is owned by a group that may do just that, never by the migrating
owner or a superuser; its search_path is pinned, and PUBLIC may not run it.
"""

from __future__ import annotations

from migrations.sql import BORROW_GROUPS, RETURN_GROUPS, run

revision = "0010"
down_revision = "0009"

# A session counts while the database's clock says so and its user is active; a service token
# stands for the system user. A digest that is none of them finds no row.
_AUTHENTICATE = """
    CREATE FUNCTION authenticate(sha256 text)
    RETURNS TABLE (user_id uuid, tenant_id uuid, role text, is_owner boolean, kind text, name text,
                   scopes text[], session_id uuid, expires_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
        SELECT u.id, u.id, u.role::text, u.is_owner, 'user', u.email::text, '{}'::text[], s.id,
               s.expires_at
          FROM public.user_sessions s
          JOIN public.users u ON u.id = s.user_id
         WHERE s.session_token = sha256 AND s.expires_at > clock_timestamp() AND u.is_active
        UNION ALL
        SELECT '00000000-0000-0000-0000-000000000001'::uuid,
               '00000000-0000-0000-0000-000000000001'::uuid,
               'service', false, 'service', t.name, t.scopes, t.id,
               COALESCE(t.expires_at, '9999-12-31 00:00:00+00'::timestamptz)
          FROM public.service_tokens t
         WHERE t.token_sha256 = sha256::char(64)
           AND (t.expires_at IS NULL OR t.expires_at > clock_timestamp())
    $$
"""


def upgrade() -> None:
    run(
        (
            _AUTHENTICATE,
            "REVOKE ALL ON FUNCTION authenticate(text) FROM PUBLIC",
            "GRANT EXECUTE ON FUNCTION authenticate(text) TO qflow_api, qflow_engine, qflow_maint",
            "GRANT SELECT ON users, user_sessions, service_tokens TO qflow_auth",
            # What the two guards need as their owner's rights.
            "GRANT SELECT ON workflow_executions, files TO qflow_maint",
            "GRANT INSERT ON outbox_events TO qflow_maint",
            *BORROW_GROUPS,
            "ALTER FUNCTION authenticate(text) OWNER TO qflow_auth",
            "ALTER FUNCTION guard_workflow_delete() OWNER TO qflow_maint",
            "ALTER FUNCTION queue_file_bytes() OWNER TO qflow_maint",
            *RETURN_GROUPS,
        )
    )


def downgrade() -> None:
    run(
        (
            *BORROW_GROUPS,
            "ALTER FUNCTION queue_file_bytes() OWNER TO CURRENT_USER",
            "ALTER FUNCTION guard_workflow_delete() OWNER TO CURRENT_USER",
            "DROP FUNCTION authenticate(text)",
            *RETURN_GROUPS,
            "REVOKE SELECT ON users, user_sessions, service_tokens FROM qflow_auth",
        )
    )
