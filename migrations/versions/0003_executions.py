"""The engine's tables: executions, node executions, data flow, attempts, members, shards.

Mends S20, S21, S22, S29-S31, S37-S44, S48, S54, S55. Values (input_data, output_data) are `json`: the
exact text that was produced, which jsonb would reorder and renumber.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0003"
down_revision = "0002"

_MEMBERS = (
    # One row per orchestrator process: its lease and the fence every flush locks. fillfactor keeps
    # heartbeats on their page (HOT), so no index on what a heartbeat writes.
    """
    CREATE TABLE engine_members (
        id uuid PRIMARY KEY,
        epoch bigint NOT NULL,
        state text NOT NULL
            CONSTRAINT engine_members_state_check CHECK (state IN ('live', 'idle', 'fenced', 'gone')),
        expires_at timestamptz,
        address text,
        host text,
        formats integer[] NOT NULL DEFAULT '{}',
        started_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT engine_members_lease_check CHECK (state <> 'live' OR expires_at IS NOT NULL)
    ) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 50)
    """,
    """
    CREATE TABLE engine_shards (
        shard smallint PRIMARY KEY
            CONSTRAINT engine_shards_shard_check CHECK (shard BETWEEN 0 AND 63),
        member_id uuid REFERENCES engine_members(id) ON DELETE SET NULL,
        moved_at timestamptz
    ) WITH (fillfactor = 50)
    """,
    "CREATE INDEX engine_shards_member_id_idx ON engine_shards (member_id)",
    "INSERT INTO engine_shards (shard) SELECT generate_series(0, 63)",
    """
    CREATE TABLE runner_members (
        incarnation uuid PRIMARY KEY,
        state text NOT NULL
            CONSTRAINT runner_members_state_check CHECK (state IN ('live', 'idle', 'fenced', 'gone')),
        expires_at timestamptz,
        host text,
        tier text,
        slots integer CONSTRAINT runner_members_slots_check CHECK (slots >= 0),
        pythons text[] NOT NULL DEFAULT '{}',
        labels jsonb NOT NULL DEFAULT '{}',
        started_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now()
    ) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 50)
    """,
)

_EXECUTIONS = (
    # The versions a floating definition resolved to, kept once for all executions that got the same.
    """
    CREATE TABLE execution_pins (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        tenant_id uuid NOT NULL REFERENCES tenants(id),
        digest text NOT NULL,
        workflow_id uuid NOT NULL REFERENCES workflows(id) ON DELETE CASCADE,
        workflow_version integer NOT NULL,
        pins jsonb NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (tenant_id, digest)
    )
    """,
    "CREATE INDEX execution_pins_workflow_id_idx ON execution_pins (workflow_id)",
    """
    CREATE TABLE workflow_executions (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        workflow_id uuid NOT NULL REFERENCES workflows(id) ON DELETE CASCADE,
        status varchar(50) NOT NULL
            CONSTRAINT workflow_executions_status_check CHECK (status IN
                ('pending', 'running', 'paused', 'completed', 'failed', 'cancelled')),
        started_at timestamptz,
        completed_at timestamptz,
        duration_ms bigint GENERATED ALWAYS AS
            ((date_part('epoch', completed_at - started_at) * 1000)::bigint) STORED,
        input_data json,
        output_data json,
        error_message text,
        error_stack_trace text,
        container_id varchar(255),
        python_version varchar(10)
            CONSTRAINT workflow_executions_python_version_check
            CHECK (python_version ~ '^3[.](9|[1-9][0-9])([.][0-9]{1,2})?$'),
        resource_usage jsonb,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id(),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        queued_at timestamptz NOT NULL DEFAULT now(),
        workflow_version integer NOT NULL,
        pins_id uuid,
        shard smallint
            CONSTRAINT workflow_executions_shard_check CHECK (shard BETWEEN 0 AND 63),
        engine_format smallint NOT NULL DEFAULT 1,
        request_id uuid,
        request_digest text,
        business_key varchar(128)
            CONSTRAINT workflow_executions_business_key_check
            CHECK (octet_length(business_key) BETWEEN 1 AND 128),
        parent_execution_id uuid,
        relation text
            CONSTRAINT workflow_executions_relation_check CHECK (relation ~ '^[a-z_]{1,32}$'),
        cancel_requested_at timestamptz,
        deadline_at timestamptz,
        error_type text,
        failed_node_id text,
        revision bigint NOT NULL DEFAULT 0,
        labels jsonb NOT NULL DEFAULT '{}'
            CONSTRAINT workflow_executions_labels_check CHECK (jsonb_typeof(labels) = 'object'),
        purge_started_at timestamptz,
        CONSTRAINT workflow_executions_version_fkey FOREIGN KEY (workflow_id, workflow_version)
            REFERENCES workflow_versions (workflow_id, version),
        CONSTRAINT workflow_executions_completed_check
            CHECK ((status IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)),
        CONSTRAINT workflow_executions_order_check CHECK (completed_at >= started_at),
        CONSTRAINT workflow_executions_started_check
            CHECK ((status <> 'pending' OR started_at IS NULL)
               AND (status <> 'running' OR started_at IS NOT NULL))
    ) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01,
            autovacuum_vacuum_threshold = 500, autovacuum_analyze_scale_factor = 0.02)
    """,
    # S54, S55: the seed's names on what the queries ask for. Lists page by creation within a
    # workflow, an author, a tenant; open executions are few, so indexes on state hold only them.
    """
    CREATE INDEX idx_workflow_executions_workflow_id
        ON workflow_executions (workflow_id, created_at DESC, id DESC)
    """,
    """
    CREATE INDEX idx_workflow_executions_created_by
        ON workflow_executions (created_by, created_at DESC, id DESC)
    """,
    """
    CREATE INDEX workflow_executions_tenant_id_created_at_idx
        ON workflow_executions (tenant_id, created_at DESC, id DESC)
    """,
    """
    CREATE INDEX idx_workflow_executions_status ON workflow_executions (shard, id)
     WHERE status IN ('pending', 'running', 'paused')
    """,
    """
    CREATE INDEX idx_workflow_executions_status_created_at
        ON workflow_executions (status, created_at)
     WHERE status IN ('pending', 'running', 'paused')
    """,
    # Ids and creation times grow together: a block range index answers time ranges for nearly nothing.
    "CREATE INDEX idx_workflow_executions_created_at ON workflow_executions USING brin (created_at)",
    # Retention and telemetry's watermark both walk finished executions in order of their end.
    """
    CREATE INDEX workflow_executions_completed_at_idx ON workflow_executions (completed_at, id)
     WHERE completed_at IS NOT NULL
    """,
    """
    CREATE INDEX workflow_executions_purge_idx ON workflow_executions (purge_started_at, id)
     WHERE purge_started_at IS NOT NULL
    """,
    """
    CREATE UNIQUE INDEX workflow_executions_request_id_key
        ON workflow_executions (tenant_id, created_by, request_id) WHERE request_id IS NOT NULL
    """,
    """
    CREATE INDEX workflow_executions_business_key_idx
        ON workflow_executions (tenant_id, workflow_id, business_key)
     WHERE business_key IS NOT NULL
    """,
    """
    CREATE INDEX workflow_executions_parent_idx ON workflow_executions (parent_execution_id)
     WHERE parent_execution_id IS NOT NULL
    """,
)

_NODE_EXECUTIONS = (
    """
    CREATE TABLE node_executions (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        workflow_execution_id uuid NOT NULL REFERENCES workflow_executions(id) ON DELETE CASCADE,
        node_id varchar(255) NOT NULL,
        node_type varchar(50) NOT NULL
            CONSTRAINT node_executions_node_type_check CHECK (node_type IN ('python', 'builtin')),
        status varchar(50) NOT NULL
            CONSTRAINT node_executions_status_check CHECK (status IN
                ('pending', 'running', 'retrying', 'waiting', 'paused',
                 'completed', 'failed', 'skipped', 'cancelled', 'quarantined')),
        started_at timestamptz,
        completed_at timestamptz,
        duration_ms bigint GENERATED ALWAYS AS
            ((date_part('epoch', completed_at - started_at) * 1000)::bigint) STORED,
        input_data json,
        output_data json,
        error_message text,
        error_stack_trace text,
        execution_order integer,
        retry_count integer NOT NULL DEFAULT 0,
        max_retries integer NOT NULL DEFAULT 3,
        definition_node_id varchar(255),
        node_version_id uuid,
        runner_incarnation uuid,
        attempt_token bigint,
        delivery_count smallint NOT NULL DEFAULT 0
            CONSTRAINT node_executions_delivery_count_check CHECK (delivery_count >= 0),
        revision bigint NOT NULL DEFAULT 0,
        due_at timestamptz,
        error_type text,
        container_id uuid,
        resource_usage jsonb,
        output_file_id uuid,
        stdout_tail text,
        stderr_tail text,
        CONSTRAINT node_executions_completed_check
            CHECK ((status IN ('completed', 'failed', 'skipped', 'cancelled', 'quarantined'))
                 = (completed_at IS NOT NULL)),
        CONSTRAINT node_executions_order_check CHECK (completed_at >= started_at),
        CONSTRAINT node_executions_started_check
            CHECK ((status <> 'pending' OR started_at IS NULL)
               AND (status <> 'running' OR started_at IS NOT NULL)),
        CONSTRAINT node_executions_retry_check
            CHECK (retry_count BETWEEN 0 AND max_retries AND max_retries <= 100)
    ) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01,
            autovacuum_vacuum_threshold = 500, autovacuum_analyze_scale_factor = 0.02)
    """,
    # S39, S44, S54: the hot table. The seed's four indexes cost an entry each at insert and again
    # at every change of status. Two of the names are now the unique keys that must be there anyway
    # (they serve the foreign key and the page order too); the two on status are block range
    # indexes, one entry per range, which from server 16 on leave the update HOT. With room on the
    # page (fillfactor) that is, per node on server 18, batches of 500, microseconds and WAL bytes:
    #   seed's indexes: insert 16, complete 30, 1836 bytes; a partial index on status: 13, 14, 1267;
    #   these at fillfactor 100: 12, 15, 1238; at 70: 12, 11, 1083; at 50: 12, 9, 952 (three of four HOT).
    # Servers 14 and 15 update no row HOT with them: 13, 14, 1163.
    """
    CREATE UNIQUE INDEX idx_node_executions_node_id
        ON node_executions (workflow_execution_id, node_id)
    """,
    """
    CREATE UNIQUE INDEX idx_node_executions_workflow_execution_id
        ON node_executions (workflow_execution_id, execution_order)
    """,
    "CREATE INDEX idx_node_executions_status ON node_executions USING brin (status)",
    """
    CREATE INDEX idx_node_executions_workflow_status
        ON node_executions USING brin (workflow_execution_id, status)
    """,
    # History of attempts that failed or were lost; the row above shows the last attempt.
    """
    CREATE TABLE node_attempts (
        node_execution_id uuid NOT NULL REFERENCES node_executions(id) ON DELETE CASCADE,
        token bigint NOT NULL,
        attempt integer NOT NULL CONSTRAINT node_attempts_attempt_check CHECK (attempt >= 1),
        outcome text NOT NULL
            CONSTRAINT node_attempts_outcome_check CHECK (outcome ~ '^[a-z_]{1,32}$'),
        error_type text,
        error_message text,
        stack_trace text,
        stdout_tail text,
        stderr_tail text,
        runner_incarnation uuid,
        started_at timestamptz,
        ended_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        resource_usage jsonb,
        PRIMARY KEY (node_execution_id, token),
        CONSTRAINT node_attempts_order_check CHECK (ended_at >= started_at)
    )
    """,
    # The seed's key to the run only: keys to both nodes double the cost of a row (I7 proves the ends).
    """
    CREATE TABLE node_data_flow (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        workflow_execution_id uuid NOT NULL REFERENCES workflow_executions(id) ON DELETE CASCADE,
        source_node_id varchar(255) NOT NULL,
        target_node_id varchar(255) NOT NULL,
        data_type varchar(50) NOT NULL
            CONSTRAINT node_data_flow_data_type_check CHECK (data_type IN ('json', 'pickle', 'file')),
        data_size_bytes bigint
            CONSTRAINT node_data_flow_data_size_bytes_check CHECK (data_size_bytes >= 0),
        serialization_time_ms bigint
            CONSTRAINT node_data_flow_serialization_time_ms_check CHECK (serialization_time_ms >= 0),
        transfer_time_ms bigint
            CONSTRAINT node_data_flow_transfer_time_ms_check CHECK (transfer_time_ms >= 0),
        serialization_time_us bigint
            CONSTRAINT node_data_flow_serialization_time_us_check CHECK (serialization_time_us >= 0),
        transfer_time_us bigint
            CONSTRAINT node_data_flow_transfer_time_us_check CHECK (transfer_time_us >= 0),
        conversion text,
        file_id uuid,
        created_at timestamptz NOT NULL DEFAULT now()
    ) WITH (autovacuum_vacuum_insert_scale_factor = 0.05)
    """,
    """
    CREATE INDEX node_data_flow_workflow_execution_id_idx
        ON node_data_flow (workflow_execution_id, id)
    """,
)

_GUARDS = (
    # A terminal row never changes; *<> compares bytes, which works for json too. Retention alone
    # may mark an execution as being purged.
    """
    CREATE FUNCTION guard_terminal_execution() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    DECLARE
        before public.workflow_executions := OLD;
    BEGIN
        before.purge_started_at := NEW.purge_started_at;
        -- A generated column is not computed yet in a BEFORE trigger.
        before.duration_ms := NEW.duration_ms;
        IF before *<> NEW THEN
            RAISE EXCEPTION 'execution % is %: a terminal execution never changes', OLD.id, OLD.status
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER workflow_executions_terminal BEFORE UPDATE ON workflow_executions
    FOR EACH ROW WHEN (OLD.completed_at IS NOT NULL) EXECUTE FUNCTION guard_terminal_execution()
    """,
    """
    CREATE FUNCTION guard_terminal_node() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog
    AS $$
    BEGIN
        RAISE EXCEPTION 'node execution % is %: a terminal node never changes', OLD.id, OLD.status
            USING ERRCODE = 'restrict_violation';
    END $$
    """,
    """
    CREATE TRIGGER node_executions_terminal BEFORE UPDATE ON node_executions
    FOR EACH ROW WHEN (OLD.completed_at IS NOT NULL) EXECUTE FUNCTION guard_terminal_node()
    """,
    # The flush's proof: raises, and so writes nothing, when the member is fenced or a guard missed.
    """
    CREATE FUNCTION engine_check(fence_rows bigint, expected bigint, actual bigint, what text)
    RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog
    AS $$
    BEGIN
        IF fence_rows = 0 THEN
            RAISE EXCEPTION 'fenced' USING ERRCODE = 'QF002';
        END IF;
        IF expected IS DISTINCT FROM actual THEN
            RAISE EXCEPTION 'guard missed: %', what USING ERRCODE = 'QF001',
                DETAIL = format('expected %s rows, found %s', expected, actual);
        END IF;
        RETURN true;
    END $$
    """,
    # S22: the cascade from a workflow to its executions may take finished ones only. Definer,
    # because the caller does not see other tenants' executions of a template.
    """
    CREATE FUNCTION guard_workflow_delete() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
    BEGIN
        IF EXISTS (SELECT 1 FROM public.workflow_executions
                    WHERE workflow_id = OLD.id AND completed_at IS NULL) THEN
            RAISE EXCEPTION 'workflow % has executions that are not over', OLD.id
                USING ERRCODE = 'restrict_violation', HINT = 'cancel them, or set deleted_at';
        END IF;
        RETURN OLD;
    END $$
    """,
    """
    CREATE TRIGGER workflows_delete BEFORE DELETE ON workflows
    FOR EACH ROW EXECUTE FUNCTION guard_workflow_delete()
    """,
)


def upgrade() -> None:
    for statements in (_MEMBERS, _EXECUTIONS, _NODE_EXECUTIONS, _GUARDS):
        run(statements)


def downgrade() -> None:
    run(
        (
            "DROP TRIGGER workflows_delete ON workflows",
            "DROP FUNCTION guard_workflow_delete()",
            "DROP FUNCTION engine_check(bigint, bigint, bigint, text)",
            "DROP TABLE node_data_flow, node_attempts, node_executions",
            "DROP TABLE workflow_executions, execution_pins",
            "DROP FUNCTION guard_terminal_node()",
            "DROP FUNCTION guard_terminal_execution()",
            "DROP TABLE runner_members, engine_shards, engine_members",
        )
    )
