"""Logins, grants and row-level security: who may touch what, and whose rows they see."""

from __future__ import annotations

from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from migrations.roles import GROUPS, LOGINS
from tests.migrations.catalogue import (
    FOREIGN_KEYS_WITHOUT_INDEX,
    FUNCTIONS_OF_PUBLIC,
    FUNCTIONS_WITHOUT_PATH,
    TABLES_NOT_FORCED,
    VIEWS_OF_THEIR_OWNER,
    WIDE_POLICIES,
)
from tests.migrations.subject import Subject
from tests.support.database import Database

# Who writes which table. Every login of a service counts as the service.
_OWNED = {
    "registry": {
        "users",
        "user_sessions",
        "service_tokens",
        "tenants",
        "python_nodes",
        "python_node_versions",
        "python_node_tags",
        "python_node_tag_relations",
        "node_version_locks",
        "workflows",
        "workflow_versions",
        "workflow_tags",
        "workflow_tag_relations",
        "custom_types",
        "workflow_node_uses",
        "workflow_aliases",
        "workflow_alias_changes",
        "variables",
        "credential_tokens",
        "user_service_tokens",
        "sign_in_attempts",
        "audit_events",
        "custom_type_uses",
        "tenant_members",
        "tenant_invitations",
    },
    "orchestrator": {
        "workflow_executions",
        "node_executions",
        "node_data_flow",
        "node_attempts",
        "execution_pins",
        "execution_signals",
        "engine_members",
        "engine_shards",
        "schedules",
        "schedule_ticks",
        "schedule_backfills",
        "event_subscriptions",
        "event_deliveries",
        "triggers",
        "execution_limits",
        "limit_slots",
        "limit_buckets",
        "tenant_quotas",
        "tenant_usage",
        "execution_budgets",
        "file_uses",
        "cached_results",
        "data_keys",
    },
    "runner": {
        "containers",
        "container_dependencies",
        "files",
        "file_access_logs",
        "file_uploads",
        "file_usage",
        "environments",
        "runner_members",
        "execution_logs",
        "node_logs",
        "tenant_wheels",
        "package_rules",
        "package_indexes",
        "secrets",
        "secret_versions",
        "secret_grants",
    },
    "telemetry": {
        "performance_metrics",
        "error_logs",
        "system_health",
        "telemetry_watermarks",
        "metric_rollups",
        "workflow_rollups",
        "rolled_up_executions",
        "retention_rules",
        "retention_runs",
    },
}
# Beyond its own tables a service may do exactly this.
_BESIDES = {
    ("qflow_orchestrator_engine", "error_logs", "INSERT"),
    ("qflow_orchestrator", "idempotency_keys", "INSERT"),
    ("qflow_registry", "idempotency_keys", "INSERT"),
    ("qflow_runner", "idempotency_keys", "INSERT"),
    ("qflow_telemetry", "idempotency_keys", "INSERT"),
    ("qflow_registry_auth", "idempotency_keys", "INSERT"),
    # What calls changed: each service adds to its own chains.
    *(
        (login, table, "INSERT")
        for login in (
            "qflow_registry_engine",
            "qflow_orchestrator_engine",
            "qflow_runner_engine",
            "qflow_telemetry",
        )
        for table in ("audit_chains", "audit_records", "audit_seals")
    ),
    ("qflow_telemetry_maint", "audit_checkpoints", "INSERT"),  # what stands for forgotten seals
    ("qflow_runner", "idempotency_keys", "INSERT"),
    # Its group counts files in a trigger.
    ("qflow_telemetry_maint", "file_usage", "INSERT"),
    ("qflow_telemetry_maint", "file_usage", "UPDATE"),
    ("qflow_orchestrator_engine", "outbox_events", "UPDATE"),  # to mark events that are spread
    ("qflow_orchestrator_engine", "runner_members", "UPDATE"),  # to fence a runner
    ("qflow_runner_engine", "outbox_events", "UPDATE"),  # to mark deleted bytes
    ("qflow_telemetry_maint", "workflow_executions", "UPDATE"),  # to hide what is being purged
    ("qflow_telemetry_maint", "files", "UPDATE"),  # to hand a file on to a run that keeps it
    ("qflow_telemetry_maint", "outbox_events", "INSERT"),  # its group is the trigger's
}
_RETENTION = {
    "workflow_executions",
    "node_executions",
    "node_data_flow",
    "execution_pins",
    "containers",
    "files",
    "file_access_logs",
    "performance_metrics",
    "error_logs",
    "metric_rollups",
    "workflow_rollups",
    "rolled_up_executions",
    "retention_runs",
    "environments",
    "system_health",
    "user_sessions",
    "idempotency_keys",
    "outbox_events",
    "engine_members",
    "runner_members",
    "schedule_ticks",
    "schedule_backfills",
    "event_deliveries",
    "execution_logs",
    "node_logs",
    "file_uses",
    "cached_results",
    "audit_records",
    "audit_seals",
    "python_nodes",
    "workflows",
}
# Tables without any tenant's data.
_GLOBAL = {
    "alembic_version",
    "type_definitions",
    "type_compatibility",
    "engine_shards",
    "telemetry_watermarks",
}


