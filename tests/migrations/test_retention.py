"""Retention: only what is over and old, in batches, all of it, and the bytes after it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

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
        for table in ("error_logs", "performance_metrics"):
            s.insert(table, owner=owner, workflow_execution_id=run, node_execution_id=node)
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
    assert owner == mended.value("SELECT tenant_id FROM outbox_events")


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
            mended.insert(table, owner=user, **values)
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
            "INSERT INTO outbox_events (kind, payload, tenant_id, sent_at)"
            " VALUES ('x', '{}', %s, %s)",
            (user, _ago(days)),
        )
    mended.container(user, status="running")
    mended.db.execute(
        "INSERT INTO outbox_events (kind, payload, tenant_id) VALUES ('x', '{}', %s)", (user,)
    )
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


def _member(s: Subject, epoch: int, state: str, *, days: int, lease: str | None = None) -> UUID:
    key: UUID = s.value(
        "INSERT INTO engine_members (id, epoch, state, expires_at, updated_at)"
        " VALUES (gen_random_uuid(), %s, %s, %s, %s) RETURNING id",
        epoch,
        state,
        lease,
        _ago(days),
    )
    return key


def test_members_that_died_long_ago_go_but_not_the_highest_epoch_or_a_shards_owner(
    mended: Subject,
) -> None:
    """S25: a row per start; the next epoch is counted from the highest."""
    _member(mended, 1, "fenced", days=8)
    _member(mended, 2, "live", days=8, lease=_ago(8))
    kept = {
        _member(mended, 3, "fenced", days=6),
        _member(mended, 4, "live", days=8, lease="tomorrow"),
        _member(mended, 5, "idle", days=8),
    }
    owner = _member(mended, 6, "gone", days=8)
    mended.db.execute("UPDATE engine_shards SET member_id = %s WHERE shard = 7", (owner,))
    kept |= {owner, _member(mended, 7, "gone", days=8)}
    assert [2, 0] == _until_done(mended, "cleanup_dead_engine_members()")
    assert kept == {key for (key,) in mended.db.execute("SELECT id FROM engine_members")}


def test_runners_that_died_long_ago_go_once_their_sandboxes_are_closed(mended: Subject) -> None:
    """S25: the next runner of a home finds by the row what it has to close."""
    leases = {"fenced": None, "gone": None, "live": _ago(8), "idle": None}
    members = {
        state: mended.value(
            "INSERT INTO runner_members (incarnation, state, expires_at, updated_at)"
            " VALUES (gen_random_uuid(), %s, %s, %s) RETURNING incarnation",
            state,
            lease,
            _ago(8),
        )
        for state, lease in leases.items()
    }
    mended.container(mended.user(), runner_incarnation=members["gone"])
    assert [2, 0] == _until_done(mended, "cleanup_dead_runner_members()")
    mended.db.execute("UPDATE containers SET status = 'stopped'")
    assert [1, 0] == _until_done(mended, "cleanup_dead_runner_members()")
    assert [("idle",)] == mended.db.execute("SELECT state FROM runner_members").fetchall()


def test_pins_go_when_no_execution_runs_by_them_and_no_start_may_take_them(
    mended: Subject,
) -> None:
    """S25: a start takes a node's current version; versions never go back."""
    owner = mended.user()
    node = mended.insert("python_nodes", owner=owner, version=2)
    versions = [
        mended.insert(
            "python_node_versions", owner=owner, node_id=node, version=n, created_at=_ago(31)
        )
        for n in (1, 2)
    ]
    places = [{"id": "a", "node_id": str(node)}, {"id": "a", "node_id": str(node), "version": 1}]
    workflow = mended.insert("workflows", owner=owner)
    for number, place in enumerate(places, start=1):
        mended.insert(
            "workflow_versions",
            owner=owner,
            workflow_id=workflow,
            version=number,
            nodes=json.dumps([place]),
        )

    def pins(workflow_version: int, taken: UUID, *, days: int = 31) -> UUID:
        key: UUID = mended.value(
            "INSERT INTO execution_pins (tenant_id, digest, workflow_id, workflow_version, pins,"
            " created_at) VALUES (%s, gen_random_uuid(), %s, %s, %s, %s) RETURNING id",
            owner,
            workflow,
            workflow_version,
            json.dumps({"a": str(taken)}),
            _ago(days),
        )
        return key

    pins(1, versions[0])
    kept = {pins(1, versions[1]), pins(2, versions[0]), pins(1, versions[0], days=29)}
    used = pins(1, versions[0])
    mended.execution(owner, workflow_id=workflow, pins_id=used)
    assert [1, 0] == _until_done(mended, "cleanup_unused_pins()")
    assert kept | {used} == {key for (key,) in mended.db.execute("SELECT id FROM execution_pins")}


def test_pins_of_one_run_go_with_it_and_those_of_a_node_stay(mended: Subject) -> None:
    """Inputs of its own are a run's; that a node runs alone, the next run of it takes again."""
    owner = mended.user()
    workflow = mended.workflow(owner)
    node = mended.insert("python_nodes", owner=owner)
    version = mended.insert("python_node_versions", owner=owner, node_id=node)

    def pins(columns: str, value: UUID, inputs: str | None) -> UUID:
        key: UUID = mended.value(
            f"INSERT INTO execution_pins (tenant_id, digest, pins, inputs, created_at, {columns})"
            " VALUES (%s, gen_random_uuid(), '{}', %s, now() - interval '31 days', %s"
            + (", 1" if "," in columns else "")
            + ") RETURNING id",
            owner,
            inputs,
            value,
        )
        return key

    of_workflow = "workflow_id, workflow_version"
    edits = '{"a": {"x": "1"}}'
    of_node = pins("node_version_id", version, None)
    unused, used = pins(of_workflow, workflow, edits), pins(of_workflow, workflow, edits)
    mended.execution(owner, workflow_id=workflow, pins_id=used)
    assert [1, 0] == _until_done(mended, "cleanup_unused_pins()")
    left = {key for (key,) in mended.db.execute("SELECT id FROM execution_pins")}
    assert {of_node, used} == left
    assert unused not in left


