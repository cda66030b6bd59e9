"""Schedules with their ticks and backfills; events for subscribers; triggers from outside.

`fire_at` is when somebody has to look at a schedule; a tick's key is its schedule and its time, so that there
is never a second one; `try_at` is when the next try to start it may begin. What becomes of runs goes into the
outbox in the transaction that makes it so, where somebody has subscribed to it. Of a trigger's secret only the
digest is here, of a subscription's nothing: it is derived from a key that the orchestrators hold.
"""

from __future__ import annotations

from migrations.sql import BORROW_GROUPS, RETURN_GROUPS, run

revision = "0019"
down_revision = "0018"

_TENANT = "tenant_id = (SELECT current_tenant_id())"
_USER = "(SELECT current_user_id())"
_WRITTEN = f"{_TENANT} AND (SELECT current_role_name()) IN ('admin', 'user')"

_OWNER = """
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        created_by uuid NOT NULL DEFAULT current_user_id() REFERENCES users(id),
        created_at timestamptz NOT NULL DEFAULT now()"""

_SCHEDULES = (
    f"""
    CREATE TABLE schedules (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        workflow_id uuid NOT NULL REFERENCES workflows(id) ON DELETE CASCADE,
        name varchar(255) NOT NULL CONSTRAINT schedules_name_check CHECK (name <> ''),
        description text NOT NULL DEFAULT '',
        workflow_version integer NOT NULL DEFAULT 0
            CONSTRAINT schedules_workflow_version_check CHECK (workflow_version >= 0),
        workflow_alias varchar(63) NOT NULL DEFAULT '',
        input_data json NOT NULL DEFAULT '{{}}'
            CONSTRAINT schedules_input_data_check CHECK (octet_length(input_data::text) <= 65536),
        timing jsonb NOT NULL
            CONSTRAINT schedules_timing_check CHECK (jsonb_typeof(timing) = 'object'),
        overlap text NOT NULL CONSTRAINT schedules_overlap_check
            CHECK (overlap IN ('skip', 'buffer_one', 'allow', 'cancel_running')),
        catch_up text NOT NULL CONSTRAINT schedules_catch_up_check
            CHECK (catch_up IN ('none', 'last', 'all')),
        catch_up_window_ms bigint NOT NULL CONSTRAINT schedules_catch_up_window_ms_check
            CHECK (catch_up_window_ms > 0),
        labels text[] NOT NULL DEFAULT '{{}}',
        paused_at timestamptz,
        pause_reason text NOT NULL DEFAULT '',
        due_at timestamptz,
        fire_at timestamptz,
        last_at timestamptz,
        claimed_until timestamptz,
        skipped_count bigint NOT NULL DEFAULT 0,
        error_reason text,
        error_message text,
        error_at timestamptz,
        revision bigint NOT NULL DEFAULT 1,
        updated_at timestamptz NOT NULL DEFAULT now(),{_OWNER},
        CONSTRAINT schedules_due_check CHECK ((due_at IS NULL) = (fire_at IS NULL)),
        CONSTRAINT schedules_paused_check CHECK (paused_at IS NULL OR due_at IS NULL),
        CONSTRAINT schedules_error_check CHECK ((error_reason IS NULL) = (error_at IS NULL))
    ) WITH (fillfactor = 80)
    """,
    "CREATE INDEX schedules_fire_at_idx ON schedules (fire_at, id) WHERE fire_at IS NOT NULL",
    """
    CREATE INDEX schedules_tenant_id_created_at_idx
        ON schedules (tenant_id, created_at DESC, id DESC)
    """,
    "CREATE INDEX schedules_workflow_id_idx ON schedules (workflow_id)",
    "CREATE INDEX schedules_created_by_idx ON schedules (created_by)",
    f"""
    CREATE TABLE schedule_backfills (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        schedule_id uuid NOT NULL REFERENCES schedules(id) ON DELETE CASCADE,
        timing jsonb NOT NULL
            CONSTRAINT schedule_backfills_timing_check CHECK (jsonb_typeof(timing) = 'object'),
        from_at timestamptz NOT NULL,
        to_at timestamptz NOT NULL,
        next_at timestamptz,
        step_at timestamptz,
        max_running integer NOT NULL CONSTRAINT schedule_backfills_max_running_check
            CHECK (max_running BETWEEN 1 AND 100),
        state text NOT NULL DEFAULT 'running' CONSTRAINT schedule_backfills_state_check
            CHECK (state IN ('running', 'completed', 'cancelled')),
        total_count integer NOT NULL,
        done_count integer NOT NULL DEFAULT 0,
        present_count integer NOT NULL DEFAULT 0,
        completed_at timestamptz,{_OWNER},
        CONSTRAINT schedule_backfills_range_check CHECK (from_at < to_at),
        CONSTRAINT schedule_backfills_completed_at_check
            CHECK ((state = 'running') = (completed_at IS NULL)),
        CONSTRAINT schedule_backfills_step_at_check
            CHECK ((state = 'running') = (step_at IS NOT NULL))
    )
    """,
    """
    CREATE INDEX schedule_backfills_schedule_id_idx
        ON schedule_backfills (schedule_id, created_at DESC, id DESC)
    """,
    """
    CREATE INDEX schedule_backfills_step_at_idx ON schedule_backfills (step_at, id)
     WHERE step_at IS NOT NULL
    """,
    """
    CREATE INDEX schedule_backfills_completed_at_idx ON schedule_backfills (completed_at)
     WHERE completed_at IS NOT NULL
    """,
    "CREATE INDEX schedule_backfills_tenant_id_idx ON schedule_backfills (tenant_id)",
    "CREATE INDEX schedule_backfills_created_by_idx ON schedule_backfills (created_by)",
    # No key to the execution: that is retention's to remove, and the tick says that it was started.
    """
    CREATE TABLE schedule_ticks (
        schedule_id uuid NOT NULL REFERENCES schedules(id) ON DELETE CASCADE,
        tick_at timestamptz NOT NULL,
        kind text NOT NULL CONSTRAINT schedule_ticks_kind_check
            CHECK (kind IN ('timed', 'manual', 'backfill')),
        state text NOT NULL CONSTRAINT schedule_ticks_state_check
            CHECK (state IN ('pending', 'started', 'skipped', 'failed')),
        tick_count integer NOT NULL DEFAULT 1,
        execution_id uuid,
        is_over boolean NOT NULL DEFAULT false,
        reason text NOT NULL DEFAULT '',
        message text NOT NULL DEFAULT '',
        attempts integer NOT NULL DEFAULT 0,
        try_at timestamptz,
        backfill_id uuid REFERENCES schedule_backfills(id) ON DELETE SET NULL,
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (schedule_id, tick_at),
        CONSTRAINT schedule_ticks_try_at_check CHECK ((state = 'pending') = (try_at IS NOT NULL)),
        CONSTRAINT schedule_ticks_execution_id_check
            CHECK ((state = 'started') = (execution_id IS NOT NULL))
    ) WITH (fillfactor = 80)
    """,
    "CREATE INDEX schedule_ticks_try_at_idx ON schedule_ticks (try_at) WHERE state = 'pending'",
    """
    CREATE INDEX schedule_ticks_open_idx ON schedule_ticks (schedule_id, execution_id)
     WHERE state = 'started' AND NOT is_over
    """,
    """
    CREATE INDEX schedule_ticks_execution_id_idx ON schedule_ticks (execution_id)
     WHERE execution_id IS NOT NULL
    """,
    "CREATE INDEX schedule_ticks_backfill_id_idx ON schedule_ticks (backfill_id)",
    "CREATE INDEX schedule_ticks_tenant_id_idx ON schedule_ticks (tenant_id)",
    "CREATE INDEX schedule_ticks_updated_at_idx ON schedule_ticks (updated_at)",
    """
    CREATE TRIGGER schedule_ticks_touch BEFORE UPDATE ON schedule_ticks
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
    """,
)