def test_every_table_with_tenants_data_is_under_forced_row_level_security(mended: Subject) -> None:
    """I27."""
    assert [] == mended.db.execute(TABLES_NOT_FORCED).fetchall()
    free = {
        name
        for (name,) in mended.db.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " AND relkind = 'r' AND NOT relrowsecurity"
        )
    }
    assert _GLOBAL == free


def test_every_policy_is_for_one_role_and_command_and_checks_what_is_written(
    mended: Subject,
) -> None:
    """I27."""
    assert [] == mended.db.execute(WIDE_POLICIES).fetchall()
    doubled = mended.db.execute(
        "SELECT tablename, roles, cmd FROM pg_policies WHERE schemaname = 'public'"
        " GROUP BY 1, 2, 3 HAVING count(*) > 1"
    )
    assert [] == doubled.fetchall()


def test_the_caller_is_asked_for_once_a_statement(mended: Subject) -> None:
    """A bare call in a policy is made for every row."""
    bare = mended.db.execute(
        "SELECT policyname FROM pg_policies WHERE schemaname = 'public' AND"
        " regexp_replace(coalesce(qual, '') || coalesce(with_check, ''),"
        "  'SELECT current_(user_id|tenant_id|role_name)', '', 'g') ~"
        " 'current_(user_id|tenant_id|role_name)[(]'"
    )
    assert [] == bare.fetchall()


def test_no_function_is_for_everybody_and_each_has_its_path(mended: Subject) -> None:
    """I28."""
    assert [] == mended.db.execute(FUNCTIONS_OF_PUBLIC).fetchall()
    assert [] == mended.db.execute(FUNCTIONS_WITHOUT_PATH.replace("%%", "%").encode()).fetchall()
    assert [] == mended.db.execute(VIEWS_OF_THEIR_OWNER).fetchall()


def test_what_runs_as_its_owner_is_owned_by_a_group_that_may_do_little(mended: Subject) -> None:
    """I28."""
    of_auth = ("authenticate", "member_role", "is_member", "is_invited", "is_founder")
    assert dict.fromkeys(of_auth, "qflow_auth") | dict.fromkeys(
        (
            "guard_workflow_delete",
            "queue_file_bytes",
            "queue_execution_event",
            "queue_waiting_event",
            "count_files",
            "queue_upload_bytes",
        ),
        "qflow_maint",
    ) == dict(
        mended.db.execute(
            "SELECT proname, proowner::regrole::text FROM pg_proc"
            " WHERE prosecdef AND pronamespace = 'public'::regnamespace"
        ).fetchall()
    )


def test_every_foreign_key_has_an_index(mended: Subject) -> None:
    """I29."""
    assert [] == mended.db.execute(FOREIGN_KEYS_WITHOUT_INDEX).fetchall()


def test_every_login_is_in_exactly_one_group_and_none_may_bypass(mended: Subject) -> None:
    members = mended.db.execute(
        "SELECT m.rolname, g.rolname FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member"
        "  JOIN pg_roles g ON g.oid = a.roleid WHERE m.rolname = ANY (%s)",
        (list(LOGINS),),
    ).fetchall()
    assert sorted(LOGINS.items()) == sorted(members)
    strong = mended.db.execute(
        "SELECT rolname FROM pg_roles WHERE rolname = ANY (%s) AND (rolsuper OR rolbypassrls"
        " OR rolcreaterole OR rolcreatedb OR rolreplication"
        " OR (rolcanlogin AND rolname = ANY (%s)))",
        ([*LOGINS, *GROUPS], list(GROUPS)),
    )
    assert [] == strong.fetchall()


