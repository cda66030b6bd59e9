"""What was asked of the suite, in chains: a record per call that changes something, sealed by digests.

Every process writes a chain of its own. A seal covers the records of one flush and the seal before it,
so a row that is changed, added or taken out later is found by whoever computes the digests again.
Nothing here is ever updated. What is old goes seal by seal, and leaves a checkpoint: the digest at
which the rest goes on.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0034"
down_revision = "0033"

_TABLES = (
    # Whose it is stands in its row: a login adds to its own chains alone.
    """
    CREATE TABLE audit_chains (
        id uuid PRIMARY KEY,
        login name NOT NULL DEFAULT current_user,
        service text NOT NULL
            CONSTRAINT audit_chains_service_check CHECK (octet_length(service) BETWEEN 1 AND 64),
        follows_chain_id uuid,
        follows_number bigint,
        started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        CONSTRAINT audit_chains_follows_check
            CHECK ((follows_chain_id IS NULL) = (follows_number IS NULL))
    )
    """,
    # Without references: what was done is kept when those who did it, and what they did it to, are gone.
    """
    CREATE TABLE audit_records (
        chain_id uuid NOT NULL,
        number bigint NOT NULL CONSTRAINT audit_records_number_check CHECK (number > 0),
        tenant_id uuid NOT NULL,
        actor_id uuid NOT NULL,
        session_id uuid NOT NULL,
        method text NOT NULL
            CONSTRAINT audit_records_method_check CHECK (octet_length(method) BETWEEN 1 AND 256),
        outcome text NOT NULL
            CONSTRAINT audit_records_outcome_check CHECK (outcome ~ '^[A-Z_]{1,32}$'),
        reason text NOT NULL,
        targets json NOT NULL,
        before json NOT NULL,
        after json NOT NULL,
        call_id text NOT NULL,
        occurred_at timestamptz NOT NULL,
        PRIMARY KEY (chain_id, number)
    ) WITH (autovacuum_vacuum_insert_scale_factor = 0.05)
    """,
    """
    CREATE TABLE audit_seals (
        chain_id uuid NOT NULL REFERENCES audit_chains(id),
        number bigint NOT NULL CONSTRAINT audit_seals_number_check CHECK (number > 0),
        first_record bigint NOT NULL,
        last_record bigint NOT NULL,
        previous bytea NOT NULL
            CONSTRAINT audit_seals_previous_check CHECK (octet_length(previous) = 32),
        digest bytea NOT NULL
            CONSTRAINT audit_seals_digest_check CHECK (octet_length(digest) = 32),
        sealed_at timestamptz NOT NULL,
        PRIMARY KEY (chain_id, number),
        CONSTRAINT audit_seals_records_check CHECK (first_record BETWEEN 1 AND last_record)
    )
    """,
    """
    CREATE TABLE audit_checkpoints (
        chain_id uuid NOT NULL REFERENCES audit_chains(id),
        seal_number bigint NOT NULL,
        last_record bigint NOT NULL,
        digest bytea NOT NULL
            CONSTRAINT audit_checkpoints_digest_check CHECK (octet_length(digest) = 32),
        forgotten_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (chain_id, seal_number)
    )
    """,
    # One order and no more: every index is paid for with every call.
    """
    CREATE INDEX audit_records_occurred_at_idx
        ON audit_records (occurred_at DESC, chain_id DESC, number DESC)
    """,
    "CREATE INDEX audit_seals_sealed_at_idx ON audit_seals (sealed_at)",
    "CREATE INDEX audit_chains_login_idx ON audit_chains (login, started_at DESC)",
)

_NAMES = ("audit_chains", "audit_records", "audit_seals", "audit_checkpoints")

# By whomever, the owner of the schema too: only what a checkpoint covers may go.
_TRIGGERS = (
    """
    CREATE FUNCTION audit_refuse_change() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    BEGIN
        RAISE EXCEPTION 'the audit history is added to and never changed'
            USING ERRCODE = 'restrict_violation';
    END $$
    """,
    """
    CREATE FUNCTION audit_refuse_delete() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        covered boolean;
    BEGIN
        IF TG_TABLE_NAME = 'audit_seals' THEN
            covered := EXISTS (SELECT 1 FROM public.audit_checkpoints c
                                WHERE c.chain_id = OLD.chain_id AND c.seal_number >= OLD.number);
        ELSE
            covered := EXISTS (SELECT 1 FROM public.audit_checkpoints c
                                WHERE c.chain_id = OLD.chain_id AND c.last_record >= OLD.number);
        END IF;
        IF NOT covered THEN
            RAISE EXCEPTION 'no checkpoint covers this part of the audit history'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN OLD;
    END $$
    """,
    """
    CREATE FUNCTION audit_check_checkpoint() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT 1 FROM public.audit_seals s
             WHERE s.chain_id = NEW.chain_id AND s.number = NEW.seal_number
               AND s.digest = NEW.digest AND s.last_record = NEW.last_record
               AND s.sealed_at < clock_timestamp() - interval '30 days'
        ) THEN
            RAISE EXCEPTION 'a checkpoint stands for a seal that is 30 days old'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    *(
        statement
        for table in _NAMES
        for statement in (
            f"""
            CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table}
            FOR EACH ROW EXECUTE FUNCTION audit_refuse_change()
            """,
            f"""
            CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse_change()
            """,
        )
    ),
    *(
        f"""
        CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table}
        FOR EACH ROW EXECUTE FUNCTION {function}()
        """
        for table, function in (
            ("audit_chains", "audit_refuse_change"),
            ("audit_checkpoints", "audit_refuse_change"),
            ("audit_records", "audit_refuse_delete"),
            ("audit_seals", "audit_refuse_delete"),
        )
    ),
    """
    CREATE TRIGGER audit_checkpoints_check BEFORE INSERT ON audit_checkpoints
    FOR EACH ROW EXECUTE FUNCTION audit_check_checkpoint()
    """,
    "REVOKE ALL ON FUNCTION audit_refuse_change(), audit_refuse_delete() FROM PUBLIC",
    "REVOKE ALL ON FUNCTION audit_check_checkpoint() FROM PUBLIC",
)

