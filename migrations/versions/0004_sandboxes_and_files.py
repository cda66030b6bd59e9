"""The runner's tables: sandboxes, what is installed in them, files and who read them.

Mends S11, S20, S21, S25-S27, S30, S32-S34, S36, S37, S51, S52, S54, S56.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0004"
down_revision = "0003"

_SANDBOXES = (
    # A row is a sandbox, not an attempt. container_id is written before the sandbox exists
    # (`pending:<uuid>`), then the engine's id, or `proc:<uuid>` for a process sandbox. Callers
    # of one tenant share it, so it has no author by itself.
    """
    CREATE TABLE containers (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        container_id varchar(255) UNIQUE NOT NULL
            CONSTRAINT containers_container_id_check CHECK (container_id <> ''),
        python_version varchar(10) NOT NULL
            CONSTRAINT containers_python_version_check
            CHECK (python_version ~ '^3[.](9|[1-9][0-9])([.][0-9]{1,2})?$'),
        status varchar(50) NOT NULL
            CONSTRAINT containers_status_check CHECK (status IN
                ('creating', 'running', 'stopped', 'error', 'removing', 'removed')),
        workflow_execution_id uuid REFERENCES workflow_executions(id) ON DELETE CASCADE,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id(),
        created_by uuid DEFAULT current_user_id() REFERENCES users(id),
        node_version_id uuid,
        runner_incarnation uuid,
        created_at timestamptz NOT NULL DEFAULT now(),
        started_at timestamptz,
        stopped_at timestamptz,
        resource_limits jsonb,
        resource_usage jsonb,
        CONSTRAINT containers_order_check CHECK (stopped_at >= started_at)
    ) WITH (fillfactor = 80)
    """,
    # Open sandboxes are few and are what is asked for; finished ones only pile up.
    """
    CREATE INDEX idx_containers_status ON containers (status, runner_incarnation)
     WHERE status IN ('creating', 'running', 'removing')
    """,
    "CREATE INDEX idx_containers_python_version ON containers (python_version)",
    "CREATE INDEX containers_workflow_execution_id_idx ON containers (workflow_execution_id)",
    "CREATE INDEX containers_created_by_idx ON containers (created_by)",
    "CREATE INDEX containers_tenant_id_created_at_idx ON containers (tenant_id, created_at DESC, id DESC)",
    "CREATE INDEX containers_stopped_at_idx ON containers (stopped_at) WHERE stopped_at IS NOT NULL",
    """
    CREATE TABLE container_dependencies (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        container_id uuid NOT NULL REFERENCES containers(id) ON DELETE CASCADE,
        package_name varchar(255) NOT NULL,
        version varchar(100),
        installation_status varchar(50)
            CONSTRAINT container_dependencies_installation_status_check CHECK
            (installation_status IN ('pending', 'installing', 'completed', 'failed')),
        installation_time_ms bigint
            CONSTRAINT container_dependencies_installation_time_ms_check
            CHECK (installation_time_ms >= 0),
        lock_hash text,
        created_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT container_dependencies_container_id_package_name_key
            UNIQUE (container_id, package_name)
    )
    """,
    """
    CREATE TABLE environments (
        key text PRIMARY KEY,
        tenant_id uuid NOT NULL,
        python_version text NOT NULL,
        platform text NOT NULL,
        lock_digest text NOT NULL,
        state text NOT NULL DEFAULT 'building'
            CONSTRAINT environments_state_check CHECK (state IN ('building', 'ready', 'failed')),
        path text,
        size_bytes bigint CONSTRAINT environments_size_bytes_check CHECK (size_bytes >= 0),
        error text,
        created_at timestamptz NOT NULL DEFAULT now(),
        ready_at timestamptz,
        last_used_at timestamptz
    )
    """,
    "CREATE INDEX environments_tenant_id_idx ON environments (tenant_id, created_at DESC)",
    "CREATE INDEX environments_last_used_at_idx ON environments (last_used_at)",
)

_FILES = (
    # The bytes lie under the generated key <tenant>/<file id>; names are only what people gave.
    """
    CREATE TABLE files (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        filename varchar(255) NOT NULL
            CONSTRAINT files_filename_check CHECK (octet_length(filename) BETWEEN 1 AND 255),
        original_filename varchar(255) NOT NULL
            CONSTRAINT files_original_filename_check
            CHECK (octet_length(original_filename) BETWEEN 1 AND 255),
        file_path varchar(500) NOT NULL
            CONSTRAINT files_file_path_check CHECK (file_path = tenant_id::text || '/' || id::text),
        file_size_bytes bigint NOT NULL
            CONSTRAINT files_file_size_bytes_check CHECK (file_size_bytes >= 0),
        mime_type varchar(100)
            CONSTRAINT files_mime_type_check
            CHECK (mime_type ~ '^[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+( *;.*)?$'),
        hash_sha256 varchar(64)
            CONSTRAINT files_hash_sha256_check CHECK (hash_sha256 ~ '^[0-9a-f]{64}$'),
        workflow_execution_id uuid REFERENCES workflow_executions(id) ON DELETE CASCADE,
        node_execution_id uuid REFERENCES node_executions(id) ON DELETE CASCADE,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id(),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        expires_at timestamptz,
        is_temporary boolean NOT NULL DEFAULT false,
        CONSTRAINT files_file_path_key UNIQUE (file_path),
        CONSTRAINT files_temporary_check CHECK (NOT is_temporary OR expires_at IS NOT NULL)
    )
    """,
    "CREATE INDEX idx_files_workflow_execution_id ON files (workflow_execution_id)",
    "CREATE INDEX idx_files_expires_at ON files (expires_at, id) WHERE is_temporary",
    "CREATE INDEX files_node_execution_id_idx ON files (node_execution_id)",
    "CREATE INDEX files_created_by_idx ON files (created_by)",
    "CREATE INDEX files_tenant_id_created_at_idx ON files (tenant_id, created_at DESC, id DESC)",
    # The log outlives the file: what it was is copied in.
    """
    CREATE TABLE file_access_logs (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        file_id uuid REFERENCES files(id) ON DELETE SET NULL,
        access_type varchar(50) NOT NULL
            CONSTRAINT file_access_logs_access_type_check
            CHECK (access_type IN ('read', 'write', 'delete')),
        accessed_by uuid REFERENCES users(id) ON DELETE SET NULL,
        accessed_at timestamptz NOT NULL DEFAULT now(),
        tenant_id uuid,
        file_path varchar(500),
        file_hash varchar(64)
    )
    """,
    "CREATE INDEX file_access_logs_file_id_idx ON file_access_logs (file_id)",
    "CREATE INDEX file_access_logs_accessed_by_idx ON file_access_logs (accessed_by)",
    "CREATE INDEX file_access_logs_accessed_at_idx ON file_access_logs (accessed_at)",
    "CREATE INDEX file_access_logs_tenant_id_idx ON file_access_logs (tenant_id, accessed_at DESC)",
    """
    CREATE FUNCTION copy_file_facts() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    BEGIN
        SELECT f.tenant_id, f.file_path, f.hash_sha256
          INTO NEW.tenant_id, NEW.file_path, NEW.file_hash
          FROM public.files f WHERE f.id = NEW.file_id;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER file_access_logs_facts BEFORE INSERT ON file_access_logs
    FOR EACH ROW WHEN (NEW.file_id IS NOT NULL) EXECUTE FUNCTION copy_file_facts()
    """,
)


def upgrade() -> None:
    run(_SANDBOXES)
    run(_FILES)


def downgrade() -> None:
    run(
        (
            "DROP TABLE file_access_logs, files",
            "DROP FUNCTION copy_file_facts()",
            "DROP TABLE environments, container_dependencies, containers",
        )
    )