@pytest.mark.parametrize("login", LOGINS)
def test_a_login_writes_only_the_tables_of_its_service(login: str, mended: Subject) -> None:
    service = login.split("_")[1]
    rights = mended.db.execute(
        "SELECT c.relname, p.name FROM pg_class c,"
        " unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS p(name)"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'"
        "   AND (has_table_privilege(%s, c.oid, p.name) OR (p.name IN ('INSERT', 'UPDATE')"
        "        AND has_any_column_privilege(%s, c.oid, p.name)))",
        (login, login),
    ).fetchall()
    for table, right in rights:
        allowed = (
            table in _OWNED[service]
            or (login, table, right) in _BESIDES
            or (login.endswith("_maint") and table in _RETENTION and right == "DELETE")
        )
        assert allowed, f"{login} may {right} {table}"
        assert right != "TRUNCATE"


def test_only_the_engine_reads_the_digest_of_a_triggers_secret(mended: Subject) -> None:
    """S61, X26."""
    readers = {
        login
        for login in LOGINS
        if mended.value(
            "SELECT has_column_privilege(%s, 'triggers', 'secret_sha256', 'SELECT')", login
        )
    }
    assert {"qflow_orchestrator_engine"} == readers


def test_an_event_is_of_a_run_of_its_own_tenant(mended: Subject) -> None:
    """X14, I33: whatever a statement says, by the one login that its group lets insert."""
    owner, other = mended.user(), mended.user()
    run = mended.execution(owner)

    def queue(tenant: UUID, of: UUID) -> None:
        mended.db.execute(
            "INSERT INTO outbox_events (kind, payload, tenant_id) VALUES ('execution_event',"
            " jsonb_build_object('data', jsonb_build_object('execution_id', %s::uuid)), %s)",
            (of, tenant),
        )

    with mended.acting(None, "qflow_telemetry_maint"):
        assert mended.does(lambda: queue(owner, run))
        assert not mended.does(lambda: queue(other, run))
        assert not mended.does(lambda: queue(owner, uuid4()))


def test_subscriptions_and_triggers_are_their_tenants_alone(mended: Subject) -> None:
    """X14, X17: also the workflow that one names, and a delivery that somebody makes by hand."""
    owner, other = _everything(mended), mended.user()
    [(workflow,)] = mended.db.execute("SELECT workflow_id FROM triggers").fetchall()
    [(subscription,)] = mended.db.execute("SELECT id FROM event_subscriptions").fetchall()
    subscribe = (
        "INSERT INTO event_subscriptions (name, url, event_types, workflow_id, key_fingerprint)"
        " VALUES ('b', 'u', '{execution.failed}', %s, 'f')"
    )
    arm = (
        "INSERT INTO triggers (workflow_id, name, secret_sha256) VALUES (%s, 'b', repeat('0', 64))"
    )
    deliver = (
        "INSERT INTO event_deliveries (subscription_id, event_id, event_type, body, state)"
        " VALUES (%s, gen_random_uuid(), %s, '{}', 'dead')"
    )
    cases = ((owner, "user", True), (owner, "viewer", False), (other, "user", False))
    for user, role, may in cases:
        with mended.acting(user, "qflow_orchestrator", role=role):
            assert may == mended.does(lambda: mended.count(subscribe, workflow))
            assert may == mended.does(lambda: mended.count(arm, workflow))
            assert may == mended.does(lambda: mended.count(deliver, subscription, "test"))
            assert not mended.does(lambda: mended.count(deliver, subscription, "execution.failed"))
            for table in ("event_subscriptions", "triggers"):
                assert may == bool(mended.count(f"UPDATE {table} SET name = 'x'"))
                if not may:
                    assert mended.count(f"DELETE FROM {table}") == 0


@pytest.mark.parametrize("login", [name for name in LOGINS if name != "qflow_registry_auth"])
def test_only_one_login_reads_hashes_and_tokens(login: str, mended: Subject) -> None:
    secret = {
        "users": "password_hash",
        "user_sessions": "session_token",
        "service_tokens": "token_sha256",
        "user_service_tokens": "token_sha256",
        "credential_tokens": "token_sha256",
        "sign_in_attempts": "key",
        "audit_events": "before",
    }
    for table, column in secret.items():
        assert (False,) == mended.db.execute(
            "SELECT has_column_privilege(%s, %s, %s, 'SELECT')", (login, table, column)
        ).fetchone()


