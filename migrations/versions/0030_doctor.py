"""A login that reads everything and writes nothing, for the doctor.

It sees every tenant's rows but no credential, nor what was noted of accounts and calls. A table that
a later migration makes is granted there, as one test demands.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0030"
down_revision = "0029"

# What opens doors, and what was kept of calls: no question is about it.
_HIDDEN = (
    "audit_events",
    "credential_tokens",
    "idempotency_keys",
    "service_tokens",
    "sign_in_attempts",
    "user_service_tokens",
    "user_sessions",
)
# Tables that are read but for one column.
_SECRETS = {"triggers": "secret_sha256", "users": "password_hash", "variables": "value"}
_HIDDEN_NAMES = ", ".join(f"'{table}'" for table in _HIDDEN)
_SECRET_ROWS = ", ".join(f"('{table}', '{column}')" for table, column in _SECRETS.items())

_GRANT = f"""
    DO $$
    DECLARE
        each record;
    BEGIN
        FOR each IN
            SELECT c.relname, c.relrowsecurity, bool_or(s.hidden IS NOT NULL) AS has_secret,
                   string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
                       FILTER (WHERE s.hidden IS NULL) AS columns
              FROM pg_class c
              JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
              LEFT JOIN (VALUES {_SECRET_ROWS}) AS s(place, hidden)
                ON s.place = c.relname AND s.hidden = a.attname
             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
               AND c.relname NOT IN ({_HIDDEN_NAMES})
             GROUP BY c.relname, c.relrowsecurity
        LOOP
            IF each.has_secret THEN
                EXECUTE format('GRANT SELECT (%s) ON public.%I TO qflow_doctor',
                               each.columns, each.relname);
            ELSE
                EXECUTE format('GRANT SELECT ON public.%I TO qflow_doctor', each.relname);
            END IF;
            IF each.relrowsecurity THEN
                EXECUTE format(
                    'CREATE POLICY %I ON public.%I FOR SELECT TO qflow_doctor USING (true)',
                    each.relname || '_doctor_select', each.relname);
            END IF;
        END LOOP;
    END $$
"""
_REVOKE = """
    DO $$
    DECLARE
        each record;
    BEGIN
        FOR each IN
            SELECT policyname, tablename FROM pg_policies
             WHERE schemaname = 'public' AND roles = ARRAY['qflow_doctor']::name[]
        LOOP
            EXECUTE format('DROP POLICY %I ON public.%I', each.policyname, each.tablename);
        END LOOP;
    END $$
"""


def upgrade() -> None:
    run(("GRANT USAGE ON SCHEMA public TO qflow_doctor", _GRANT))


def downgrade() -> None:
    run(
        (
            _REVOKE,
            "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM qflow_doctor",
            "REVOKE USAGE ON SCHEMA public FROM qflow_doctor",
        )
    )