_EVENTS = (
    f"""
    CREATE TABLE event_subscriptions (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        name varchar(255) NOT NULL CONSTRAINT event_subscriptions_name_check CHECK (name <> ''),
        url text NOT NULL
            CONSTRAINT event_subscriptions_url_check CHECK (octet_length(url) <= 2048),
        event_types text[] NOT NULL CONSTRAINT event_subscriptions_event_types_check
            CHECK (cardinality(event_types) > 0),
        workflow_id uuid REFERENCES workflows(id) ON DELETE CASCADE,
        paused_at timestamptz,
        pause_reason text NOT NULL DEFAULT '',
        key_fingerprint text NOT NULL,
        secret_generation integer NOT NULL DEFAULT 1,
        rotated_at timestamptz,
        revision bigint NOT NULL DEFAULT 1,
        updated_at timestamptz NOT NULL DEFAULT now(),{_OWNER}
    )
    """,
    """
    CREATE INDEX event_subscriptions_tenant_id_created_at_idx
        ON event_subscriptions (tenant_id, created_at DESC, id DESC)
    """,
    "CREATE INDEX event_subscriptions_workflow_id_idx ON event_subscriptions (workflow_id)",
    "CREATE INDEX event_subscriptions_created_by_idx ON event_subscriptions (created_by)",
    # The body is the exact text that is signed, at every try.
    """
    CREATE TABLE event_deliveries (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        subscription_id uuid NOT NULL REFERENCES event_subscriptions(id) ON DELETE CASCADE,
        event_id uuid NOT NULL,
        event_type text NOT NULL,
        execution_id uuid,
        body text NOT NULL,
        state text NOT NULL DEFAULT 'pending' CONSTRAINT event_deliveries_state_check
            CHECK (state IN ('pending', 'delivered', 'dead')),
        attempts integer NOT NULL DEFAULT 0,
        due_at timestamptz,
        status_code integer,
        error text NOT NULL DEFAULT '',
        tenant_id uuid NOT NULL DEFAULT current_tenant_id() REFERENCES tenants(id),
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        UNIQUE (subscription_id, event_id),
        CONSTRAINT event_deliveries_due_at_check CHECK ((state = 'pending') = (due_at IS NOT NULL))
    ) WITH (fillfactor = 80)
    """,
    """
    CREATE INDEX event_deliveries_due_at_idx ON event_deliveries (subscription_id, due_at)
     WHERE state = 'pending'
    """,
    """
    CREATE INDEX event_deliveries_created_at_idx
        ON event_deliveries (subscription_id, created_at DESC, id DESC)
    """,
    "CREATE INDEX event_deliveries_tenant_id_idx ON event_deliveries (tenant_id)",
    "CREATE INDEX event_deliveries_updated_at_idx ON event_deliveries (updated_at)",
    """
    CREATE TRIGGER event_deliveries_touch BEFORE UPDATE ON event_deliveries
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at()
    """,
)