def test_nobody_but_the_owner_makes_anything_in_the_schema_or_beside_it(mended: Subject) -> None:
    for role in [*LOGINS, *GROUPS]:
        assert (False, False) == mended.db.execute(
            "SELECT has_schema_privilege(%s, 'public', 'CREATE'),"
            " has_database_privilege(%s, current_database(), 'TEMPORARY')",
            (role, role),
        ).fetchone()


@pytest.mark.parametrize(
    "login", [name for name, group in LOGINS.items() if group in {"qflow_api", "qflow_maint"}]
)
def test_whose_a_row_is_and_since_when_is_never_written_over(login: str, mended: Subject) -> None:
    """S7: of a node, a workflow, a file or anything else."""
    assert (
        []
        == mended.db.execute(
            "SELECT c.relname, attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'"
            "   AND attname IN ('id', 'tenant_id', 'created_by', 'created_at')"
            "   AND has_column_privilege(%s, attrelid, attnum, 'UPDATE')",
            (login,),
        ).fetchall()
    )


def test_nobody_queues_an_event_by_hand(mended: Subject) -> None:
    """The runner does what an event says: B63, S26."""
    for login, group in LOGINS.items():
        assert (group == "qflow_maint",) == mended.db.execute(
            "SELECT has_any_column_privilege(%s, 'outbox_events', 'INSERT')", (login,)
        ).fetchone()
    owner = mended.user()
    file = mended.file(owner)

    def queue() -> None:
        mended.db.execute(
            "INSERT INTO outbox_events (kind, payload, tenant_id) VALUES"
            " ('file_deleted', jsonb_build_object('file_id', %s::uuid), %s)",
            (file, owner),
        )

    with mended.acting(None, "qflow_telemetry_maint"):
        assert not mended.does(queue)
    mended.db.execute("DELETE FROM files")
    assert [(str(file), owner)] == mended.db.execute(
        "SELECT payload ->> 'file_id', tenant_id FROM outbox_events"
    ).fetchall()


# Rows


def _everything(s: Subject) -> UUID:
    """A tenant with a row in every table that a service reads for its callers."""
    owner = s.user()
    node = s.insert("python_nodes", owner=owner)
    version = s.insert("python_node_versions", owner=owner, node_id=node)
    s.db.execute(
        "INSERT INTO node_version_locks (node_version_id, tenant_id) VALUES (%s, %s)",
        (version, owner),
    )
    workflow = s.workflow(owner)
    run = s.execution(owner, workflow_id=workflow)
    node_run = s.node_execution(owner, workflow_execution_id=run)
    container = s.container(owner, workflow_execution_id=run)
    file = s.file(owner, workflow_execution_id=run)
    for subject, parent in (("python_node", node), ("workflow", workflow)):
        tag = s.insert(f"{subject}_tags", owner=owner, name="a")
        s.db.execute(
            sql.SQL("INSERT INTO {} VALUES (%s, %s)").format(
                sql.Identifier(f"{subject}_tag_relations")
            ),
            (parent, tag),
        )
    custom = s.insert("custom_types", owner=owner)
    s.db.execute("INSERT INTO custom_type_uses VALUES (%s, %s, 1, %s)", (custom, version, owner))
    _scheduled(s, owner, workflow)
    s.insert("node_data_flow", workflow_execution_id=run)
    s.insert("container_dependencies", container_id=container)
    s.insert("file_access_logs", file_id=file)
    for table in ("performance_metrics", "error_logs"):
        s.insert(table, owner=owner, workflow_execution_id=run)
    s.db.execute(
        "INSERT INTO node_attempts (node_execution_id, token, attempt, outcome, ended_at)"
        " VALUES (%s, 1, 1, 'failed', now() + interval '1 s')",
        (node_run,),
    )
    s.db.execute(
        "INSERT INTO execution_pins (tenant_id, digest, workflow_id, workflow_version, pins)"
        " VALUES (%s, 'd', %s, 1, '{}')",
        (owner, workflow),
    )
    s.db.execute(
        "INSERT INTO environments (key, tenant_id, python_version, platform, lock_digest)"
        " VALUES (%s, %s, '3.11', 'linux', 'd')",
        (str(uuid4()), owner),
    )
    s.db.execute(
        "INSERT INTO idempotency_keys (tenant_id, caller_id, method, request_id, request_digest)"
        " VALUES (%s, %s, 'm', %s, 'd')",
        (owner, owner, uuid4()),
    )
    return owner


