"""Metrics that callers write are their tenant's own, and sums are of whoever's values they sum."""

from __future__ import annotations

from typing import Any

import pytest

from tests.migrations.subject import Subject

_WRITE = (
    "INSERT INTO performance_metrics (metric_name, metric_value, workflow_execution_id, tenant_id)"
    " VALUES ('m', 1, %s, %s)"
)


def test_a_caller_writes_metrics_of_its_own_tenant_and_runs_alone(mended: Subject) -> None:
    """S8, S9, X22: what stands in the request decides nothing."""
    owner, other = mended.user(), mended.user()
    own, foreign = mended.execution(owner), mended.execution(other)
    for user, role, run, tenant, may in (
        (owner, "user", None, owner, True),
        (owner, "user", own, owner, True),
        (owner, "viewer", None, owner, False),
        (owner, "user", foreign, owner, False),
        (owner, "user", None, other, False),
        (owner, "admin", foreign, other, False),
    ):
        with mended.acting(user, "qflow_telemetry", role=role):
            written = mended.does(lambda run=run, to=tenant: mended.count(_WRITE, run, to))
            assert may == written, (role, run, tenant)
    with mended.acting(owner, "qflow_telemetry"):
        for change in ("UPDATE performance_metrics SET metric_value = 2", "DELETE FROM {}"):
            text = change.format("performance_metrics")
            assert not mended.does(lambda text=text: mended.count(text))


def test_sums_of_another_tenant_are_neither_read_nor_changed(mended: Subject) -> None:
    """X22."""
    owner, other = mended.user(), mended.user()
    mended.db.execute(_WRITE.encode(), (None, other))
    add = (
        "SELECT add_metric_sums(ARRAY[%s::uuid], '{m}', ARRAY[NULL::uuid], ARRAY[now()],"
        " '{2001}', '{1}', '{1}', '{1}', '{1}')"
    )
    with mended.acting(owner, "qflow_telemetry"):
        assert 0 == mended.count("SELECT 1 FROM metric_rollups")
        assert not mended.does(lambda: mended.count(add, other))
        assert mended.does(lambda: mended.count(add, owner))
    assert [(other, 2)] == mended.db.execute(
        "SELECT tenant_id, sum(value_count)::int FROM metric_rollups WHERE tenant_id = %s"
        " GROUP BY 1",
        (other,),
    ).fetchall()


def test_values_of_every_writer_are_summed_by_minute_and_hour_and_by_workflow(
    mended: Subject,
) -> None:
    """Also those of one statement that fall into several."""
    owner = mended.user()
    run = mended.execution(owner)
    workflow = mended.value("SELECT workflow_id FROM workflow_executions")
    for second in ("10:00:01", "10:00:59", "10:59:59", "11:00:00"):
        mended.insert(
            "performance_metrics",
            owner=owner,
            metric_name="m",
            metric_value=2,
            workflow_execution_id=run,
            recorded_at=f"2026-01-05 {second}+00",
        )
    found: Any = mended.db.execute(
        "SELECT span_s, to_char(starts_at AT TIME ZONE 'UTC', 'HH24:MI'), value_count, value_sum"
        " FROM metric_rollups WHERE workflow_id = %s ORDER BY 1, 2",
        (workflow,),
    ).fetchall()
    minutes = [(60, "10:00", 2, 4.0), (60, "10:59", 1, 2.0), (60, "11:00", 1, 2.0)]
    assert [*minutes, (3600, "10:00", 3, 6.0), (3600, "11:00", 1, 2.0)] == found
    of_all: Any = mended.db.execute(
        "SELECT span_s, sum(value_count)::int FROM metric_rollups"
        " WHERE workflow_id = '00000000-0000-0000-0000-000000000000' GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert [(60, 4), (3600, 4)] == of_all


@pytest.mark.parametrize("span", [60, 3600])
def test_sums_go_when_they_are_old(mended: Subject, span: int) -> None:
    """S25, G6."""
    owner = mended.user()
    for days in (1, 100):
        mended.db.execute(
            "INSERT INTO performance_metrics (metric_name, metric_value, tenant_id, recorded_at)"
            " VALUES ('m', 1, %s, now() - %s * interval '1 day')",
            (owner, days),
        )
    with mended.acting(None, "qflow_telemetry_maint"):
        assert 1 == mended.value(f"SELECT cleanup_old_metric_rollups({span}, '90 days')")
        assert 0 == mended.value(f"SELECT cleanup_old_metric_rollups({span}, '90 days')")
    assert 3 == mended.count("SELECT 1 FROM metric_rollups")