_MOMENT = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
# As its owner, for the reason of queue_file_bytes: nobody queues an event by hand. Where nobody has
# subscribed, it costs one look into an index.
_QUEUE = (
    f"""
    CREATE FUNCTION queue_event(
        type text, at timestamptz, run uuid, of_tenant uuid, of_workflow uuid, facts jsonb
    ) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, public
    AS $$
    BEGIN
        IF EXISTS (
            SELECT FROM public.event_subscriptions s
             WHERE s.tenant_id = of_tenant AND s.paused_at IS NULL AND type = ANY (s.event_types)
               AND (s.workflow_id IS NULL OR s.workflow_id = of_workflow))
        THEN
            INSERT INTO public.outbox_events (kind, payload, tenant_id)
            VALUES ('execution_event',
                    jsonb_build_object('type', type, 'timestamp', {_MOMENT.format("at")},
                        'data', facts || jsonb_build_object(
                            'execution_id', run, 'workflow_id', of_workflow)),
                    of_tenant);
            PERFORM pg_notify('qflow_events', '');
        END IF;
    END $$
    """,
    """
    CREATE FUNCTION queue_execution_event() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
    DECLARE
        facts jsonb;
    BEGIN
        -- Most tenants have none: they pay this one look.
        IF NOT EXISTS (SELECT FROM public.event_subscriptions WHERE tenant_id = NEW.tenant_id) THEN
            RETURN NULL;
        END IF;
        facts := jsonb_build_object('workflow_version', NEW.workflow_version);
        IF NEW.started_at IS NOT NULL AND (TG_OP = 'INSERT' OR OLD.started_at IS NULL) THEN
            PERFORM public.queue_event('execution.started', NEW.started_at, NEW.id,
                                       NEW.tenant_id, NEW.workflow_id, facts);
        END IF;
        IF NEW.completed_at IS NOT NULL AND (TG_OP = 'INSERT' OR OLD.completed_at IS NULL) THEN
            IF NEW.status = 'failed' THEN
                facts := facts || jsonb_build_object(
                    'error_type', NEW.error_type, 'failed_node_id', NEW.failed_node_id);
            END IF;
            PERFORM public.queue_event('execution.' || NEW.status, NEW.completed_at, NEW.id,
                                       NEW.tenant_id, NEW.workflow_id, facts);
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE FUNCTION queue_waiting_event() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
    BEGIN
        PERFORM public.queue_event('execution.waiting', clock_timestamp(), run.id, run.tenant_id,
                                   run.workflow_id,
                                   jsonb_build_object('workflow_version', run.workflow_version,
                                                      'node_id', NEW.node_id))
           FROM public.workflow_executions run WHERE run.id = NEW.workflow_execution_id;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER workflow_executions_insert_event AFTER INSERT ON workflow_executions
    FOR EACH ROW WHEN (NEW.started_at IS NOT NULL OR NEW.completed_at IS NOT NULL)
    EXECUTE FUNCTION queue_execution_event()
    """,
    """
    CREATE TRIGGER workflow_executions_update_event AFTER UPDATE ON workflow_executions
    FOR EACH ROW WHEN ((OLD.started_at IS NULL AND NEW.started_at IS NOT NULL)
                    OR (OLD.completed_at IS NULL AND NEW.completed_at IS NOT NULL))
    EXECUTE FUNCTION queue_execution_event()
    """,
    """
    CREATE TRIGGER node_executions_insert_event AFTER INSERT ON node_executions
    FOR EACH ROW WHEN (NEW.status = 'waiting') EXECUTE FUNCTION queue_waiting_event()
    """,
    """
    CREATE TRIGGER node_executions_update_event AFTER UPDATE ON node_executions
    FOR EACH ROW WHEN (NEW.status = 'waiting' AND OLD.status <> 'waiting')
    EXECUTE FUNCTION queue_waiting_event()
    """,
    "REVOKE ALL ON FUNCTION queue_execution_event(), queue_waiting_event() FROM PUBLIC",
    "REVOKE ALL ON FUNCTION queue_event(text, timestamptz, uuid, uuid, uuid, jsonb) FROM PUBLIC",
    *BORROW_GROUPS,
    "ALTER FUNCTION queue_execution_event() OWNER TO qflow_maint",
    "ALTER FUNCTION queue_waiting_event() OWNER TO qflow_maint",
    "ALTER FUNCTION queue_event(text, timestamptz, uuid, uuid, uuid, jsonb) OWNER TO qflow_maint",
    *RETURN_GROUPS,
    "GRANT SELECT ON event_subscriptions TO qflow_maint",
)
_BYTES_EVENT = """kind = 'file_deleted' AND NOT EXISTS
    (SELECT 1 FROM files WHERE files.id = (payload ->> 'file_id')::uuid)"""
