"""The seed's faults of access, of deletion and retention, and of the catalogue."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg

from tests.migrations.catalogue import (
    FOREIGN_KEYS_WITHOUT_INDEX,
    FUNCTIONS_OF_PUBLIC,
    PREFIX_INDEXES,
    TABLES_NOT_FORCED,
    WIDE_POLICIES,
)
from tests.migrations.faults import fault
from tests.migrations.subject import Subject

# Access control


@fault("S1", "row-level security is on and no policy loads", literal=True)
def _(s: Subject) -> bool:
    return s.count("SELECT 1 FROM pg_policies") == 0


@fault("S2", "the owner of a table is not bound by its policies")
def _(s: Subject) -> bool:
    return s.count(TABLES_NOT_FORCED) > 0


@fault("S3", "retention says it is done and removes nothing")
def _(s: Subject) -> bool:
    s.execution(s.user(), status="completed", **_ended("40 days"), created_at=_ago("40 days"))
    with s.acting(None, "qflow_telemetry_maint"):
        s.value("SELECT cleanup_old_executions()")
    return s.count("SELECT 1 FROM workflow_executions") > 0


@fault("S4", "anybody may run the cleanup functions (I28)")
def _(s: Subject) -> bool:
    return s.count(FUNCTIONS_OF_PUBLIC) > 0


@fault("S5", "no version of the schema is recorded")
def _(s: Subject) -> bool:
    return s.value("SELECT to_regclass('alembic_version')") is None


@fault("S7", "another tenant changes a public node")
def _(s: Subject) -> bool:
    s.insert("python_nodes", owner=s.user(), is_public=True)
    with s.acting(s.user(), "qflow_registry"):
        return s.count("UPDATE python_nodes SET name = 'mine now'") > 0


@fault("S7", "another tenant deletes a public node")
def _(s: Subject) -> bool:
    s.insert("python_nodes", owner=s.user(), is_public=True)
    with s.acting(s.user(), "qflow_registry"):
        return s.does(lambda: _some(s.count("DELETE FROM python_nodes")))


@fault("S7", "a public node may be made in another's name")
def _(s: Subject) -> bool:
    other = s.user()
    with s.acting(s.user(), "qflow_registry"):
        return s.takes("python_nodes", owner=other, is_public=True)


@fault("S8", "another's private workflow can be started")
def _(s: Subject) -> bool:
    workflow = s.workflow(s.user())
    other = s.user()
    with s.acting(other, "qflow_orchestrator"):
        return s.takes("workflow_executions", owner=other, workflow_id=workflow)


@fault("S9", "another tenant counts the nodes of an execution")
def _(s: Subject) -> bool:
    s.node_execution(s.user())
    with s.acting(s.user(), "qflow_orchestrator"):
        return s.count("SELECT id FROM node_executions") > 0


@fault("S9", "anybody sees all users")
def _(s: Subject) -> bool:
    s.user()
    me = s.user()
    with s.acting(me, "qflow_registry"):
        return s.count("SELECT id FROM users WHERE id <> %s", me) > 0


@fault("S11", "a file belongs to nobody")
def _(s: Subject) -> bool:
    return (
        s.count(
            "SELECT 1 FROM information_schema.columns WHERE column_name = 'tenant_id'"
            " AND table_name IN ('files', 'containers', 'performance_metrics', 'error_logs')"
        )
        < 4
    )


@fault("S12", "another tenant renames a tag")
def _(s: Subject) -> bool:
    s.insert("python_node_tags", owner=s.user(), name="mine")
    with s.acting(s.user(), "qflow_registry"):
        return s.count("UPDATE python_node_tags SET name = 'theirs'") > 0


@fault("S12", "a tag's name taken by another tenant is taken for all")
def _(s: Subject) -> bool:
    s.insert("python_node_tags", owner=s.user(), name="mine")
    return not s.takes("python_node_tags", owner=s.user(), name="mine")


@fault("S12", "any tenant adds to the types of all")
def _(s: Subject) -> bool:
    with s.acting(s.user(), "qflow_registry"):
        return s.takes("type_definitions", name="mine")


@fault("S14", "a template cannot be read by others")
def _(s: Subject) -> bool:
    s.workflow(s.user(), is_template=True)
    with s.acting(s.user(), "qflow_registry"):
        return s.count("SELECT id FROM workflows") == 0


@fault("S15", "a policy is for every command and every role (I27)")
def _(s: Subject) -> bool:
    return s.count(WIDE_POLICIES) > 0


@fault("S17", "a service reads the hashes of passwords")
def _(s: Subject) -> bool:
    s.user(password_hash="$argon2id$x")
    with s.acting(s.user(), "qflow_registry"):
        return s.does(lambda: s.count("SELECT password_hash FROM users"))


# Deletion and retention


@fault("S20", "one file keeps an execution from being deleted")
def _(s: Subject) -> bool:
    owner = s.user()
    run = s.execution(owner, status="completed", completed_at="now")
    s.file(owner, workflow_execution_id=run)
    return not s.does(lambda: s.count("DELETE FROM workflow_executions"))


@fault("S20", "one file keeps a workflow from being deleted")
def _(s: Subject) -> bool:
    owner = s.user()
    run = s.execution(owner, status="completed", completed_at="now")
    s.file(owner, workflow_execution_id=run)
    return not s.does(lambda: s.count("DELETE FROM workflows"))


@fault("S20", "a metric keeps a sandbox from being deleted")
def _(s: Subject) -> bool:
    owner = s.user()
    s.insert("performance_metrics", owner=owner, container_id=s.container(owner))
    return not s.does(lambda: s.count("DELETE FROM containers"))


@fault("S21", "a foreign key has no index (I29)")
def _(s: Subject) -> bool:
    return s.count(FOREIGN_KEYS_WITHOUT_INDEX) > 0


@fault("S22", "a workflow can be deleted under a running execution")
def _(s: Subject) -> bool:
    s.execution(s.user())
    return s.does(lambda: s.count("DELETE FROM workflows"))


@fault("S23", "a long execution vanishes on the day it ends")
def _(s: Subject) -> bool:
    started = _ago("31 days")
    s.execution(
        s.user(),
        status="completed",
        created_at=started,
        started_at=started,
        completed_at="now",
    )
    return s.does(lambda: _some(_removed(s)))


@fault("S24", "one call of retention removes all there is")
def _(s: Subject) -> bool:
    return (
        s.count(
            "SELECT 1 FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
            " AND proname LIKE 'cleanup%%' AND NOT coalesce('batch' = ANY (proargnames), false)"
        )
        > 0
    )


@fault("S25", "some tables are never cleaned")
def _(s: Subject) -> bool:
    tables = ("error_logs", "system_health", "file_access_logs", "user_sessions", "containers")
    return any(
        s.count(
            "SELECT 1 FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
            " AND proname LIKE 'cleanup%%' AND prosrc ~ ('DELETE FROM (public[.])?' || %s)",
            table,
        )
        == 0
        for table in tables
    )


@fault("S26", "a temporary file goes while an execution still uses it")
def _(s: Subject) -> bool:
    owner = s.user()
    s.file(
        owner,
        workflow_execution_id=s.execution(owner),
        is_temporary=True,
        expires_at="yesterday",
    )
    s.value("SELECT cleanup_temporary_files()")
    return s.count("SELECT 1 FROM files") == 0


@fault("S26", "a row goes and its bytes stay")
def _(s: Subject) -> bool:
    s.file(s.user())
    s.db.execute("DELETE FROM files")
    return s.value("SELECT to_regclass('outbox_events')") is None or (
        s.count("SELECT 1 FROM outbox_events WHERE kind = 'file_deleted'") == 0
    )


@fault("S27", "the record of a deletion goes with the file")
def _(s: Subject) -> bool:
    s.insert("file_access_logs", file_id=s.file(s.user()), access_type="delete")
    s.db.execute("DELETE FROM files")
    return s.count("SELECT 1 FROM file_access_logs") == 0


@fault("S28", "who read a file keeps their account from being deleted")
def _(s: Subject) -> bool:
    rule = s.value(
        "SELECT confdeltype FROM pg_constraint WHERE contype = 'f'"
        " AND conrelid = 'file_access_logs'::regclass AND confrelid = 'users'::regclass"
    )
    return bool(rule != "n")


# The engine and the indexes


@fault("S40", "nothing says who works at what, by which token, until when")
def _(s: Subject) -> bool:
    tables = ("engine_members", "runner_members", "node_attempts", "idempotency_keys")
    return any(s.value("SELECT to_regclass(%s)", table) is None for table in tables)


@fault("S54", "an index is only the beginning of another")
def _(s: Subject) -> bool:
    return s.count(PREFIX_INDEXES) > 0


@fault("S55", "no index serves the pages of a list")
def _(s: Subject) -> bool:
    wanted = (
        ("workflow_executions", "created_by, created_at DESC"),
        ("workflow_executions", "workflow_id, created_at DESC"),
        ("performance_metrics", "workflow_execution_id, metric_name, recorded_at"),
    )
    return any(
        s.count(
            "SELECT 1 FROM pg_indexes WHERE tablename = %s AND indexdef LIKE '%%(' || %s || '%%'",
            table,
            columns,
        )
        == 0
        for table, columns in wanted
    )


@fault("S56", "every file is in the index of those that expire")
def _(s: Subject) -> bool:
    return (
        s.value("SELECT indpred FROM pg_index WHERE indexrelid = 'idx_files_expires_at'::regclass")
        is None
    )


def _ended(ago: str) -> dict[str, str]:
    return {"started_at": _ago(ago), "completed_at": _ago(ago)}


def _ago(interval: str) -> str:
    days = int(interval.removesuffix(" days"))
    return (datetime.now(UTC) - timedelta(days=days)).isoformat()


def _removed(s: Subject) -> int:
    before = s.count("SELECT 1 FROM workflow_executions")
    s.value("SELECT cleanup_old_executions()")
    return before - s.count("SELECT 1 FROM workflow_executions")


def _some(count: int) -> None:
    """Take a statement that touches no row as refused."""
    if count == 0:
        raise psycopg.DataError("nothing was touched")
