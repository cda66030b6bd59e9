"""Rules of retention, dry runs, passes that are asked for, and what they leave in the history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from qflow.telemetry.v1 import retention_service_pb2 as pb
from qflow.telemetry.v1.retention_service_pb2_grpc import RetentionServiceStub

from services.kit.pg import Pool
from services.telemetry.domain.retention import RULES
from services.telemetry.usecases.retention import Retention
from tests import factories
from tests.integration.telemetry.conftest import Runs, Telemetry

KEEP = {rule.subject: timedelta(days=rule.keep_days) for rule in RULES if rule.keep_days}


def stub(telemetry: Telemetry, user: factories.User) -> Any:
    return RetentionServiceStub(telemetry.channel(user))


def refusal(code: grpc.StatusCode) -> Any:
    return pytest.raises(grpc.aio.AioRpcError, match=code.name)


@pytest.fixture
def retention(maint: Pool) -> Retention:
    return Retention(maint, maint, KEEP)


async def test_every_kind_is_kept_for_a_time_of_its_own_by_default(
    telemetry: Telemetry, owner: factories.User
) -> None:
    """S25: on by default, and each with the setting that changes it."""
    request = pb.ListRetentionRulesRequest()
    rules = {
        each.subject: each
        for each in (await stub(telemetry, owner).ListRetentionRules(request)).rules
    }
    assert [rule.subject for rule in RULES] == [*rules]
    runs = rules["executions"]
    assert (30, 0, True) == (runs.deployment_keep_days, runs.tenant_keep_days, runs.settable)
    assert "QFLOW_KEEP_EXECUTIONS_DAYS" == runs.setting
    assert (0, "") == (rules["sessions"].deployment_keep_days, rules["sessions"].setting)


async def test_a_tenant_keeps_its_own_for_less_long_and_nobody_elses(
    telemetry: Telemetry,
    retention: Retention,
    runs: Runs,
    runs_of: Callable[[factories.User], Runs],
    sql: psycopg.Connection,
) -> None:
    """G6, I22."""
    other = runs_of(factories.user(sql))
    gone, kept, foreign = (
        runs.finished(ago="8 days"),
        runs.finished(ago="6 days"),
        other.finished(ago="8 days"),
    )
    for tenant in (runs.owner.id, other.owner.id):
        sql.execute(
            "INSERT INTO error_logs (error_type, error_message, tenant_id, created_at)"
            " VALUES ('x', 'x', %s, now() - interval '8 days')",
            (tenant,),
        )
    own = stub(telemetry, runs.owner)
    for subject in ("executions", "error_logs", "metrics"):
        answer = await own.SetRetentionRule(
            pb.SetRetentionRuleRequest(subject=subject, keep_days=7, request_id=str(uuid4()))
        )
        assert (7, True) == (answer.rule.tenant_keep_days, answer.rule.settable)
    left, logged = {gone}, 2
    while gone in left or logged > 1:  # the service may be at it itself, and then it is the one
        assert set(await retention.make_pass()) <= {"executions", "error_logs", "metrics"}
        left = {row[0] for row in sql.execute("SELECT id FROM workflow_executions")}
        logged = len(sql.execute("SELECT FROM error_logs").fetchall())
    assert {kept, foreign} <= left
    assert [(other.owner.id,)] == sql.execute("SELECT tenant_id FROM error_logs").fetchall()


async def test_a_rule_is_changed_by_whoever_read_it_last(
    telemetry: Telemetry, owner: factories.User, sql: psycopg.Connection
) -> None:
    """B41."""
    own = stub(telemetry, owner)
    request = pb.SetRetentionRuleRequest(subject="metrics", keep_days=10)
    first = (await own.SetRetentionRule(request)).rule
    request.etag = first.etag
    second = (await own.SetRetentionRule(request)).rule
    with refusal(grpc.StatusCode.ABORTED):
        await own.SetRetentionRule(request)
    with refusal(grpc.StatusCode.ABORTED):
        await own.ResetRetentionRule(
            pb.ResetRetentionRuleRequest(subject="metrics", etag=first.etag)
        )
    answer = await own.ResetRetentionRule(
        pb.ResetRetentionRuleRequest(subject="metrics", etag=second.etag)
    )
    assert (0, 90, "") == (
        answer.rule.tenant_keep_days,
        answer.rule.deployment_keep_days,
        answer.rule.etag,
    )
    viewer = stub(telemetry, factories.user(sql, role="viewer"))
    with refusal(grpc.StatusCode.PERMISSION_DENIED):
        await viewer.SetRetentionRule(pb.SetRetentionRuleRequest(subject="metrics", keep_days=1))


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"subject": "metrics", "keep_days": 91}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"subject": "metrics", "keep_days": 0}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"subject": "metrics", "keep_days": -1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"subject": "sessions", "keep_days": 1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"subject": "users; DROP", "keep_days": 1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"subject": "", "keep_days": 1}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=str,
)
async def test_a_rule_that_cannot_be_is_refused(
    telemetry: Telemetry, owner: factories.User, wrong: dict[str, Any], code: grpc.StatusCode
) -> None:
    with refusal(code):
        await stub(telemetry, owner).SetRetentionRule(pb.SetRetentionRuleRequest(**wrong))


async def test_a_dry_run_counts_what_a_pass_removes_and_removes_nothing(
    telemetry: Telemetry, retention: Retention, sql: psycopg.Connection
) -> None:
    """What both say must be the same, for each kind that there can be."""
    admin = factories.user(sql, role="admin")
    old = "date_trunc('hour', now() - interval '800 days')"  # minutes of one hour
    sql.execute(f"""
        INSERT INTO performance_metrics (metric_name, metric_value, tenant_id, recorded_at)
        SELECT 'm', n, '{admin.id}', {old} + n * interval '1 min' FROM generate_series(1, 3) n;
        INSERT INTO error_logs (error_type, error_message, tenant_id, created_at)
        VALUES ('x', 'x', '{admin.id}', {old}), ('x', 'x', '{admin.id}', now());
        INSERT INTO system_health (node_name, recorded_at) VALUES ('x', {old});
        INSERT INTO containers (container_id, python_version, status, tenant_id, created_by,
                                created_at, started_at, stopped_at)
        VALUES ('c', '3.11', 'removed', '{admin.id}', '{admin.id}', {old}, {old}, {old});
        INSERT INTO file_access_logs (access_type, tenant_id, accessed_at, file_path)
        VALUES ('read', '{admin.id}', {old}, 'x');
        INSERT INTO user_sessions (user_id, session_token, expires_at)
        VALUES ('{admin.id}', repeat('a', 64), {old});
        INSERT INTO idempotency_keys (tenant_id, caller_id, method, request_id, request_digest,
                                      expires_at)
        VALUES ('{admin.id}', '{admin.id}', 'm', gen_random_uuid(), 'd', {old});
        INSERT INTO outbox_events (kind, payload, tenant_id, sent_at)
        VALUES ('x', '{{}}', '{admin.id}', {old});
        INSERT INTO environments (key, tenant_id, python_version, platform, lock_digest, state,
                                  created_at)
        VALUES ('gone', '{admin.id}', '3.11', 'p', 'd', 'evicted', {old}),
               ('here', '{admin.id}', '3.11', 'p', 'd', 'ready', {old});
        INSERT INTO retention_runs (id, state, ended_at)
        VALUES (gen_random_uuid(), 'completed', {old});
        INSERT INTO runner_members (incarnation, state, updated_at)
        VALUES (gen_random_uuid(), 'gone', {old});
        INSERT INTO engine_members (id, epoch, state, updated_at)
        VALUES (gen_random_uuid(), 101, 'gone', {old}), (gen_random_uuid(), 102, 'gone', {old});
    """)
    stubbed = stub(telemetry, admin)
    told = {
        each.subject: each.count
        for each in (await stubbed.PreviewRetention(pb.PreviewRetentionRequest())).due
    }
    assert [rule.subject for rule in RULES] == [*told]
    expected = {"metrics": 3, "metric_minutes": 3, "metric_hours": 1, "error_logs": 1}
    assert expected == {subject: told[subject] for subject in expected}
    assert 12 <= sum(1 for count in told.values() if count)
    assert told == {
        each.subject: each.count
        for each in (await stubbed.PreviewRetention(pb.PreviewRetentionRequest())).due
    }
    removed = await retention.make_pass()
    assert {subject: count for subject, count in told.items() if count} == dict(removed)
    again = (await stubbed.PreviewRetention(pb.PreviewRetentionRequest())).due
    assert not any(each.count for each in again)


async def test_a_pass_that_is_asked_for_is_made_and_told_of(
    telemetry: Telemetry, sql: psycopg.Connection
) -> None:
    admin = factories.user(sql, role="admin")
    sql.execute("INSERT INTO system_health (node_name, recorded_at) VALUES ('x', '2020-01-01')")
    stubbed = stub(telemetry, admin)
    request = pb.StartRetentionRequest(request_id=str(uuid4()))
    run = (await stubbed.StartRetention(request)).run
    assert run == (await stubbed.StartRetention(request)).run
    assert str(admin.id) == run.requested_by
    asked = pb.GetRetentionRunRequest(retention_run_id=run.id)
    async with asyncio.timeout(30):
        while not (run := (await stubbed.GetRetentionRun(asked)).run).HasField("end_time"):  # noqa: ASYNC110  # rows give no signal
            await asyncio.sleep(0.05)
    assert pb.RETENTION_RUN_STATE_COMPLETED == run.state
    [removed] = [each for each in run.removed if each.subject == "system_health"]
    assert (1, 1, False, "") == (
        removed.row_count,
        removed.batch_count,
        removed.incomplete,
        removed.fault,
    )
    listed = (await stubbed.ListRetentionRuns(pb.ListRetentionRunsRequest())).runs
    assert [run] == [each for each in listed if each.id == run.id]


async def test_what_could_not_be_removed_stands_in_the_history(
    retention: Retention, sql: psycopg.Connection
) -> None:
    """The reason is one word, and no text of the database."""
    sql.execute("ALTER FUNCTION cleanup_old_metrics RENAME TO gone")
    with pytest.raises(Exception, match="cleanup_old_metrics"):
        await retention.make_pass()
    [(state, report)] = sql.execute("SELECT state, report FROM retention_runs").fetchall()
    assert "failed" == state
    [told] = [each for each in report if each["subject"] == "metrics"]
    assert "UndefinedFunctionError" == told["fault"]


async def test_a_pass_that_nobody_ended_is_told_as_interrupted(
    retention: Retention, sql: psycopg.Connection
) -> None:
    """CP21: the process died; the next pass goes on with what it left."""
    sql.execute(
        "INSERT INTO retention_runs (id, state, started_at)"
        " VALUES (gen_random_uuid(), 'running', now() - interval '7 hours')"
    )
    await retention.make_pass()
    states = sql.execute("SELECT state FROM retention_runs ORDER BY started_at").fetchall()
    assert [("interrupted",), ("completed",)] == states


async def test_passes_are_for_administrators(
    telemetry: Telemetry, owner: factories.User, sql: psycopg.Connection
) -> None:
    own, admin = stub(telemetry, owner), stub(telemetry, factories.user(sql, role="admin"))
    for call, request in (
        (own.PreviewRetention, pb.PreviewRetentionRequest()),
        (own.StartRetention, pb.StartRetentionRequest()),
        (own.ListRetentionRuns, pb.ListRetentionRunsRequest()),
        (own.GetRetentionRun, pb.GetRetentionRunRequest(retention_run_id=str(uuid4()))),
    ):
        with refusal(grpc.StatusCode.PERMISSION_DENIED):
            await call(request)
    with refusal(grpc.StatusCode.NOT_FOUND):
        await admin.GetRetentionRun(pb.GetRetentionRunRequest(retention_run_id=str(uuid4())))