_RUN_EVENT = """kind = 'execution_event' AND EXISTS
    (SELECT 1 FROM workflow_executions run
      WHERE run.id = (payload -> 'data' ->> 'execution_id')::uuid
        AND run.tenant_id = outbox_events.tenant_id)"""
_OUTBOX_INSERT = """
    CREATE POLICY outbox_events_maint_insert ON outbox_events FOR INSERT TO qflow_maint
    WITH CHECK ({})
"""

_TRIGGERS = (
    f"""
    CREATE TABLE triggers (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
        workflow_id uuid NOT NULL REFERENCES workflows(id) ON DELETE CASCADE,
        name varchar(255) NOT NULL CONSTRAINT triggers_name_check CHECK (name <> ''),
        workflow_version integer NOT NULL DEFAULT 0
            CONSTRAINT triggers_workflow_version_check CHECK (workflow_version >= 0),
        workflow_alias varchar(63) NOT NULL DEFAULT '',
        input_data json NOT NULL DEFAULT '{{}}'
            CONSTRAINT triggers_input_data_check CHECK (octet_length(input_data::text) <= 65536),
        payload_input text NOT NULL DEFAULT '',
        secret_sha256 text NOT NULL CONSTRAINT triggers_secret_sha256_check
            CHECK (secret_sha256 ~ '^[0-9a-f]{{64}}$'),
        paused_at timestamptz,
        fired_at timestamptz,
        fired_count bigint NOT NULL DEFAULT 0,
        error_reason text,
        error_message text,
        error_at timestamptz,
        revision bigint NOT NULL DEFAULT 1,
        updated_at timestamptz NOT NULL DEFAULT now(),{_OWNER}
    )
    """,
    """
    CREATE INDEX triggers_tenant_id_created_at_idx
        ON triggers (tenant_id, created_at DESC, id DESC)
    """,
    "CREATE INDEX triggers_workflow_id_idx ON triggers (workflow_id)",
    "CREATE INDEX triggers_created_by_idx ON triggers (created_by)",
)


