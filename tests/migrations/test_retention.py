"""Retention: only what is over and old, in batches, all of it, and the bytes after it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.migrations.subject import Subject

_NOW = datetime.now(UTC)


def _ago(days: int) -> str:
    return (_NOW - timedelta(days=days)).isoformat()


def _old(s: Subject, status: str, *, days: int = 31) -> None:
    owner = s.user()
    over = {} if status in {"running", "paused"} else {"completed_at": _ago(days)}
    run = s.execution(owner, status=status, created_at=_ago(days), started_at=_ago(days), **over)
    for order in range(3):
        node = s.node_execution(
            owner,
            workflow_execution_id=run,
            node_id=f"n{order}",
            execution_order=order,
            status="failed",
            started_at=_ago(days),
            completed_at=_ago(days),
        )
        s.insert("error_logs", workflow_execution_id=run, node_execution_id=node)
        s.insert("performance_metrics", workflow_execution_id=run, node_execution_id=node)
        s.insert("node_data_flow", workflow_execution_id=run)
        s.file(owner, workflow_execution_id=run, node_execution_id=node)
    s.container(owner, workflow_execution_id=run)


def _until_done(s: Subject, call: str) -> list[int]:
    removed: list[int] = []
    with s.acting(None, "qflow_telemetry_maint"):
        while not removed or removed[-1]:
            removed.append(s.value(f"SELECT {call}"))
    return removed


def test_only_old_executions_that_are_over_go_and_all_of_them(mended: Subject) -> None:
    """G6, I21, I22, S3, S20-S24."""
    for status in ("completed", "failed", "cancelled", "running", "paused"):
        _old(mended, status)
    _old(mended, "completed", days=29)
    removed = _until_done(mended, "cleanup_old_executions(batch => 2, leaves => 10)")
    assert max(removed) <= 12
    assert [("completed",), ("paused",), ("running",)] == mended.db.execute(
        "SELECT status FROM workflow_executions ORDER BY 1"
    ).fetchall()
    left = {"node_executions": 9, "error_logs": 9, "performance_metrics": 9, "files": 9}
    left |= {"node_data_flow": 9, "containers": 3}
    assert left == {table: mended.count(f"SELECT 1 FROM {table}") for table in left}
    assert 9 == mended.count("SELECT 1 FROM outbox_events WHERE kind = 'file_deleted'")
    # Three executions of three nodes with four leaves each, a sandbox, and themselves.
    assert 3 * (3 * 5 + 2) == sum(removed)


def test_an_execution_is_hidden_before_its_first_leaf_goes(mended: Subject) -> None:
    _old(mended, "completed")
    owner = mended.value("SELECT created_by FROM workflow_executions")
    with mended.acting(None, "qflow_telemetry_maint"):
        assert 1 == mended.value("SELECT cleanup_old_executions(leaves => 1)")
    assert 1 == mended.count("SELECT 1 FROM workflow_executions")
    with mended.acting(owner, "qflow_orchestrator"):
        assert 0 == mended.count("SELECT 1 FROM workflow_executions")


def test_a_purge_that_was_broken_off_is_gone_on_with(mended: Subject) -> None:
    """CP21."""
    _old(mended, "completed")
    with mended.acting(None, "qflow_telemetry_maint"):
        mended.value("SELECT cleanup_old_executions(leaves => 1)")
        mended.value("SELECT cleanup_old_executions(interval '100 days')")
    assert 0 == mended.count("SELECT 1 FROM workflow_executions")


def test_a_temporary_file_goes_when_it_is_due_and_its_bytes_follow(mended: Subject) -> None:
    """S26, CP22."""
    owner = mended.user()
    for due in ("yesterday", "tomorrow"):
        mended.file(owner, is_temporary=True, expires_at=due)
    assert [1, 0] == _until_done(mended, "cleanup_temporary_files()")
    payload = mended.value("SELECT payload FROM outbox_events")
    assert payload["file_path"].startswith(f"{owner}/")


def test_the_record_of_an_access_outlives_the_file(mended: Subject) -> None:
    """S27."""
    file = mended.file(mended.user(), hash_sha256="a" * 64)
    mended.insert("file_access_logs", file_id=file, access_type="delete")
    path = mended.value("SELECT file_path FROM files")
    mended.db.execute("DELETE FROM files")
    assert (None, path, "a" * 64) == mended.db.execute(
        "SELECT file_id, file_path, file_hash FROM file_access_logs"
    ).fetchone()


def test_every_other_cleanup_removes_what_is_old_and_nothing_else(mended: Subject) -> None:
    """S25."""
    user = mended.user()
    aged = {
        "performance_metrics": "recorded_at",
        "error_logs": "created_at",
        "system_health": "recorded_at",
        "file_access_logs": "accessed_at",
    }
    for table, column in aged.items():
        for days in (1, 91):
            values: dict[str, Any] = {column: _ago(days)}
            mended.insert(table, **values)
    for digit, due in (("a", "yesterday"), ("b", "tomorrow")):
        mended.insert("user_sessions", user_id=user, session_token=digit * 64, expires_at=due)
        mended.db.execute(
            "INSERT INTO idempotency_keys (tenant_id, caller_id, method, request_id,"
            " request_digest, expires_at) VALUES (%s, %s, %s, gen_random_uuid(), 'd', %s)",
            (user, user, digit, due),
        )
    for days in (1, 31):
        mended.container(
            user,
            container_id=f"proc:{days}",
            status="removed",
            started_at=_ago(days),
            stopped_at=_ago(days),
        )
        mended.db.execute(
            "INSERT INTO outbox_events (kind, payload, sent_at) VALUES ('x', '{}', %s)",
            (_ago(days),),
        )
    mended.container(user, status="running")
    mended.db.execute("INSERT INTO outbox_events (kind, payload) VALUES ('x', '{}')")
    left = {
        "cleanup_old_metrics": ("performance_metrics", 1),
        "cleanup_old_error_logs": ("error_logs", 1),
        "cleanup_old_system_health": ("system_health", 1),
        "cleanup_old_file_access_logs": ("file_access_logs", 1),
        "cleanup_expired_sessions": ("user_sessions", 1),
        "cleanup_expired_idempotency_keys": ("idempotency_keys", 1),
        "cleanup_old_containers": ("containers", 2),
        "cleanup_sent_outbox_events": ("outbox_events", 2),
    }
    for function, (table, count) in left.items():
        assert [1, 0] == _until_done(mended, f"{function}()"), function
        assert count == mended.count(f"SELECT 1 FROM {table}"), table


def test_nobody_else_may_clean(mended: Subject) -> None:
    """S4."""
    for login in ("qflow_telemetry", "qflow_orchestrator_engine", "qflow_registry_auth"):
        with mended.acting(mended.user(), login):
            assert not mended.does(lambda: mended.value("SELECT cleanup_old_metrics()"))