_OWN = "login = current_user"
_OWN_CHAIN = """EXISTS (SELECT 1 FROM audit_chains chain
                         WHERE chain.id = {}.chain_id AND chain.login = current_user)"""
_OLD = "< now() - interval '30 days'"

_POLICIES = (
    *(
        statement
        for table in _NAMES
        for statement in (
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
            f"CREATE POLICY {table}_auth_select ON {table} FOR SELECT TO qflow_auth USING (true)",
            f"CREATE POLICY {table}_maint_select ON {table} FOR SELECT TO qflow_maint USING (true)",
        )
    ),
    *(
        statement
        for group in ("engine", "api")
        for statement in (
            f"""
            CREATE POLICY audit_chains_{group}_select ON audit_chains FOR SELECT TO qflow_{group}
             USING ({_OWN})
            """,
            f"""
            CREATE POLICY audit_chains_{group}_insert ON audit_chains FOR INSERT TO qflow_{group}
              WITH CHECK ({_OWN})
            """,
            f"""
            CREATE POLICY audit_records_{group}_insert ON audit_records FOR INSERT TO qflow_{group}
              WITH CHECK ({_OWN_CHAIN.format("audit_records")})
            """,
            f"""
            CREATE POLICY audit_seals_{group}_select ON audit_seals FOR SELECT TO qflow_{group}
             USING ({_OWN_CHAIN.format("audit_seals")})
            """,
            f"""
            CREATE POLICY audit_seals_{group}_insert ON audit_seals FOR INSERT TO qflow_{group}
              WITH CHECK ({_OWN_CHAIN.format("audit_seals")})
            """,
        )
    ),
    f"""
    CREATE POLICY audit_records_maint_delete ON audit_records FOR DELETE TO qflow_maint
     USING (occurred_at {_OLD})
    """,
    f"""
    CREATE POLICY audit_seals_maint_delete ON audit_seals FOR DELETE TO qflow_maint
     USING (sealed_at {_OLD})
    """,
    """
    CREATE POLICY audit_checkpoints_maint_insert ON audit_checkpoints FOR INSERT TO qflow_maint
      WITH CHECK (true)
    """,
)

_WRITERS = "qflow_registry_engine, qflow_orchestrator_engine, qflow_runner_engine, qflow_telemetry"
_GRANTS = (
    f"GRANT SELECT, INSERT ON audit_chains, audit_seals TO {_WRITERS}",
    f"GRANT INSERT ON audit_records TO {_WRITERS}",
    f"GRANT SELECT ON {', '.join(_NAMES)} TO qflow_registry_auth, qflow_telemetry_maint",
    "GRANT DELETE ON audit_records, audit_seals TO qflow_telemetry_maint",
    "GRANT INSERT ON audit_checkpoints TO qflow_telemetry_maint",
)

# The oldest seals of one chain, about a batch of records of them: their checkpoint, then they.
_CLEANUP = """
    CREATE FUNCTION cleanup_old_audit_records(
        keep interval DEFAULT '1 year', batch integer DEFAULT 5000
    ) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        horizon timestamptz := clock_timestamp() - GREATEST(keep, interval '30 days');
        of_chain uuid;
        until record;
        removed bigint;
    BEGIN
        SELECT s.chain_id INTO of_chain FROM public.audit_seals s
         WHERE s.sealed_at < horizon ORDER BY s.sealed_at LIMIT 1;
        IF NOT FOUND THEN
            RETURN 0;
        END IF;
        SELECT s.number, s.last_record, s.digest INTO until
          FROM (SELECT o.number, o.last_record, o.digest, o.sealed_at,
                       min(o.first_record) OVER () AS first_of_all,
                       row_number() OVER (ORDER BY o.number) AS place
                  FROM (SELECT * FROM public.audit_seals a
                         WHERE a.chain_id = of_chain ORDER BY a.number LIMIT 1000) o) s
         WHERE s.sealed_at < horizon
           AND (s.place = 1 OR s.last_record - s.first_of_all < batch)
         ORDER BY s.number DESC LIMIT 1;
        INSERT INTO public.audit_checkpoints (chain_id, seal_number, last_record, digest)
        VALUES (of_chain, until.number, until.last_record, until.digest);
        DELETE FROM public.audit_records
         WHERE chain_id = of_chain AND number <= until.last_record;
        GET DIAGNOSTICS removed = ROW_COUNT;
        DELETE FROM public.audit_seals WHERE chain_id = of_chain AND number <= until.number;
        RETURN removed;
    END $$
"""
_FUNCTIONS = (
    _CLEANUP,
    "REVOKE ALL ON FUNCTION cleanup_old_audit_records(interval, integer) FROM PUBLIC",
    "GRANT EXECUTE ON FUNCTION cleanup_old_audit_records(interval, integer) TO qflow_telemetry_maint",
)


def upgrade() -> None:
    run((*_TABLES, *_TRIGGERS, *_POLICIES, *_GRANTS, *_FUNCTIONS))


def downgrade() -> None:
    run(
        (
            "DROP FUNCTION cleanup_old_audit_records(interval, integer)",
            *(f"DROP TABLE {table}" for table in reversed(_NAMES)),
            "DROP FUNCTION audit_refuse_change()",
            "DROP FUNCTION audit_refuse_delete()",
            "DROP FUNCTION audit_check_checkpoint()",
        )
    )