def _of(parent: str, table: str, key: str, rule: str = "true") -> str:
    return f"EXISTS (SELECT 1 FROM {parent} parent WHERE parent.id = {table}.{key} AND {rule})"


_OF_SCHEDULE = _of("schedules", "{}", "schedule_id", f"parent.{_TENANT}")
# The workflow is one that the caller sees; a tick and a backfill are of a schedule of the tenant.
_API = {
    ("schedules", "SELECT"): (_TENANT, None),
    ("schedules", "INSERT"): (
        None,
        f"{_WRITTEN} AND created_by = {_USER} AND {_of('workflows', 'schedules', 'workflow_id')}",
    ),
    ("schedules", "UPDATE"): (_WRITTEN, _WRITTEN),
    ("schedules", "DELETE"): (_WRITTEN, None),
    ("schedule_backfills", "SELECT"): (_TENANT, None),
    ("schedule_backfills", "INSERT"): (
        None,
        f"{_WRITTEN} AND created_by = {_USER} AND {_OF_SCHEDULE.format('schedule_backfills')}",
    ),
    ("schedule_backfills", "UPDATE"): (_WRITTEN, _WRITTEN),
    ("schedule_ticks", "SELECT"): (_TENANT, None),
    ("schedule_ticks", "INSERT"): (
        None,
        f"{_WRITTEN} AND {_OF_SCHEDULE.format('schedule_ticks')}",
    ),
}
_OF_WORKFLOW = f"(workflow_id IS NULL OR {_of('workflows', '{0}', 'workflow_id')})"
for _table in ("event_subscriptions", "triggers"):
    _API |= {
        (_table, "SELECT"): (_TENANT, None),
        (_table, "INSERT"): (
            None,
            f"{_WRITTEN} AND created_by = {_USER} AND {_OF_WORKFLOW.format(_table)}",
        ),
        (_table, "UPDATE"): (_WRITTEN, f"{_WRITTEN} AND {_OF_WORKFLOW.format(_table)}"),
        (_table, "DELETE"): (_WRITTEN, None),
    }
# By hand a delivery is only tried, or tried again.
_OF_SUBSCRIPTION = _of(
    "event_subscriptions", "event_deliveries", "subscription_id", f"parent.{_TENANT}"
)
_API |= {
    ("event_deliveries", "SELECT"): (_TENANT, None),
    ("event_deliveries", "INSERT"): (
        None,
        f"{_WRITTEN} AND event_type = 'test' AND {_OF_SUBSCRIPTION}",
    ),
    ("event_deliveries", "UPDATE"): (_WRITTEN, _WRITTEN),
}
_AGED = "{} < now() - interval '1 day'"
_ALL = "true"
_CROSS_TENANT = {
    ("schedules", "qflow_engine"): {"SELECT": _ALL, "UPDATE": _ALL},
    ("schedule_backfills", "qflow_engine"): {"SELECT": _ALL, "UPDATE": _ALL},
    ("schedule_ticks", "qflow_engine"): {"SELECT": _ALL, "INSERT": _ALL, "UPDATE": _ALL},
    ("event_subscriptions", "qflow_engine"): {"SELECT": _ALL, "UPDATE": _ALL},
    ("event_deliveries", "qflow_engine"): {"SELECT": _ALL, "INSERT": _ALL, "UPDATE": _ALL},
    ("triggers", "qflow_engine"): {"SELECT": _ALL, "UPDATE": _ALL},
    ("event_subscriptions", "qflow_maint"): {"SELECT": _ALL},
    ("event_deliveries", "qflow_maint"): {
        "SELECT": _ALL,
        "DELETE": f"state <> 'pending' AND {_AGED.format('updated_at')}",
    },
    ("schedule_backfills", "qflow_maint"): {
        "SELECT": _ALL,
        "DELETE": _AGED.format("completed_at"),
    },
    ("schedule_ticks", "qflow_maint"): {
        "SELECT": _ALL,
        "DELETE": f"state <> 'pending' AND {_AGED.format('updated_at')}",
    },
}


