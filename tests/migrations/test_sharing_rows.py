"""What is shared, deleted and used, at the level of rows: whatever statement a service runs."""

from __future__ import annotations

import json
from uuid import UUID

import psycopg
import psycopg.sql
import pytest

import migrations
from services.registry.storage import uses
from tests.migrations.subject import Subject
from tests.support.database import Database

_REGISTRY = "qflow_registry"


def _graph(*nodes: UUID) -> str:
    return json.dumps([{"id": f"n{at}", "node_id": str(each)} for at, each in enumerate(nodes)])


def _uses(s: Subject, workflow: UUID) -> set[UUID]:
    rows = s.db.execute(
        "SELECT node_id FROM workflow_node_uses WHERE workflow_id = %s", (workflow,)
    )
    return {node for (node,) in rows}


def test_what_is_shared_is_changed_by_its_own_tenant_alone(mended: Subject) -> None:
    """X16."""
    owner, other = mended.user(), mended.user()
    node = mended.insert("python_nodes", owner=owner, is_public=True)
    template = mended.workflow(owner, is_template=True)
    changes = (
        ("python_nodes", node, "is_public = false"),
        ("python_nodes", node, "is_template = true"),
        ("python_nodes", node, "deleted_at = now()"),
        ("python_nodes", node, "version = 2"),
        ("workflows", template, "is_template = false"),
        ("workflows", template, "deleted_at = now()"),
        ("workflows", template, "version = 2"),
    )
    for table, key, change in changes:
        statement = f"UPDATE {table} SET {change} WHERE id = %s"
        with mended.acting(other, _REGISTRY):
            assert 0 == mended.count(statement, key), statement
            lock = f"SELECT 1 FROM {table} WHERE id = %s FOR UPDATE"
            assert 0 == mended.count(lock, key), lock
        with mended.acting(owner, _REGISTRY, role="viewer"):
            assert 0 == mended.count(statement, key), statement
    with mended.acting(owner, _REGISTRY):
        for table, key, change in changes:
            assert 1 == mended.count(f"UPDATE {table} SET {change} WHERE id = %s", key)


@pytest.mark.parametrize("table", ["python_nodes", "workflows"])
def test_what_is_deleted_is_seen_by_its_own_tenant_alone(table: str, mended: Subject) -> None:
    owner, other = mended.user(), mended.user()
    shared = {"is_template": True, "deleted_at": "now"}
    if table == "python_nodes":
        node = mended.insert(table, owner=owner, **shared)
        mended.insert("python_node_versions", owner=owner, node_id=node)
        versions = "python_node_versions"
    else:
        mended.workflow(owner, **shared)
        versions = "workflow_versions"
    for user, seen in ((owner, 1), (other, 0)):
        with mended.acting(user, _REGISTRY):
            assert seen == mended.count(f"SELECT 1 FROM {table}")
            assert seen == mended.count(f"SELECT 1 FROM {versions}")


def test_where_a_copy_comes_from_is_said_once(mended: Subject) -> None:
    """Both halves or none, and never written over."""
    owner = mended.user()
    model = mended.insert("python_nodes", owner=owner)
    for table in ("python_nodes", "workflows"):
        assert mended.takes(table, owner=owner, cloned_from_id=model, cloned_from_version=1)
        assert not mended.takes(table, owner=owner, cloned_from_id=model)
        assert not mended.takes(table, owner=owner, cloned_from_version=1)
        assert not mended.takes(table, owner=owner, cloned_from_id=model, cloned_from_version=0)
        with mended.acting(owner, _REGISTRY):
            assert not mended.does(
                lambda table=table: mended.count(f"UPDATE {table} SET cloned_from_version = 2")
            )


