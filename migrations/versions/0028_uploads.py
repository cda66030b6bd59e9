"""Uploads that may be interrupted, and what the files of a tenant may take.

An upload is a row until it is finished: then it becomes a file, in one statement. What a tenant has
is counted as it changes, by triggers, under the lock of its one row; whatever would be over its
quota is refused there, whoever writes it.
"""

from __future__ import annotations

from migrations.sql import BORROW_GROUPS, RETURN_GROUPS, run

revision = "0028"
down_revision = "0027"

_TENANT = "tenant_id = (SELECT current_tenant_id())"
_USER = "(SELECT current_user_id())"
_WRITTEN = f"{_TENANT} AND (SELECT current_role_name()) IN ('admin', 'user')"
_MADE = f"{_WRITTEN} AND created_by = {_USER}"

_TABLES = (
    # Its bytes lie where those of the file will: under <tenant>/<id>.
    """
    CREATE TABLE file_uploads (
        id uuid PRIMARY KEY,
        filename varchar(255) NOT NULL
            CONSTRAINT file_uploads_filename_check CHECK (octet_length(filename) BETWEEN 1 AND 255),
        mime_type varchar(100) NOT NULL,
        file_size_bytes bigint NOT NULL
            CONSTRAINT file_uploads_file_size_bytes_check CHECK (file_size_bytes >= 0),
        hash_sha256 varchar(64)
            CONSTRAINT file_uploads_hash_sha256_check CHECK (hash_sha256 ~ '^[0-9a-f]{64}$'),
        file_expires_at timestamptz,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz NOT NULL
    )
    """,
    "CREATE INDEX file_uploads_tenant_id_idx ON file_uploads (tenant_id)",
    "CREATE INDEX file_uploads_created_by_idx ON file_uploads (created_by)",
    "CREATE INDEX file_uploads_expires_at_idx ON file_uploads (expires_at)",
    """
    CREATE TABLE file_usage (
        tenant_id uuid PRIMARY KEY,
        bytes bigint NOT NULL DEFAULT 0 CONSTRAINT file_usage_bytes_check CHECK (bytes >= 0),
        files bigint NOT NULL DEFAULT 0 CONSTRAINT file_usage_files_check CHECK (files >= 0),
        bytes_max bigint NOT NULL DEFAULT 107374182400
            CONSTRAINT file_usage_bytes_max_check CHECK (bytes_max >= 0),
        files_max bigint NOT NULL DEFAULT 1000000
            CONSTRAINT file_usage_files_max_check CHECK (files_max >= 0)
    ) WITH (fillfactor = 50)
    """,
    *(
        f"ALTER TABLE {table} {what} ROW LEVEL SECURITY"
        for table in ("file_uploads", "file_usage")
        for what in ("ENABLE", "FORCE")
    ),
)

_POLICIES = (
    f"CREATE POLICY file_uploads_api_select ON file_uploads FOR SELECT TO qflow_api USING ({_TENANT})",
    f"CREATE POLICY file_uploads_api_insert ON file_uploads FOR INSERT TO qflow_api WITH CHECK ({_MADE})",
    f"CREATE POLICY file_uploads_api_delete ON file_uploads FOR DELETE TO qflow_api USING ({_WRITTEN})",
    "CREATE POLICY file_uploads_engine_select ON file_uploads FOR SELECT TO qflow_engine USING (true)",
    """
    CREATE POLICY file_uploads_engine_delete ON file_uploads FOR DELETE TO qflow_engine
     USING (expires_at < now())
    """,
    f"CREATE POLICY file_usage_api_select ON file_usage FOR SELECT TO qflow_api USING ({_TENANT})",
    "CREATE POLICY file_usage_maint_select ON file_usage FOR SELECT TO qflow_maint USING (true)",
    "CREATE POLICY file_usage_maint_insert ON file_usage FOR INSERT TO qflow_maint WITH CHECK (true)",
    """
    CREATE POLICY file_usage_maint_update ON file_usage FOR UPDATE TO qflow_maint
     USING (true) WITH CHECK (true)
    """,
    # A caller's own file belongs to no run: those are written by the engine.
    f"""
    CREATE POLICY files_api_insert ON files FOR INSERT TO qflow_api
      WITH CHECK ({_MADE} AND workflow_execution_id IS NULL AND node_execution_id IS NULL)
    """,
    f"""
    CREATE POLICY files_api_delete ON files FOR DELETE TO qflow_api
     USING ({_WRITTEN} AND workflow_execution_id IS NULL)
    """,
)