def _policy(name: str, table: str, to: str, using: str | None, check: str | None) -> str:
    statement = f"CREATE POLICY {name} ON {table} FOR {to}"
    if using is not None:
        statement += f" USING ({using})"
    if check is not None:
        statement += f" WITH CHECK ({check})"
    return statement


def _policies() -> list[str]:
    made = []
    for table in sorted({table for table, _ in _API} | {table for table, _ in _CROSS_TENANT}):
        made += [
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        ]
    for (table, command), (using, check) in _API.items():
        name = f"{table}_api_{command.lower()}"
        made.append(_policy(name, table, f"{command} TO qflow_api", using, check))
    for (table, role), rules in _CROSS_TENANT.items():
        for command, rule in rules.items():
            name = f"{table}_{role.removeprefix('qflow_')}_{command.lower()}"
            using = None if command == "INSERT" else rule
            check = rule if command in ("INSERT", "UPDATE") else None
            made.append(_policy(name, table, f"{command} TO {role}", using, check))
    return made


_GRANTS = (
    "GRANT SELECT, INSERT, DELETE ON schedules TO qflow_orchestrator",
    """
    GRANT UPDATE (name, description, workflow_version, workflow_alias, input_data, timing, overlap,
        catch_up, catch_up_window_ms, labels, paused_at, pause_reason, due_at, fire_at, revision,
        updated_at)
    ON schedules TO qflow_orchestrator
    """,
    "GRANT SELECT, INSERT ON schedule_ticks, schedule_backfills TO qflow_orchestrator",
    "GRANT UPDATE (state, step_at, completed_at) ON schedule_backfills TO qflow_orchestrator",
    "GRANT SELECT, INSERT ON idempotency_keys TO qflow_orchestrator",
    "GRANT SELECT ON schedules, schedule_backfills TO qflow_orchestrator_engine",
    """
    GRANT UPDATE (paused_at, pause_reason, due_at, fire_at, last_at, claimed_until, skipped_count,
        error_reason, error_message, error_at)
    ON schedules TO qflow_orchestrator_engine
    """,
    """
    GRANT UPDATE (next_at, step_at, state, done_count, present_count, completed_at)
    ON schedule_backfills TO qflow_orchestrator_engine
    """,
    "GRANT SELECT, INSERT, UPDATE ON schedule_ticks TO qflow_orchestrator_engine",
    """
    GRANT SELECT, DELETE ON schedule_ticks, schedule_backfills, event_deliveries
    TO qflow_telemetry_maint
    """,
    "GRANT SELECT, INSERT, DELETE ON event_subscriptions TO qflow_orchestrator",
    """
    GRANT UPDATE (name, url, event_types, workflow_id, paused_at, pause_reason, key_fingerprint,
        secret_generation, rotated_at, revision, updated_at)
    ON event_subscriptions TO qflow_orchestrator
    """,
    "GRANT SELECT, INSERT ON event_deliveries TO qflow_orchestrator",
    "GRANT UPDATE (state, attempts, due_at) ON event_deliveries TO qflow_orchestrator",
    "GRANT SELECT ON event_subscriptions TO qflow_orchestrator_engine",
    """
    GRANT UPDATE (paused_at, pause_reason) ON event_subscriptions TO qflow_orchestrator_engine
    """,
    "GRANT SELECT, INSERT, UPDATE ON event_deliveries TO qflow_orchestrator_engine",
    "GRANT SELECT, UPDATE (sent_at) ON outbox_events TO qflow_orchestrator_engine",
    # Whoever acts for callers cannot read the digest, and one login alone compares it.
    """
    GRANT SELECT (id, workflow_id, name, workflow_version, workflow_alias, input_data, payload_input,
        paused_at, fired_at, fired_count, error_reason, error_message, error_at, revision,
        updated_at, tenant_id, created_by, created_at)
    ON triggers TO qflow_orchestrator
    """,
    "GRANT INSERT, DELETE ON triggers TO qflow_orchestrator",
    """
    GRANT UPDATE (name, workflow_version, workflow_alias, input_data, payload_input, secret_sha256,
        paused_at, revision, updated_at)
    ON triggers TO qflow_orchestrator
    """,
    "GRANT SELECT ON triggers TO qflow_orchestrator_engine",
    """
    GRANT UPDATE (fired_at, fired_count, error_reason, error_message, error_at)
    ON triggers TO qflow_orchestrator_engine
    """,
)