def _scheduled(s: Subject, owner: UUID, workflow: UUID) -> UUID:
    """A schedule with a tick and a backfill."""
    schedule = uuid4()
    s.db.execute(
        "INSERT INTO schedules (id, workflow_id, name, timing, overlap, catch_up,"
        " catch_up_window_ms, tenant_id, created_by)"
        " VALUES (%s, %s, 'a', '{}', 'skip', 'last', 1, %s, %s)",
        (schedule, workflow, owner, owner),
    )
    s.db.execute(
        "INSERT INTO schedule_ticks (schedule_id, tick_at, kind, state, tenant_id)"
        " VALUES (%s, now(), 'timed', 'skipped', %s)",
        (schedule, owner),
    )
    s.db.execute(
        "INSERT INTO schedule_backfills (schedule_id, timing, from_at, to_at, step_at, max_running,"
        " total_count, tenant_id, created_by)"
        " VALUES (%s, '{}', now() - interval '1 day', now(), now(), 1, 1, %s, %s)",
        (schedule, owner, owner),
    )
    subscription = uuid4()
    s.db.execute(
        "INSERT INTO event_subscriptions (id, name, url, event_types, key_fingerprint, tenant_id,"
        " created_by) VALUES (%s, 'a', 'https://example.com', '{execution.failed}', 'f', %s, %s)",
        (subscription, owner, owner),
    )
    s.db.execute(
        "INSERT INTO event_deliveries (subscription_id, event_id, event_type, body, state,"
        " tenant_id) VALUES (%s, gen_random_uuid(), 'test', '{}', 'dead', %s)",
        (subscription, owner),
    )
    s.db.execute(
        "INSERT INTO triggers (workflow_id, name, secret_sha256, tenant_id, created_by)"
        " VALUES (%s, 'a', %s, %s, %s)",
        (workflow, "0" * 64, owner, owner),
    )
    return schedule


_READ_BY = {
    "qflow_registry": (
        "users tenants python_nodes python_node_versions node_version_locks python_node_tags"
        " python_node_tag_relations workflows workflow_versions workflow_tags"
        " workflow_tag_relations custom_types custom_type_uses idempotency_keys workflow_executions"
    ),
    "qflow_orchestrator": (
        "workflow_executions node_executions node_data_flow node_attempts execution_pins"
        " containers container_dependencies environments files error_logs performance_metrics"
        " schedules schedule_ticks schedule_backfills event_subscriptions event_deliveries triggers"
    ),
    "qflow_runner": "files file_access_logs containers container_dependencies environments",
    "qflow_telemetry": "performance_metrics error_logs workflow_executions node_executions",
}


@pytest.mark.parametrize("login", _READ_BY)
def test_a_caller_sees_its_own_rows_and_no_other_tenants(login: str, mended: Subject) -> None:
    """S9."""
    owner, other = _everything(mended), mended.user()
    for table in _READ_BY[login].split():
        query = f"SELECT 1 FROM {table}"
        with mended.acting(owner, login):
            assert mended.count(query) == 1, table
        with mended.acting(other, login):
            assert mended.count(query) == (1 if table in {"users", "tenants"} else 0), table
        with mended.acting(None, login):
            assert mended.count(query) == 0, table


def test_a_viewer_reads_and_changes_nothing(mended: Subject) -> None:
    owner = _everything(mended)
    with mended.acting(owner, "qflow_registry", role="viewer"):
        for table in ("python_nodes", "workflows", "python_node_tags", "custom_types"):
            assert mended.count(f"SELECT 1 FROM {table}") == 1
            assert mended.count(f"UPDATE {table} SET name = 'x'") == 0
            assert not mended.takes(table, owner=owner, name="new")
        assert mended.count("DELETE FROM python_node_tag_relations") == 0
        assert not mended.does(lambda: _answer(mended))


def test_its_owner_may_do_what_a_viewer_may_not(mended: Subject) -> None:
    owner = _everything(mended)
    with mended.acting(owner, "qflow_registry"):
        for table in ("python_nodes", "workflows", "python_node_tags", "custom_types"):
            assert mended.takes(table, owner=owner, name="new")
            assert mended.count(f"UPDATE {table} SET name = 'x'") == 1
        assert mended.does(lambda: _answer(mended))


