"""Who: tenants, users, sessions, service tokens, and the context that row-level security reads.

Mends S1 (current_user_id), S16, S17, S18, S19, S28, S46.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0001"
down_revision = None

# The caller of the transaction. After a commit a setting is an empty string, not NULL, and ''::uuid
# raises: hence NULLIF. STABLE and wrapped as (SELECT ...) in policies: evaluated once a statement.
_CONTEXT = (
    """
    CREATE FUNCTION current_user_id() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog
    AS $$ SELECT NULLIF(current_setting('qflow.user_id', true), '')::uuid $$
    """,
    """
    CREATE FUNCTION current_tenant_id() RETURNS uuid
    LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog
    AS $$ SELECT NULLIF(current_setting('qflow.tenant_id', true), '')::uuid $$
    """,
    """
    CREATE FUNCTION current_role_name() RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog
    AS $$ SELECT NULLIF(current_setting('qflow.role', true), '') $$
    """,
    """
    CREATE FUNCTION touch_updated_at() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
    AS $$ BEGIN NEW.updated_at := clock_timestamp(); RETURN NEW; END $$
    """,
)

_TABLES = (
    """
    CREATE TABLE tenants (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        kind text NOT NULL CONSTRAINT tenants_kind_check CHECK (kind IN ('personal', 'team')),
        name text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE TABLE users (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        email varchar(255) UNIQUE NOT NULL,
        first_name varchar(255),
        last_name varchar(255),
        password_hash varchar(255)
            CONSTRAINT users_password_hash_check CHECK (password_hash LIKE '$argon2id$%'),
        role varchar(50) NOT NULL DEFAULT 'user'
            CONSTRAINT users_role_check CHECK (role IN ('admin', 'user', 'viewer')),
        is_owner boolean NOT NULL DEFAULT false,
        is_active boolean NOT NULL DEFAULT true,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE UNIQUE INDEX users_email_lower_key ON users (lower(email))",
    "CREATE UNIQUE INDEX users_is_owner_key ON users (is_owner) WHERE is_owner",
    """
    CREATE TRIGGER users_touch BEFORE UPDATE ON users
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
    """,
    # A user's personal tenant has the user's id.
    """
    CREATE FUNCTION make_personal_tenant() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    BEGIN
        INSERT INTO public.tenants (id, kind, name) VALUES (NEW.id, 'personal', NEW.email)
        ON CONFLICT (id) DO NOTHING;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER users_personal_tenant AFTER INSERT ON users
    FOR EACH ROW EXECUTE FUNCTION make_personal_tenant()
    """,
    # session_token holds the lower-case hex SHA-256 of a random token, never the token.
    """
    CREATE TABLE user_sessions (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        user_id uuid NOT NULL REFERENCES users(id) ON DELETE CASCADE,
        session_token varchar(255) UNIQUE NOT NULL
            CONSTRAINT user_sessions_session_token_check CHECK (session_token ~ '^[0-9a-f]{64}$'),
        expires_at timestamptz NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX user_sessions_user_id_idx ON user_sessions (user_id)",
    "CREATE INDEX user_sessions_expires_at_idx ON user_sessions (expires_at)",
    """
    CREATE TABLE service_tokens (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        name text UNIQUE NOT NULL,
        token_sha256 char(64) UNIQUE NOT NULL
            CONSTRAINT service_tokens_token_sha256_check CHECK (token_sha256 ~ '^[0-9a-f]{64}$'),
        scopes text[] NOT NULL DEFAULT '{}',
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz
    )
    """,
    # The caller that service tokens stand for, and the author of builtin rows. It cannot sign in.
    """
    INSERT INTO users (id, email, first_name, role, is_active)
    VALUES ('00000000-0000-0000-0000-000000000001', 'system@qflow.invalid', 'Qflow', 'user', false)
    """,
)


def upgrade() -> None:
    run(_CONTEXT)
    run(_TABLES)


def downgrade() -> None:
    run(
        (
            "DROP TABLE service_tokens, user_sessions, users, tenants",
            "DROP FUNCTION make_personal_tenant()",
            "DROP FUNCTION touch_updated_at()",
            "DROP FUNCTION current_role_name()",
            "DROP FUNCTION current_tenant_id()",
            "DROP FUNCTION current_user_id()",
        )
    )