def _cleanup(name: str, table: str, key: str, due: str, keep: str) -> tuple[str, ...]:
    """One batch of rows that are due, oldest first, as the other cleanup functions remove it."""
    return (
        f"""
        CREATE FUNCTION {name}(keep interval DEFAULT '{keep}', batch integer DEFAULT 5000)
        RETURNS bigint
        LANGUAGE plpgsql SET search_path = pg_catalog, public
        AS $$
        DECLARE
            removed bigint;
        BEGIN
            DELETE FROM public.{table} WHERE ({key}) IN (
                SELECT {key} FROM public.{table} WHERE {due} LIMIT batch);
            GET DIAGNOSTICS removed = ROW_COUNT;
            RETURN removed;
        END $$
        """,
        f"REVOKE ALL ON FUNCTION {name}(interval, integer) FROM PUBLIC",
        f"GRANT EXECUTE ON FUNCTION {name}(interval, integer) TO qflow_maint",
    )


_RETENTION = (
    *_cleanup(
        "cleanup_old_schedule_ticks",
        "schedule_ticks",
        "schedule_id, tick_at",
        "updated_at < clock_timestamp() - keep AND state <> 'pending'"
        " ORDER BY updated_at, schedule_id, tick_at",
        "30 days",
    ),
    *_cleanup(
        "cleanup_old_schedule_backfills",
        "schedule_backfills",
        "id",
        "completed_at < clock_timestamp() - keep ORDER BY completed_at, id",
        "30 days",
    ),
    *_cleanup(
        "cleanup_old_event_deliveries",
        "event_deliveries",
        "id",
        "updated_at < clock_timestamp() - keep AND state <> 'pending' ORDER BY updated_at, id",
        "30 days",
    ),
)


def upgrade() -> None:
    run(_SCHEDULES)
    run(_EVENTS)
    run(_TRIGGERS)
    run(_policies())
    run(_GRANTS)
    run(_RETENTION)
    run(_QUEUE)
    run(
        (
            "DROP POLICY outbox_events_maint_insert ON outbox_events",
            _OUTBOX_INSERT.format(f"({_BYTES_EVENT}) OR ({_RUN_EVENT})"),
        )
    )


def downgrade() -> None:
    run(
        (
            "DROP TRIGGER workflow_executions_insert_event ON workflow_executions",
            "DROP TRIGGER workflow_executions_update_event ON workflow_executions",
            "DROP TRIGGER node_executions_insert_event ON node_executions",
            "DROP TRIGGER node_executions_update_event ON node_executions",
            *BORROW_GROUPS,
            "DROP FUNCTION queue_execution_event()",
            "DROP FUNCTION queue_waiting_event()",
            "DROP FUNCTION queue_event(text, timestamptz, uuid, uuid, uuid, jsonb)",
            *RETURN_GROUPS,
            "DELETE FROM outbox_events WHERE kind = 'execution_event'",
            "DROP POLICY outbox_events_maint_insert ON outbox_events",
            _OUTBOX_INSERT.format(_BYTES_EVENT),
            "DROP FUNCTION cleanup_old_schedule_ticks(interval, integer)",
            "DROP FUNCTION cleanup_old_schedule_backfills(interval, integer)",
            "DROP FUNCTION cleanup_old_event_deliveries(interval, integer)",
            "DROP TABLE triggers, event_deliveries, event_subscriptions",
            "DROP TABLE schedule_ticks, schedule_backfills, schedules",
            "REVOKE SELECT, INSERT ON idempotency_keys FROM qflow_orchestrator",
            "REVOKE SELECT, UPDATE (sent_at) ON outbox_events FROM qflow_orchestrator_engine",
        )
    )