def _answer(s: Subject) -> None:
    s.db.execute(
        "INSERT INTO idempotency_keys (method, request_id, request_digest)"
        " VALUES ('m', gen_random_uuid(), 'd')"
    )


def _schedule(s: Subject, workflow: UUID) -> None:
    s.db.execute(
        "INSERT INTO schedules (workflow_id, name, timing, overlap, catch_up, catch_up_window_ms)"
        " VALUES (%s, 'b', '{}', 'skip', 'last', 1)",
        (workflow,),
    )


def test_schedules_are_changed_by_their_tenants_users_alone(mended: Subject) -> None:
    """S61, X14, X17: and none can be made of a workflow that is not to be seen."""
    owner, other = _everything(mended), mended.user()
    [(workflow, schedule)] = mended.db.execute("SELECT workflow_id, id FROM schedules").fetchall()
    tick = (
        "INSERT INTO schedule_ticks (schedule_id, tick_at, kind, state)"
        " VALUES (%s, 'today', 'manual', 'skipped')"
    )
    for user, role, may in (
        (owner, "user", True),
        (owner, "viewer", False),
        (other, "user", False),
    ):
        with mended.acting(user, "qflow_orchestrator", role=role):
            assert may == mended.does(lambda: _schedule(mended, workflow))
            assert may == mended.does(lambda: mended.count(tick, schedule))
            assert may == bool(mended.count("UPDATE schedules SET name = 'x'"))
            assert may == bool(mended.count("UPDATE schedule_backfills SET step_at = now()"))
            assert not mended.does(lambda: mended.count("UPDATE schedule_ticks SET kind = 'timed'"))
            if not may:
                assert mended.count("DELETE FROM schedules") == 0


@pytest.mark.parametrize(
    ("login", "table"),
    [
        ("qflow_runner", "containers"),
        ("qflow_orchestrator", "workflow_executions"),
        ("qflow_telemetry", "error_logs"),
    ],
)
def test_what_services_write_by_themselves_their_callers_never_do(
    login: str, table: str, mended: Subject
) -> None:
    """S8, S9: so no row of a caller's can point at another tenant's."""
    owner = _everything(mended)
    values: dict[str, UUID | str] = {}
    if table == "workflow_executions":
        values["workflow_id"] = mended.workflow(owner)
    if table == "containers":
        values["container_id"] = "proc:1"
    with mended.acting(owner, login):
        assert not mended.takes(table, owner=owner, **values)
        for change in ("UPDATE {} SET tenant_id = tenant_id", "DELETE FROM {}"):
            assert not mended.does(lambda change=change: mended.count(change.format(table)))


def test_a_files_path_is_its_tenant_and_its_id(mended: Subject) -> None:
    """S34: whoever writes the row, no deletion reaches another file's bytes."""
    owner, other = mended.user(), mended.user()
    theirs = mended.file(other)
    assert not mended.takes("files", owner=owner, file_path=f"{other}/{theirs}")
    assert not mended.takes("files", owner=owner, file_path=f"{other}/{uuid4()}")
    assert not mended.takes("files", owner=owner, file_path=f"{owner}/{uuid4()}")


def test_the_lock_of_a_public_version_is_its_owners_to_add(mended: Subject) -> None:
    """S7."""
    owner, other = mended.user(), mended.user()
    node = mended.insert("python_nodes", owner=owner, is_public=True)
    version = mended.insert("python_node_versions", owner=owner, node_id=node)

    def lock() -> None:
        mended.db.execute(
            "INSERT INTO node_version_locks (node_version_id) VALUES (%s)", (version,)
        )

    with mended.acting(other, "qflow_registry"):
        assert mended.count("SELECT 1 FROM python_node_versions") == 1
        assert not mended.does(lock)
    with mended.acting(owner, "qflow_registry"):
        assert mended.does(lock)


def test_a_version_follows_the_one_before(mended: Subject) -> None:
    """S45."""
    owner = mended.user()
    node = mended.insert("python_nodes", owner=owner)
    workflow = mended.workflow(owner)
    with mended.acting(owner, "qflow_registry"):
        for table, key in (("python_nodes", node), ("workflows", workflow)):
            for version, taken in ((2, True), (1, True), (99, False), (3, False)):
                change = f"UPDATE {table} SET version = %s WHERE id = %s"
                assert taken == mended.does(
                    lambda change=change, version=version, key=key: mended.count(
                        change, version, key
                    )
                )


