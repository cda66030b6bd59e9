"""Accounts: one-time tokens, tokens of users for their backends, counted sign-ins, and an audit trail.

Adds S58 and the counters of S62. A token is kept as its SHA-256 everywhere. What these tables hold is
read and written by the login for identities alone; the trail is only ever added to.
"""

from __future__ import annotations

from migrations.sql import BORROW_GROUPS, RETURN_GROUPS, run

revision = "0015"
down_revision = "0014"

_DIGEST = "text NOT NULL CONSTRAINT {0}_check CHECK ({1} ~ '^[0-9a-f]{{64}}$')"

_USERS = (
    "ALTER TABLE users ADD COLUMN anonymized_at timestamptz",
    # Whatever asks: who owns the deployment can act for it, and who was anonymised has no data left.
    """
    ALTER TABLE users ADD CONSTRAINT users_owner_check
        CHECK (NOT is_owner OR (is_active AND role = 'admin'))
    """,
    """
    ALTER TABLE users ADD CONSTRAINT users_anonymized_check
        CHECK (anonymized_at IS NULL OR (NOT is_active AND password_hash IS NULL
               AND first_name IS NULL AND last_name IS NULL))
    """,
    "CREATE INDEX users_created_at_idx ON users (created_at DESC, id DESC)",
)