_GRANTS = (
    "GRANT SELECT, INSERT, DELETE ON file_uploads TO qflow_runner",
    "GRANT SELECT ON file_usage TO qflow_runner",
    "GRANT INSERT, DELETE ON files TO qflow_runner",
    "GRANT SELECT, INSERT ON idempotency_keys TO qflow_runner",
    "GRANT SELECT, DELETE ON file_uploads TO qflow_runner_engine",
    # What the trigger needs as its owner's right.
    "GRANT SELECT, INSERT ON file_usage TO qflow_maint",
    "GRANT UPDATE (bytes, files) ON file_usage TO qflow_maint",
)

# Rows of one tenant stand in line for its count, so of two that fit alone only one gets in.
_COUNT = """
    CREATE FUNCTION count_files() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
    DECLARE
        of_tenant record;
        known public.file_usage;
    BEGIN
        FOR of_tenant IN
            SELECT tenant_id, sum(file_size_bytes)::bigint AS bytes, count(*) AS files
              FROM changed GROUP BY tenant_id ORDER BY tenant_id
        LOOP
            IF TG_OP = 'DELETE' THEN
                UPDATE public.file_usage AS u
                   SET bytes = GREATEST(0, u.bytes - of_tenant.bytes),
                       files = GREATEST(0, u.files - of_tenant.files)
                 WHERE u.tenant_id = of_tenant.tenant_id;
                CONTINUE;
            END IF;
            INSERT INTO public.file_usage AS u (tenant_id, bytes, files)
            VALUES (of_tenant.tenant_id, of_tenant.bytes, of_tenant.files)
                ON CONFLICT (tenant_id) DO UPDATE
               SET bytes = u.bytes + EXCLUDED.bytes, files = u.files + EXCLUDED.files
         RETURNING * INTO known;
            IF known.bytes > known.bytes_max OR known.files > known.files_max THEN
                RAISE EXCEPTION 'file quota reached' USING ERRCODE = 'QF003';
            END IF;
        END LOOP;
        RETURN NULL;
    END $$
"""
# The bytes of an upload that is given up go after the commit; those of a finished one are a file's.
_QUEUE = """
    CREATE FUNCTION queue_upload_bytes() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
    BEGIN
        IF NOT EXISTS (SELECT 1 FROM public.files WHERE id = OLD.id) THEN
            INSERT INTO public.outbox_events (kind, payload, tenant_id)
            VALUES ('file_deleted',
                    jsonb_build_object('file_id', OLD.id, 'file_size_bytes', OLD.file_size_bytes),
                    OLD.tenant_id);
        END IF;
        RETURN NULL;
    END $$
"""
_TRIGGERS = (
    *(
        f"""
        CREATE TRIGGER {table}_count_{verb.lower()} AFTER {verb} ON {table}
        REFERENCING {kind} TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_files()
        """
        for table in ("files", "file_uploads")
        for verb, kind in (("INSERT", "NEW"), ("DELETE", "OLD"))
    ),
    """
    CREATE TRIGGER file_uploads_queue_bytes AFTER DELETE ON file_uploads
    FOR EACH ROW EXECUTE FUNCTION queue_upload_bytes()
    """,
)

# What is there already is counted, and nobody is refused for it: over a quota nothing more gets in.
_COUNT_ALL = """
    INSERT INTO file_usage (tenant_id, bytes, files)
    SELECT tenant_id, sum(file_size_bytes), count(*) FROM files GROUP BY tenant_id
"""


def upgrade() -> None:
    run(_TABLES)
    run(
        (
            "LOCK TABLE files IN SHARE ROW EXCLUSIVE MODE",
            "ALTER TABLE files NO FORCE ROW LEVEL SECURITY",
            "ALTER TABLE file_usage NO FORCE ROW LEVEL SECURITY",
            _COUNT_ALL,
            "ALTER TABLE file_usage FORCE ROW LEVEL SECURITY",
            "ALTER TABLE files FORCE ROW LEVEL SECURITY",
        )
    )
    run(_POLICIES)
    run(_GRANTS)
    run(
        (
            _COUNT,
            _QUEUE,
            "REVOKE ALL ON FUNCTION count_files(), queue_upload_bytes() FROM PUBLIC",
            *_TRIGGERS,
            *BORROW_GROUPS,
            "ALTER FUNCTION count_files() OWNER TO qflow_maint",
            "ALTER FUNCTION queue_upload_bytes() OWNER TO qflow_maint",
            *RETURN_GROUPS,
        )
    )


def downgrade() -> None:
    run(
        (
            "DROP TRIGGER files_count_insert ON files",
            "DROP TRIGGER files_count_delete ON files",
            "DROP TABLE file_uploads, file_usage",
            *BORROW_GROUPS,
            "DROP FUNCTION count_files(), queue_upload_bytes()",
            *RETURN_GROUPS,
            "DROP POLICY files_api_insert ON files",
            "DROP POLICY files_api_delete ON files",
            "REVOKE INSERT, DELETE ON files FROM qflow_runner",
            "REVOKE SELECT, INSERT ON idempotency_keys FROM qflow_runner",
        )
    )
