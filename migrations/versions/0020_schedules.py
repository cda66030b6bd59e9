"""Schedules, their ticks and backfills.

`fire_at` is when somebody has to look at a schedule; a tick's key is its schedule and its time, so that there
is never a second one; `try_at` is when the next try to start it may begin.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0020"
down_revision = "0016"

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
_AGED = "{} < now() - interval '1 day'"
_ALL = "true"
_CROSS_TENANT = {
    ("schedules", "qflow_engine"): {"SELECT": _ALL, "UPDATE": _ALL},
    ("schedule_backfills", "qflow_engine"): {"SELECT": _ALL, "UPDATE": _ALL},
    ("schedule_ticks", "qflow_engine"): {"SELECT": _ALL, "INSERT": _ALL, "UPDATE": _ALL},
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
    "GRANT SELECT, DELETE ON schedule_ticks, schedule_backfills TO qflow_telemetry_maint",
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
)


def upgrade() -> None:
    run(_SCHEDULES)
    run(_policies())
    run(_GRANTS)
    run(_RETENTION)


def downgrade() -> None:
    run(
        (
            "DROP FUNCTION cleanup_old_schedule_ticks(interval, integer)",
            "DROP FUNCTION cleanup_old_schedule_backfills(interval, integer)",
            "DROP TABLE schedule_ticks, schedule_backfills, schedules",
            "REVOKE SELECT, INSERT ON idempotency_keys FROM qflow_orchestrator",
        )
    )