def test_an_answer_kept_for_one_tenant_is_not_read_in_another(mended: Subject) -> None:
    """S59: a user acts in one tenant at a time, and a request id counts in that one."""
    user, team = mended.user(), mended.user()
    rows = "INSERT INTO idempotency_keys (tenant_id, caller_id, method, request_id, request_digest)"
    request = uuid4()
    for tenant in (user, team):
        mended.db.execute(f"{rows} VALUES (%s, %s, 'm', %s, 'd')".encode(), (tenant, user, request))
    with mended.acting(user, "qflow_registry"):
        assert [(user,)] == mended.db.execute("SELECT tenant_id FROM idempotency_keys").fetchall()


@pytest.mark.parametrize("login", ["qflow_registry", "qflow_orchestrator", "qflow_runner"])
def test_what_is_shown_to_all_is_shown_to_nobody_without_a_caller(
    login: str, mended: Subject
) -> None:
    """S9, S14."""
    owner = mended.user()
    for kind in ("is_public", "is_template"):
        node = mended.insert("python_nodes", owner=owner, **{kind: True})
        mended.insert("python_node_versions", owner=owner, node_id=node)
    mended.workflow(owner, is_template=True)
    for table in ("python_nodes", "python_node_versions", "workflows", "workflow_versions"):
        if mended.value("SELECT has_table_privilege(%s, %s, 'SELECT')", login, table):
            with mended.acting(None, login):
                assert 0 == mended.count(f"SELECT 1 FROM {table}"), table


def test_retention_removes_what_is_expired_whatever_statement_asks(mended: Subject) -> None:
    """I21: its login sees all tenants, so its policies say when."""
    assert (
        []
        == mended.db.execute(
            "SELECT tablename FROM pg_policies WHERE roles = '{qflow_maint}' AND cmd = 'DELETE'"
            " AND qual = 'true'"
        ).fetchall()
    )
    owner = _everything(mended)
    run = mended.execution(owner, status="failed", completed_at="now")
    mended.insert("user_sessions", user_id=owner)
    mended.db.execute(
        "INSERT INTO engine_members (id, epoch, state, expires_at)"
        " VALUES (gen_random_uuid(), 1, 'live', 'tomorrow')"
    )
    mended.db.execute(
        "INSERT INTO runner_members (incarnation, state) VALUES (gen_random_uuid(), 'idle')"
    )
    mended.insert("system_health")
    with mended.acting(None, "qflow_telemetry_maint"):
        for table in sorted(_RETENTION):
            assert 0 == mended.count(f"DELETE FROM {table}"), table
        hide = "UPDATE workflow_executions SET purge_started_at = now()"
        assert 0 == mended.count(hide)
    mended.db.execute(
        "UPDATE workflow_executions SET purge_started_at = now() WHERE id = %s", (run,)
    )
    with mended.acting(None, "qflow_telemetry_maint"):
        assert 1 == mended.count("DELETE FROM workflow_executions")


def test_a_row_is_never_given_to_another_tenant(mended: Subject) -> None:
    """S7."""
    owner, other = _everything(mended), mended.user()
    with mended.acting(owner, "qflow_registry"):
        for table in ("python_nodes", "workflows", "python_node_tags", "custom_types"):
            assert not mended.does(
                lambda table=table: mended.count(f"UPDATE {table} SET tenant_id = %s", other)
            )


def test_public_and_template_nodes_are_read_by_all_with_their_versions(mended: Subject) -> None:
    """S7, S14."""
    owner = mended.user()
    for kind in ("is_public", "is_template"):
        node = mended.insert("python_nodes", owner=owner, **{kind: True})
        mended.insert("python_node_versions", owner=owner, node_id=node)
    with mended.acting(mended.user(), "qflow_registry"):
        assert mended.count("SELECT 1 FROM python_nodes") == 2
        assert mended.count("SELECT 1 FROM python_node_versions") == 2
        assert not mended.takes("python_node_versions", owner=owner, node_id=node, version=2)


def test_health_is_for_admins(mended: Subject) -> None:
    mended.insert("system_health")
    me = mended.user()
    with mended.acting(me, "qflow_telemetry"):
        assert mended.count("SELECT 1 FROM system_health") == 0
    with mended.acting(me, "qflow_telemetry", role="admin"):
        assert mended.count("SELECT 1 FROM system_health") == 1