def test_the_nodes_of_a_graph_are_known_by_whoever_writes_it(mended: Subject) -> None:
    owner = mended.user()
    first, second, third = (mended.insert("python_nodes", owner=owner) for _ in range(3))
    with mended.acting(owner, _REGISTRY):
        workflow = mended.insert("workflows", owner=owner, nodes=_graph(first, second, first))
        assert {first, second} == _uses(mended, workflow)
        mended.db.execute("UPDATE workflows SET nodes = %s", (_graph(second, third),))
        assert {second, third} == _uses(mended, workflow)
        mended.db.execute("UPDATE workflows SET name = 'renamed'")
        assert {second, third} == _uses(mended, workflow)
    mended.db.execute("DELETE FROM workflows WHERE id = %s", (workflow,))
    assert set() == _uses(mended, workflow)


def test_who_uses_a_node_is_seen_by_its_own_tenant_alone(mended: Subject) -> None:
    owner, other = mended.user(), mended.user()
    node = mended.insert("python_nodes", owner=owner, is_public=True)
    mine = mended.insert("workflows", owner=owner, nodes=_graph(node))
    theirs = mended.insert("workflows", owner=other, nodes=_graph(node))

    def use(workflow: UUID, tenant: UUID) -> None:
        mended.db.execute(
            "INSERT INTO workflow_node_uses (workflow_id, node_id, tenant_id)"
            " VALUES (%s, gen_random_uuid(), %s)",
            (workflow, tenant),
        )

    with mended.acting(owner, _REGISTRY):
        assert [(mine,)] == mended.db.execute(
            "SELECT workflow_id FROM workflow_node_uses"
        ).fetchall()
        assert mended.does(lambda: use(mine, owner))
        assert not mended.does(lambda: use(theirs, owner))
        assert not mended.does(lambda: use(theirs, other))
        assert 0 == mended.count("DELETE FROM workflow_node_uses WHERE tenant_id = %s", other)
    with mended.acting(owner, _REGISTRY, role="viewer"):
        assert not mended.does(lambda: use(mine, owner))
        assert 0 == mended.count("DELETE FROM workflow_node_uses")
    with mended.acting(None, _REGISTRY):
        assert 0 == mended.count("SELECT 1 FROM workflow_node_uses")


def test_the_uses_of_graphs_that_were_there_before_are_filled_in(blank: Database) -> None:
    migrations.upgrade(blank.url(), blank.home, revision="0010")
    with blank.connect() as db:
        s = Subject(db, mended=True)
        owner = s.user()
        node = s.insert("python_nodes", owner=owner)
        workflow = s.insert("workflows", owner=owner, nodes=_graph(node, node))
    migrations.upgrade(blank.url(), blank.home, revision="0012")
    with blank.connect() as db:
        rows = db.execute("SELECT workflow_id, node_id, tenant_id FROM workflow_node_uses")
        assert [(workflow, node, owner)] == rows.fetchall()
        [forced] = db.execute(
            "SELECT relforcerowsecurity FROM pg_class WHERE relname = 'workflows'"
        ).fetchall()
        assert (True,) == forced
    migrations.downgrade(blank.url(), revision="0010")
    migrations.upgrade(blank.url(), blank.home, revision="0012")


def test_the_workflows_that_use_a_node_are_found_by_an_index(mended: Subject) -> None:
    owner = mended.user()
    node = mended.insert("python_nodes", owner=owner)
    mended.db.execute(
        "INSERT INTO workflows (name, nodes, connections, python_version, tenant_id, created_by)"
        " SELECT 'w', jsonb_build_array(jsonb_build_object('node_id', gen_random_uuid())), '[]',"
        " '3.11', %s, %s FROM generate_series(1, 2000)",
        (owner, owner),
    )
    mended.db.execute("ANALYZE workflow_node_uses, workflows")
    mended.db.execute(f"PREPARE users AS {uses._LIST_USERS}".encode())
    with mended.acting(owner, _REGISTRY):
        ask = psycopg.sql.SQL("EXPLAIN EXECUTE users ({}, {}, false, 21)").format(node, owner)
        text = "\n".join(line for (line,) in mended.db.execute(ask))
    mended.db.execute("DEALLOCATE users")
    assert "workflow_node_uses_node_id_idx" in text
    assert "Seq Scan" not in text
