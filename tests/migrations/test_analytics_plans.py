"""What is computed over many records finds them by index, also under row-level security."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from services.telemetry.storage import error_groups, metric_buckets, statistics, workflow_rollups
from tests.migrations.conftest import Stand
from tests.migrations.subject import Subject

_RUNS = 20_000
_SPAN = "now() - interval '2 days', now()"
_OWN_INDEX = "idx_workflow_executions_workflow_id"
# A tenant of one workflow has the same runs in both.
_RUN_INDEXES = {_OWN_INDEX, "workflow_executions_tenant_id_created_at_idx"}


@pytest.fixture(scope="module")
def _full(stand: Stand) -> Iterator[tuple[Subject, UUID, UUID]]:
    """Ten tenants with two thousand runs each; the last one's id, and its workflow's.

    Never committed: a vacuum that came to these rows by itself would change their plans.
    """
    with stand.mended.connect() as db, db.transaction(force_rollback=True):
        s = Subject(db, mended=True)
        yield s, *_fill(s)


def _fill(s: Subject) -> tuple[UUID, UUID]:
    for _ in range(10):
        owner = s.user()
        workflow = s.workflow(owner)
        s.db.execute(
            "INSERT INTO workflow_executions (workflow_id, workflow_version, tenant_id, created_by,"
            "  shard, created_at, started_at, completed_at, status)"
            " SELECT %s, 1, %s, %s, n %% 64, at, at, at, 'completed'"
            "   FROM generate_series(1, %s) AS n,"
            "        LATERAL (SELECT now() - n * interval '1 h') AS t(at)",
            (workflow, owner, owner, _RUNS // 10),
        )
    # What they sum up to is another table's.
    s.db.execute("ALTER TABLE performance_metrics DISABLE TRIGGER performance_metrics_roll_up")
    s.db.execute(
        "INSERT INTO performance_metrics (metric_name, metric_value, workflow_execution_id,"
        "  tenant_id, recorded_at)"
        " SELECT name, 1, id, tenant_id, completed_at"
        "   FROM workflow_executions, unnest('{a,b,c,d,e,f}'::text[]) AS name"
    )
    s.db.execute(
        "INSERT INTO node_executions (workflow_execution_id, node_id, node_type, status,"
        "  started_at, completed_at, execution_order)"
        " SELECT id, 'n' || n, 'python', 'completed', started_at, started_at, n"
        "   FROM workflow_executions, generate_series(1, 2) AS n"
    )
    s.db.execute(
        "INSERT INTO error_logs (error_type, error_message, workflow_execution_id, tenant_id,"
        "  created_at) SELECT 'user_error', 'x', id, tenant_id, completed_at"
        "   FROM workflow_executions"
    )
    s.db.execute("ANALYZE")
    return owner, workflow


@pytest.fixture
def filled(_full: tuple[Subject, UUID, UUID]) -> Iterator[tuple[Subject, UUID, UUID]]:
    """The same as each test's own: what it does is taken back."""
    with _full[0].db.transaction(force_rollback=True):
        yield _full


def _indexes(plan: dict[str, Any]) -> set[str]:
    found = {plan["Index Name"]} if "Index Name" in plan else set()
    if plan["Node Type"] == "Seq Scan":
        found.add(f"all of {plan['Relation Name']}")
    for child in plan.get("Plans", []):
        found |= _indexes(child)
    return found


def _asked(s: Subject, owner: UUID, statement: str, arguments: str) -> set[str]:
    with s.acting(owner, "qflow_telemetry"):
        s.db.execute("SET LOCAL plan_cache_mode = force_custom_plan")
        s.db.execute(f"PREPARE asked AS {statement}".encode())
        row = s.db.execute(f"EXPLAIN (FORMAT json) EXECUTE asked ({arguments})".encode()).fetchone()
        s.db.execute("DEALLOCATE asked")
    assert row is not None
    return _indexes(row[0][0]["Plan"])


@pytest.mark.slow
def test_the_values_of_a_metric_are_read_by_its_name_and_time(
    filled: tuple[Subject, UUID, UUID],
) -> None:
    """I31."""
    s, owner, workflow = filled
    width = f"'{timedelta(hours=1)}'::interval"
    given = f"'a', {_SPAN}, {width}, '{{0.5}}', 1000"
    assert {"performance_metrics_tenant_id_metric_name_idx"} == _asked(
        s, owner, metric_buckets._BUCKETS, given
    )
    run = s.value("SELECT id FROM workflow_executions WHERE tenant_id = %s LIMIT 1", owner)
    found = _asked(
        s, owner, metric_buckets._BUCKETS_OF_EXECUTION, f"{given}, '{run}', '{workflow}'"
    )
    assert "performance_metrics_execution_idx" in found
    assert not [name for name in found if name.startswith("all of")]
    found = _asked(s, owner, metric_buckets._BUCKETS_OF_WORKFLOW, f"{given}, '{workflow}'")
    assert not [name for name in found if name.startswith("all of performance_metrics")]


@pytest.mark.slow
def test_a_workflows_runs_and_their_nodes_are_found_by_its_own_index(
    filled: tuple[Subject, UUID, UUID],
) -> None:
    """I31."""
    s, owner, workflow = filled
    given = f"'{workflow}', {_SPAN}, 10000, 0"
    found = _asked(s, owner, statistics._RUNS, given)
    assert found <= _RUN_INDEXES
    assert found
    # So few of them are in the span that the planner may look which are over before it reads one.
    found = _asked(s, owner, statistics._COUNT, given)
    assert _OWN_INDEX in found <= _RUN_INDEXES | {"workflow_executions_ended_idx"}
    for statement in (statistics._NODES, statistics._EDGES):
        found = _asked(s, owner, statement, f"{given}, 100")
        assert found & _RUN_INDEXES
        assert not {"all of node_executions", "all of workflow_executions"} & found


@pytest.mark.slow
def test_sums_of_a_workflow_are_found_by_their_key(filled: tuple[Subject, UUID, UUID]) -> None:
    """I31."""
    s, owner, workflow = filled
    s.db.execute("SELECT roll_up_executions(array_agg(id)) FROM workflow_executions")
    s.db.execute("ANALYZE workflow_rollups")
    given = f"'{workflow}', {_SPAN}, 0"
    assert {"workflow_rollups_pkey"} == _asked(s, owner, workflow_rollups._COUNT, given)
    found = _asked(s, owner, workflow_rollups._SUMMED, f"{given}, 'node', 100")
    assert {"workflow_rollups_pkey"} == found


@pytest.mark.slow
def test_errors_are_grouped_from_the_tenants_newest(filled: tuple[Subject, UUID, UUID]) -> None:
    """I31."""
    s, owner, workflow = filled
    for which in ("NULL", f"'{workflow}'"):
        found = _asked(s, owner, error_groups._GROUPS, f"{_SPAN}, {which}, 10000, 50")
        assert "error_logs_tenant_id_created_at_idx" in found
        assert "all of error_logs" not in found