_TABLES = (
    # What an administrator hands over, so that somebody sets a password: one at a time per user.
    f"""
    CREATE TABLE credential_tokens (
        user_id uuid PRIMARY KEY REFERENCES users(id) ON DELETE CASCADE,
        tenant_id uuid NOT NULL REFERENCES tenants(id) ON DELETE CASCADE,
        purpose text NOT NULL CONSTRAINT credential_tokens_purpose_check
            CHECK (purpose IN ('invitation', 'password_reset')),
        token_sha256 {_DIGEST.format("credential_tokens_token_sha256", "token_sha256")},
        expires_at timestamptz NOT NULL,
        created_by uuid NOT NULL REFERENCES users(id) ON DELETE CASCADE,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT credential_tokens_token_sha256_key UNIQUE (token_sha256)
    )
    """,
    "CREATE INDEX credential_tokens_tenant_id_idx ON credential_tokens (tenant_id)",
    "CREATE INDEX credential_tokens_created_by_idx ON credential_tokens (created_by)",
    # A backend's way to act as one user, with the scopes listed and no others.
    f"""
    CREATE TABLE user_service_tokens (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        tenant_id uuid NOT NULL REFERENCES tenants(id) ON DELETE CASCADE,
        user_id uuid NOT NULL REFERENCES users(id) ON DELETE CASCADE,
        name text NOT NULL
            CONSTRAINT user_service_tokens_name_check CHECK (char_length(name) BETWEEN 1 AND 255),
        token_sha256 {_DIGEST.format("user_service_tokens_token_sha256", "token_sha256")},
        scopes text[] NOT NULL CONSTRAINT user_service_tokens_scopes_check
            CHECK (cardinality(scopes) > 0 AND array_position(scopes, NULL) IS NULL),
        expires_at timestamptz NOT NULL,
        last_used_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT user_service_tokens_token_sha256_key UNIQUE (token_sha256),
        CONSTRAINT user_service_tokens_user_id_name_key UNIQUE (user_id, name)
    )
    """,
    "CREATE INDEX user_service_tokens_tenant_id_idx ON user_service_tokens (tenant_id)",
    # By the SHA-256 of an address, a peer, or both: addresses that nobody has are counted alike.
    f"""
    CREATE TABLE sign_in_attempts (
        key {_DIGEST.format("sign_in_attempts_key", "key")} PRIMARY KEY,
        failures integer NOT NULL CONSTRAINT sign_in_attempts_failures_check CHECK (failures >= 0),
        failed_at timestamptz NOT NULL,
        failed_before timestamptz
    )
    """,
    "CREATE INDEX sign_in_attempts_failed_at_idx ON sign_in_attempts (failed_at)",
    # Whose rights were used is the tenant's: no name, no address, so that nothing has to be taken out.
    """
    CREATE TABLE audit_events (
        id uuid PRIMARY KEY,
        tenant_id uuid NOT NULL REFERENCES tenants(id),
        actor_id uuid NOT NULL REFERENCES users(id),
        action text NOT NULL
            CONSTRAINT audit_events_action_check CHECK (action ~ '^[a-z_]+[.][a-z_]+$'),
        target_kind text NOT NULL,
        target_id uuid NOT NULL,
        before jsonb NOT NULL DEFAULT '{}',
        after jsonb NOT NULL DEFAULT '{}',
        created_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    "CREATE INDEX audit_events_created_at_idx ON audit_events (created_at DESC, id DESC)",
    "CREATE INDEX audit_events_tenant_id_idx ON audit_events (tenant_id)",
    "CREATE INDEX audit_events_actor_id_idx ON audit_events (actor_id)",
    "CREATE INDEX audit_events_target_id_idx ON audit_events (target_id)",
)

_NEW = ("credential_tokens", "user_service_tokens", "sign_in_attempts", "audit_events")
_RULES = {
    "credential_tokens": "SIUD",
    "user_service_tokens": "SIUD",
    "sign_in_attempts": "SIUD",
    "audit_events": "SI",
}
_COMMANDS = {"S": "SELECT", "I": "INSERT", "U": "UPDATE", "D": "DELETE"}
# A caller's own answers, whatever the caller's role: a viewer may change a password too.
_OWN_ANSWERS = "tenant_id = (SELECT current_tenant_id()) AND caller_id = (SELECT current_user_id())"


def _policies() -> list[str]:
    made = []
    for table, letters in _RULES.items():
        made += [
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        ]
        for letter in letters:
            command = _COMMANDS[letter]
            using = "" if letter == "I" else " USING (true)"
            check = " WITH CHECK (true)" if letter in "IU" else ""
            made.append(
                f"CREATE POLICY {table}_auth_{command.lower()} ON {table}"
                f" FOR {command} TO qflow_auth{using}{check}"
            )
    return made


_GRANTS = (
    """
    GRANT SELECT, INSERT, UPDATE, DELETE ON credential_tokens, user_service_tokens, sign_in_attempts
    TO qflow_registry_auth
    """,
    "GRANT SELECT, INSERT ON audit_events, idempotency_keys TO qflow_registry_auth",
    "GRANT UPDATE (name) ON tenants TO qflow_registry_auth",
    f"""
    CREATE POLICY idempotency_keys_auth_select ON idempotency_keys FOR SELECT TO qflow_auth
    USING ({_OWN_ANSWERS})
    """,
    f"""
    CREATE POLICY idempotency_keys_auth_insert ON idempotency_keys FOR INSERT TO qflow_auth
    WITH CHECK ({_OWN_ANSWERS})
    """,
    """
    CREATE POLICY tenants_auth_update ON tenants FOR UPDATE TO qflow_auth
    USING (true) WITH CHECK (true)
    """,
    # What authenticate() does as its owner.
    "GRANT SELECT, UPDATE (last_used_at) ON user_service_tokens TO qflow_auth",
)

# When a user's token was used is written once an hour, and never where that would wait or fail:
# whoever may call must not depend on it.
_AUTHENTICATE = """
    CREATE OR REPLACE FUNCTION authenticate(sha256 text)
    RETURNS TABLE (user_id uuid, tenant_id uuid, role text, is_owner boolean, kind text, name text,
                   scopes text[], session_id uuid, expires_at timestamptz)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
    DECLARE
        token record;
    BEGIN
        RETURN QUERY
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
           AND (t.expires_at IS NULL OR t.expires_at > clock_timestamp());
        IF FOUND THEN
            RETURN;
        END IF;

        SELECT t.id AS token_id, t.tenant_id AS for_tenant, t.scopes AS listed,
               t.expires_at AS ends_at, t.last_used_at AS used_at, u.id AS owner_id,
               u.role::text AS owner_role, u.is_owner AS owns_all, u.email::text AS address
          INTO token
          FROM public.user_service_tokens t
          JOIN public.users u ON u.id = t.user_id
         WHERE t.token_sha256 = sha256 AND t.expires_at > clock_timestamp() AND u.is_active;
        IF NOT FOUND THEN
            RETURN;
        END IF;
        IF token.used_at IS NULL OR token.used_at < clock_timestamp() - interval '1 hour' THEN
            BEGIN
                UPDATE public.user_service_tokens SET last_used_at = clock_timestamp()
                 WHERE id = (SELECT due.id FROM public.user_service_tokens due
                              WHERE due.id = token.token_id FOR UPDATE SKIP LOCKED);
            EXCEPTION WHEN read_only_sql_transaction OR disk_full THEN
                NULL;
            END;
        END IF;
        RETURN QUERY
        SELECT token.owner_id, token.for_tenant, token.owner_role, token.owns_all, 'user'::text,
               token.address, token.listed, token.token_id, token.ends_at;
    END $$
"""
_AUTHENTICATE_BEFORE = """
    CREATE OR REPLACE FUNCTION authenticate(sha256 text)
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
    run((*_USERS, *_TABLES, *_policies(), *_GRANTS))
    run((*BORROW_GROUPS, _AUTHENTICATE, *RETURN_GROUPS))


def downgrade() -> None:
    run((*BORROW_GROUPS, _AUTHENTICATE_BEFORE, *RETURN_GROUPS))
    run(
        (
            "DROP POLICY idempotency_keys_auth_select ON idempotency_keys",
            "DROP POLICY idempotency_keys_auth_insert ON idempotency_keys",
            "DROP POLICY tenants_auth_update ON tenants",
            "REVOKE SELECT, INSERT ON idempotency_keys FROM qflow_registry_auth",
            "REVOKE UPDATE (name) ON tenants FROM qflow_registry_auth",
            f"DROP TABLE {', '.join(_NEW)}",
            "DROP INDEX users_created_at_idx",
            "ALTER TABLE users DROP CONSTRAINT users_owner_check",
            "ALTER TABLE users DROP CONSTRAINT users_anonymized_check",
            "ALTER TABLE users DROP COLUMN anonymized_at",
        )
    )
