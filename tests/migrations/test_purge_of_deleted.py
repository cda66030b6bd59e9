"""Deleted nodes and workflows go for good when they are old and nothing refers to them any more."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg

from tests.migrations.subject import Subject

_NOW: Final = datetime.now(UTC)
_OLD: Final = _NOW - timedelta(days=91)
_WORKFLOWS: Final = "cleanup_deleted_workflows()"
_NODES: Final = "cleanup_deleted_nodes()"


def _node(s: Subject, owner: UUID, *, deleted_at: datetime | None = _OLD) -> UUID:
    """A node with a version, its lock and a tag."""
    node = s.insert("python_nodes", owner=owner, deleted_at=deleted_at)
    version = s.insert("python_node_versions", owner=owner, node_id=node)
    s.db.execute(
        "INSERT INTO node_version_locks (node_version_id, tenant_id, state)"
        " VALUES (%s, %s, 'none')",
        (version, owner),
    )
    tag = s.insert("python_node_tags", owner=owner, name=str(uuid4()))
    s.db.execute("INSERT INTO python_node_tag_relations (node_id, tag_id) VALUES (%s, %s)",
                 (node, tag))  # fmt: skip
    return node


def _workflow(s: Subject, owner: UUID, *places: UUID, deleted_at: datetime | None = _OLD) -> UUID:
    """A workflow whose first version has these at its places, and whose second has none."""
    nodes = json.dumps([{"id": f"p{at}", "node_id": str(of)} for at, of in enumerate(places)])
    workflow = s.insert("workflows", owner=owner, deleted_at=deleted_at, version=2)
    s.insert("workflow_versions", owner=owner, workflow_id=workflow, nodes=nodes)
    s.insert("workflow_versions", owner=owner, workflow_id=workflow, version=2)
    return workflow


def _purge(s: Subject, call: str) -> int:
    """Call it until nothing more goes."""
    removed = 0
    with s.acting(None, "qflow_telemetry_maint"):
        while gone := s.value(f"SELECT {call}"):
            removed += gone
    return removed


def _left(s: Subject, table: str) -> set[UUID]:
    return {row[0] for row in s.db.execute(f"SELECT id FROM {table}".encode()).fetchall()}


def test_a_deleted_node_goes_when_it_is_old_with_all_that_hangs_on_it(mended: Subject) -> None:
    """I21, I22."""
    owner = mended.user()
    _node(mended, owner)
    kept = {
        _node(mended, owner, deleted_at=when) for when in (None, _NOW - timedelta(days=89), _NOW)
    }
    assert 1 == _purge(mended, _NODES)
    assert kept == _left(mended, "python_nodes")
    for table in ("python_node_versions", "node_version_locks", "python_node_tag_relations"):
        assert 3 == mended.count(f"SELECT 1 FROM {table}"), table


def test_a_node_stays_while_a_stored_version_of_any_tenants_workflow_holds_it(
    mended: Subject,
) -> None:
    """I16: also an older version than the current one, which somebody may go back to."""
    owner, other = mended.user(), mended.user()
    mine, theirs, free = (_node(mended, owner) for _ in range(3))
    standing = _workflow(mended, other, theirs, deleted_at=None)
    _workflow(mended, owner, mine)
    assert 1 == _purge(mended, _NODES)
    assert {mine, theirs} == _left(mended, "python_nodes"), free
    assert 1 == _purge(mended, _WORKFLOWS)
    assert {standing} == _left(mended, "workflows")
    assert 1 == _purge(mended, _NODES)
    assert {theirs} == _left(mended, "python_nodes")


def test_a_node_stays_while_a_run_of_it_alone_is_kept(mended: Subject) -> None:
    owner = mended.user()
    node = _node(mended, owner)
    [(version,)] = mended.db.execute("SELECT id FROM python_node_versions").fetchall()
    run = mended.insert(
        "workflow_executions",
        owner=owner,
        workflow_id=None,
        workflow_version=None,
        node_version_id=version,
        status="completed",
        created_at=_OLD,
        started_at=_OLD,
        completed_at=_NOW,
    )
    assert 0 == _purge(mended, _NODES)
    assert {node} == _left(mended, "python_nodes")
    mended.db.execute("DELETE FROM workflow_executions WHERE id = %s", (run,))
    assert 1 == _purge(mended, _NODES)


def test_a_workflow_stays_while_a_run_of_it_is_kept_and_then_goes_whole(mended: Subject) -> None:
    """I21, I22."""
    owner = mended.user()
    workflow = _workflow(mended, owner)
    mended.execution(
        owner,
        workflow_id=workflow,
        workflow_version=2,
        status="failed",
        created_at=_OLD,
        started_at=_OLD,
        completed_at=_OLD,
    )
    mended.db.execute(
        "WITH change AS (INSERT INTO workflow_alias_changes"
        "   (workflow_id, alias, kind, to_version, tenant_id, created_by)"
        "   VALUES (%s, 'prod', 'set', 1, %s, %s) RETURNING *)"
        " INSERT INTO workflow_aliases"
        " (workflow_id, name, version, promotion_id, change_id, tenant_id, created_by)"
        " SELECT workflow_id, alias, to_version, id, id, tenant_id, created_by FROM change",
        (workflow, owner, owner),
    )
    assert 0 == _purge(mended, _WORKFLOWS)
    with mended.acting(None, "qflow_telemetry_maint"):
        assert mended.value("SELECT cleanup_old_executions()") > 0
        assert 0 == mended.value("SELECT cleanup_old_executions()")
    assert 1 == _purge(mended, _WORKFLOWS)
    tables = ("workflows", "workflow_versions", "workflow_aliases", "workflow_alias_changes")
    for table in tables:
        assert 0 == mended.count(f"SELECT 1 FROM {table}"), table


def test_a_workflow_stays_while_another_runs_it(mended: Subject) -> None:
    owner = mended.user()
    inner = _workflow(mended, owner)
    middle = _workflow(mended, owner, inner)
    outer = _workflow(mended, owner, middle, deleted_at=None)
    assert 0 == _purge(mended, _WORKFLOWS)
    mended.db.execute("UPDATE workflows SET deleted_at = %s WHERE id = %s", (_OLD, outer))
    assert 3 == _purge(mended, _WORKFLOWS)


def test_no_statement_of_the_login_that_purges_removes_what_is_not_deleted(
    mended: Subject,
) -> None:
    """X22: nor what was deleted today, which somebody may want back."""
    owner = mended.user()
    for when in (None, _NOW):
        _node(mended, owner, deleted_at=when)
        _workflow(mended, owner, deleted_at=when)
    with mended.acting(None, "qflow_telemetry_maint"):
        for table in ("python_nodes", "workflows"):
            assert 0 == mended.count(f"DELETE FROM {table}"), table


def test_what_holds_a_node_is_found_by_an_index(mended: Subject) -> None:
    """I31: a version is looked for by what stands in it, not read."""
    owner = mended.user()
    for _ in range(50):
        _workflow(mended, owner, _node(mended, owner, deleted_at=None))
    mended.db.execute("SET LOCAL enable_seqscan = off")
    with mended.acting(None, "qflow_telemetry_maint"):
        plan = _explained(
            mended.db,
            "SELECT FROM workflow_versions v WHERE jsonb_path_query_array(v.nodes, '$[*].node_id')"
            f" @> jsonb_build_array('{uuid4()}'::text)",
        )
        assert "workflow_versions_places_idx" in plan
        for table in ("workflows", "python_nodes"):
            asked = f"SELECT FROM {table} WHERE deleted_at < now() ORDER BY deleted_at, id LIMIT 9"
            assert f"{table}_deleted_at_idx" in _explained(mended.db, asked)


def _explained(db: psycopg.Connection, statement: str) -> str:
    rows: list[tuple[Any, ...]] = db.execute(f"EXPLAIN {statement}".encode()).fetchall()
    return "\n".join(str(row[0]) for row in rows)
