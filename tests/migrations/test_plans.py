"""The questions that are asked all the time find their index, also under row-level security."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from services.orchestrator.storage import history
from tests.migrations.subject import Subject
from tests.support.database import Database, Template

_EXECUTIONS = 20_000


@pytest.fixture(scope="module")
def _full(template: Template) -> Iterator[tuple[Database, UUID]]:
    """Twenty tenants of a thousand executions each, nearly all over; the last tenant's id."""
    with template.clone() as database:
        with database.connect() as db:
            owner = _fill(Subject(db, mended=True))
        yield database, owner


def _fill(s: Subject) -> UUID:
    for _ in range(20):
        owner = s.user()
        workflow = s.workflow(owner)
        s.db.execute(
            "INSERT INTO workflow_executions (workflow_id, workflow_version, tenant_id, created_by,"
            "  shard, created_at, started_at, completed_at, status)"
            " SELECT %s, 1, %s, %s, n %% 64, at, at, CASE WHEN n > 3 THEN at END,"
            "        CASE WHEN n > 3 THEN 'completed' ELSE 'running' END"
            "   FROM generate_series(1, %s) AS n,"
            "        LATERAL (SELECT now() - n * interval '1 h') AS t(at)",
            (workflow, owner, owner, _EXECUTIONS // 20),
        )
    s.db.execute(
        "INSERT INTO node_executions (workflow_execution_id, node_id, node_type, status,"
        "  started_at, completed_at, execution_order)"
        " SELECT id, 'n' || n, 'python', 'completed', started_at, started_at, n"
        "   FROM workflow_executions, generate_series(1, 3) AS n WHERE tenant_id = %s",
        (owner,),
    )
    s.db.execute("ANALYZE")
    return owner


@pytest.fixture
def filled(_full: tuple[Database, UUID]) -> Iterator[tuple[Subject, UUID]]:
    """The same inside a transaction that is rolled back."""
    database, owner = _full
    with database.connect() as db, db.transaction(force_rollback=True):
        yield Subject(db, mended=True), owner


def _indexes(plan: dict[str, Any]) -> set[str]:
    found = {plan["Index Name"]} if "Index Name" in plan else set()
    if plan["Node Type"] == "Seq Scan":
        found.add(f"all of {plan['Relation Name']}")
    for child in plan.get("Plans", []):
        found |= _indexes(child)
    return found


def _asked(s: Subject, query: str, *parameters: object) -> set[str]:
    row = s.db.execute(f"EXPLAIN (FORMAT json) {query}".encode(), parameters).fetchone()
    assert row is not None
    return _indexes(row[0][0]["Plan"])


def test_pages_of_a_tenants_executions_come_from_its_index(filled: tuple[Subject, UUID]) -> None:
    """I31, S55."""
    s, owner = filled
    with s.acting(owner, "qflow_orchestrator"):
        assert {"workflow_executions_tenant_id_created_at_idx"} == _asked(
            s,
            "SELECT id, status FROM workflow_executions WHERE tenant_id = %s"
            " ORDER BY created_at DESC, id DESC LIMIT 50",
            owner,
        )


def test_nodes_of_an_execution_come_from_its_index(filled: tuple[Subject, UUID]) -> None:
    """I31: their parent is looked up, never scanned."""
    s, owner = filled
    run = s.value("SELECT id FROM workflow_executions WHERE tenant_id = %s", owner)
    with s.acting(owner, "qflow_orchestrator"):
        found = _asked(
            s,
            "SELECT node_id, status FROM node_executions WHERE workflow_execution_id = %s"
            " ORDER BY execution_order LIMIT 50",
            run,
        )
    assert found & {
        "idx_node_executions_workflow_execution_id",
        "idx_node_executions_node_id",
        "idx_node_executions_workflow_status",
    }
    assert not [name for name in found if name.startswith("all of")]


def test_what_nodes_took_is_read_from_the_last_runs(filled: tuple[Subject, UUID]) -> None:
    """I31: the history behind a plan walks the tenant's runs and their nodes by their keys."""
    s, owner = filled
    asked = f"EXECUTE asked ('{owner}', ARRAY['{owner}']::uuid[], ARRAY['{owner}']::uuid[])"
    with s.acting(owner, "qflow_orchestrator"):
        for mode in ("force_custom_plan", "force_generic_plan"):
            s.db.execute(f"SET LOCAL plan_cache_mode = {mode}".encode())
            s.db.execute(f"PREPARE asked AS {history._OF_NODES}".encode())
            found = _asked(s, asked)
            s.db.execute("DEALLOCATE asked")
            assert "workflow_executions_tenant_id_created_at_idx" in found
            assert "idx_node_executions_workflow_execution_id" in found
            assert not [name for name in found if name.startswith("all of")]


def test_open_executions_are_found_without_the_finished_ones(filled: tuple[Subject, UUID]) -> None:
    """I31: what an orchestrator asks when it takes shards over."""
    s, _ = filled
    with s.acting(None, "qflow_orchestrator_engine"):
        found = _asked(
            s,
            "SELECT id FROM workflow_executions"
            " WHERE status IN ('pending', 'running', 'paused') AND shard = ANY (%s) ORDER BY id",
            [1, 2, 3],
        )
    assert {"idx_workflow_executions_status"} == found


def test_retention_walks_finished_executions_in_their_order(filled: tuple[Subject, UUID]) -> None:
    """I31."""
    s, _ = filled
    with s.acting(None, "qflow_telemetry_maint"):
        found = _asked(
            s,
            "SELECT id FROM workflow_executions WHERE completed_at IS NOT NULL"
            " AND status IN ('completed', 'failed', 'cancelled')"
            " AND completed_at < now() - interval '30 days' AND purge_started_at IS NULL"
            " ORDER BY completed_at, id LIMIT 1000",
        )
    assert {"workflow_executions_completed_at_idx"} == found


def test_a_request_is_looked_up_by_its_own_index(filled: tuple[Subject, UUID]) -> None:
    """I12."""
    s, owner = filled
    assert {"workflow_executions_request_id_key"} == _asked(
        s,
        "SELECT id FROM workflow_executions WHERE tenant_id = %s AND created_by = %s"
        " AND request_id = gen_random_uuid()",
        owner,
        owner,
    )