def test_an_execution_that_is_being_purged_is_gone_for_callers(mended: Subject) -> None:
    owner = mended.user()
    mended.execution(owner, status="failed", completed_at="now", purge_started_at="now")
    with mended.acting(owner, "qflow_orchestrator"):
        assert mended.count("SELECT 1 FROM workflow_executions") == 0


def test_after_a_commit_nobody_is_the_caller(migrated: Database) -> None:
    """S1: the setting is then an empty string, which is no uuid."""
    with migrated.connect("qflow_registry") as db:
        with db.transaction():
            db.execute("SELECT set_config('qflow.user_id', %s, true)", (str(uuid4()),))
        row = db.execute("SELECT current_user_id(), current_tenant_id(), current_role_name()")
        assert (None, None, None) == row.fetchone()


# authenticate()


def _session(s: Subject, digest: str, **values: object) -> UUID:
    user = s.user(**values)
    s.insert("user_sessions", user_id=user, session_token=digest)
    return user


def _who(s: Subject, digest: str) -> tuple[object, ...] | None:
    with s.acting(None, "qflow_telemetry"):
        return s.db.execute(
            "SELECT user_id, tenant_id, role, is_owner, kind, name, scopes FROM authenticate(%s)",
            (digest,),
        ).fetchone()


def test_a_session_says_whose_it_is(mended: Subject) -> None:
    user = _session(mended, "b" * 64, email="a@example.com", role="admin", is_owner=True)
    assert (user, user, "admin", True, "user", "a@example.com", []) == _who(mended, "b" * 64)


def test_a_service_token_is_the_system_users(mended: Subject) -> None:
    mended.db.execute(
        "INSERT INTO service_tokens (name, token_sha256, scopes) VALUES ('runner', %s, '{runner}')",
        ("c" * 64,),
    )
    system = UUID("00000000-0000-0000-0000-000000000001")
    assert (system, system, "service", False, "service", "runner", ["runner"]) == (
        _who(mended, "c" * 64)
    )


@pytest.mark.parametrize("digest", ["d" * 64, "", "b" * 63, "b" * 65, "B" * 64, "' OR true --"])
def test_any_other_digest_is_nobody(digest: str, mended: Subject) -> None:
    """S16."""
    _session(mended, "b" * 64)
    assert _who(mended, digest) is None


def test_an_expired_session_or_token_and_an_inactive_user_are_nobody(mended: Subject) -> None:
    """S16."""
    _session(mended, "b" * 64, is_active=False)
    user = mended.user()
    mended.insert("user_sessions", user_id=user, session_token="c" * 64, expires_at="yesterday")
    mended.db.execute(
        "INSERT INTO service_tokens (name, token_sha256, expires_at) VALUES ('a', %s, 'yesterday')",
        ("d" * 64,),
    )
    assert [None] * 3 == [_who(mended, digit * 64) for digit in "bcd"]


def test_a_new_user_has_a_personal_tenant_of_the_same_id(mended: Subject) -> None:
    user = mended.user()
    assert ("personal",) == mended.db.execute(
        "SELECT kind FROM tenants WHERE id = %s", (user,)
    ).fetchone()


def test_users_are_made_by_the_login_that_keeps_passwords(migrated: Database) -> None:
    with migrated.connect("qflow_registry_auth") as db:
        user = db.execute(
            "INSERT INTO users (email, password_hash) VALUES ('a@example.com', '$argon2id$x')"
            " RETURNING id"
        ).fetchone()
        assert user == db.execute("SELECT id FROM tenants WHERE name = 'a@example.com'").fetchone()


# The engine's proof


def test_a_flush_under_a_lost_fence_raises(mended: Subject) -> None:
    for rows, expected, actual, state in ((0, 1, 1, "QF002"), (1, 2, 1, "QF001")):
        with pytest.raises(psycopg.Error) as raised, mended.db.transaction():
            mended.db.execute(
                "SELECT engine_check(%s, %s, %s, 'completed')", (rows, expected, actual)
            )
        assert state == raised.value.sqlstate
    assert mended.value("SELECT engine_check(1, 2, 2, 'completed')") is True


def test_there_are_sixty_four_shards(mended: Subject) -> None:
    assert 64 == mended.count("SELECT 1 FROM engine_shards")