def test_nobody_else_may_clean(mended: Subject) -> None:
    """S4."""
    for login in ("qflow_telemetry", "qflow_orchestrator_engine", "qflow_registry_auth"):
        with mended.acting(mended.user(), login):
            assert not mended.does(lambda: mended.value("SELECT cleanup_old_metrics()"))


def test_ticks_and_backfills_go_when_they_are_old_and_not_while_they_wait(mended: Subject) -> None:
    """A tick that waits for its start is work, however old it is."""
    owner = mended.user()
    workflow, schedule = mended.workflow(owner), uuid4()
    mended.db.execute(
        "INSERT INTO schedules (id, workflow_id, name, timing, overlap, catch_up,"
        " catch_up_window_ms, tenant_id, created_by)"
        " VALUES (%s, %s, 'a', '{}', 'skip', 'last', 1, %s, %s)",
        (schedule, workflow, owner, owner),
    )
    for days, state in ((1, "skipped"), (31, "skipped"), (32, "pending"), (33, "failed")):
        mended.db.execute(
            "INSERT INTO schedule_ticks (schedule_id, tick_at, kind, state, try_at, tenant_id,"
            " updated_at) VALUES (%s, %s, 'timed', %s, %s, %s, %s)",
            (
                schedule,
                _ago(days),
                state,
                _ago(1) if state == "pending" else None,
                owner,
                _ago(days),
            ),
        )
    for ended in (_ago(1), _ago(31), None):
        mended.db.execute(
            "INSERT INTO schedule_backfills (schedule_id, timing, from_at, to_at, step_at,"
            " completed_at, state, max_running, total_count, tenant_id, created_by)"
            " VALUES (%s, '{}', 'yesterday', 'today', %s, %s, %s, 1, 1, %s, %s)",
            (
                schedule,
                None if ended else _ago(1),
                ended,
                "completed" if ended else "running",
                owner,
                owner,
            ),
        )
    assert [2, 0] == _until_done(mended, "cleanup_old_schedule_ticks()")
    assert [1, 0] == _until_done(mended, "cleanup_old_schedule_backfills()")
    assert {"skipped", "pending"} == {
        state for (state,) in mended.db.execute("SELECT state FROM schedule_ticks")
    }


def test_a_file_that_another_run_keeps_is_handed_on_and_goes_with_the_last(
    mended: Subject,
) -> None:
    """I21, I22: whoever removes it has the rights of retention, and no others."""
    owner = mended.user()
    nodes = []
    for days in (33, 32, 1):
        run = mended.execution(
            owner,
            status="completed",
            created_at=_ago(days),
            started_at=_ago(days),
            completed_at=_ago(days),
        )
        node = mended.node_execution(
            owner,
            workflow_execution_id=run,
            node_id="a",
            status="completed",
            started_at=_ago(days),
            completed_at=_ago(days),
        )
        nodes.append((run, node))
    (first, made), *users = nodes
    kept, other = (
        mended.file(owner, workflow_execution_id=first, node_execution_id=made) for _ in range(2)
    )
    for _, node in users:
        mended.db.execute(
            "INSERT INTO file_uses (node_execution_id, file_id, tenant_id) VALUES (%s, %s, %s)",
            (node, kept, owner),
        )
    assert 0 == _until_done(mended, "cleanup_old_executions()")[-1]
    left = mended.db.execute(
        "SELECT id, workflow_execution_id, node_execution_id FROM files"
    ).fetchall()
    assert [(kept, *nodes[-1])] == left
    assert [] == mended.db.execute("SELECT 1 FROM file_uses").fetchall()
    gone = mended.db.execute("SELECT payload ->> 'file_id' FROM outbox_events").fetchall()
    assert [(str(other),)] == gone
    assert [0] == _until_done(mended, "cleanup_old_executions()")
    assert 2 <= sum(_until_done(mended, "cleanup_old_executions(keep => '0 days')"))
    assert [] == mended.db.execute("SELECT 1 FROM files").fetchall()


def test_cached_results_go_when_their_time_is_up_or_with_their_run(mended: Subject) -> None:
    owner = mended.user()
    version = mended.insert(
        "python_node_versions",
        owner=owner,
        node_id=mended.insert("python_nodes", owner=owner),
        version=2,
    )
    nodes = [mended.node_execution(owner, node_id=name) for name in "abc"]
    for node, expires in zip(nodes, (_ago(1), _ago(-1), _ago(-1)), strict=True):
        mended.db.execute(
            "INSERT INTO cached_results (tenant_id, digest, node_version_id, node_execution_id,"
            " expires_at) VALUES (%s, %s, %s, %s, %s)",
            (owner, uuid4().hex * 2, version, node, expires),
        )
    assert [1, 0] == _until_done(mended, "cleanup_expired_results()")
    mended.db.execute("DELETE FROM node_executions WHERE id = %s", (nodes[1],))
    left = mended.db.execute("SELECT node_execution_id FROM cached_results").fetchall()
    assert [(nodes[2],)] == left
