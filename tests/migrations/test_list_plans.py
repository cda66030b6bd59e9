"""Lists and searches find their indexes under row-level security, whatever order they have."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from services.kit.filter.language import parse
from services.kit.filter.order import Order
from services.registry.storage import candidates, lists
from services.registry.storage.lists import Listed, Question
from tests.migrations.subject import Subject
from tests.support.database import Database, Template

pytestmark = [pytest.mark.timeout(300)]

_ROWS: Final = 100_000 if os.environ.get("QFLOW_TEST_FULL") else 10_000
_NOBODY: Final = UUID(int=0)
# One row in a hundred is shown to everybody, and nine in ten are one tenant's.
_FILL: Final = """
    INSERT INTO {table} ({columns}, name, description, is_template, tenant_id, created_by,
                         created_at, updated_at)
    SELECT {columns}, 'load ' || n, 'Reads what is left of ' || n, n % 100 = 0,
           owner, owner, now() - n * interval '1 min', now() - n * interval '1 min'
      FROM (SELECT {columns} FROM {table} WHERE id = %s) AS one, generate_series(1, %s) AS n,
           LATERAL (SELECT CASE WHEN n %% 10 = 0 THEN %s::uuid ELSE %s::uuid END) AS t (owner)
"""
_COLUMNS: Final = {
    "python_nodes": "code, main_function, python_version, input_types, output_types",
    "workflows": "nodes, connections, input_types, output_types, python_version",
}


@dataclass(frozen=True)
class Filled:
    """A database with many rows, of which the owner has nearly all."""

    database: Database
    owner: UUID


@pytest.fixture(scope="module")
def filled(template: Template) -> Iterator[Filled]:
    with template.clone() as database:
        with database.connect() as db:
            subject = Subject(db, mended=True)
            owner, other = subject.user(), subject.user()
            firsts = {
                "python_nodes": subject.insert("python_nodes", owner=owner),
                "workflows": subject.workflow(owner),
            }
            for table, first in firsts.items():
                fill = _FILL.replace("n % 100", "n %% 100")
                fill = fill.replace("{table}", table).replace("{columns}", _COLUMNS[table])
                with _indexed_after(db, table):
                    db.execute(fill.encode(), (first, _ROWS, other, owner))
            for kind, key in (("python_node", "node_id"), ("workflow", "workflow_id")):
                table = "python_nodes" if kind == "python_node" else "workflows"
                tag = subject.insert(f"{kind}_tags", owner=owner, name="rare")
                db.execute(
                    f"INSERT INTO {kind}_tag_relations ({key}, tag_id)"
                    f" SELECT id, %s FROM {table} WHERE tenant_id = %s LIMIT 20".encode(),
                    (tag, owner),
                )
            db.execute("VACUUM ANALYZE")
        yield Filled(database, owner)


@contextmanager
def _indexed_after(db: psycopg.Connection, table: str) -> Iterator[None]:
    """Make the indexes of words once there are rows: row by row that takes most of a minute."""
    words = db.execute(
        "SELECT indexname, indexdef FROM pg_indexes"
        " WHERE tablename = %s AND indexdef LIKE '%% USING gin %%'",
        (table,),
    ).fetchall()
    for name, _ in words:
        db.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
    yield
    for _, definition in words:
        db.execute(definition.encode())


@contextmanager
def _acting(filled: Filled, login: str) -> Iterator[psycopg.Connection]:
    with filled.database.connect() as db, db.transaction(force_rollback=True):
        for name, value in (("user_id", filled.owner), ("tenant_id", filled.owner)):
            db.execute("SELECT set_config(%s, %s, true)", (f"qflow.{name}", str(value)))
        db.execute("SELECT set_config('qflow.role', 'user', true)")
        db.execute("SET LOCAL plan_cache_mode = force_custom_plan")
        db.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(login)))
        yield db


def _plan(db: psycopg.Connection, text: str, parameters: Sequence[object]) -> dict[str, Any]:
    db.execute(f"PREPARE asked AS {text}".encode())
    values = sql.SQL(", ").join(map(sql.Literal, parameters))
    row = db.execute(sql.SQL("EXPLAIN (FORMAT json) EXECUTE asked ({})").format(values)).fetchone()
    db.execute("DEALLOCATE asked")
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def _parts(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _parts(child)


def _read(plan: dict[str, Any]) -> set[str]:
    """The indexes that the plan reads, and the tables that it reads whole."""
    indexes = {part["Index Name"] for part in _parts(plan) if "Index Name" in part}
    scans = {part["Relation Name"] for part in _parts(plan) if part["Node Type"] == "Seq Scan"}
    return indexes | {f"all of {table}" for table in scans}


def _asked(
    filled: Filled,
    listed: Listed,
    text: str = "",
    *,
    order: Order = lists.NEWEST_FIRST,
    after: tuple[Any, UUID] | None = None,
    ids: list[UUID] | None = None,
    walked: int = 0,
) -> dict[str, Any]:
    question = Question(expression=parse(text), order=order, after=after, limit=51, full=False)
    statement, parameters = lists.statement(
        listed, question, among_ids=ids is not None, walked=walked
    )
    whose: object = filled.owner if ids is None else ids
    with _acting(filled, "qflow_registry") as db:
        return _plan(db, statement, [whose, 51, False, *parameters])


# Of each table and order: the index of the tenant's own rows.
_OWN: Final = {
    ("python_nodes", "create_time"): "python_nodes_tenant_id_created_at_idx",
    ("python_nodes", "update_time"): "python_nodes_updated_at_idx",
    ("python_nodes", "name"): "python_nodes_name_idx",
    ("workflows", "create_time"): "workflows_tenant_id_created_at_idx",
    ("workflows", "update_time"): "workflows_updated_at_idx",
    ("workflows", "name"): "workflows_name_idx",
}
# Of what is shown to everybody: where that is little, any of them serves any order.
_SHOWN: Final = {
    *("idx_python_nodes_is_template", "workflows_is_template_idx"),
    *("python_nodes_shown_updated_at_idx", "workflows_shown_updated_at_idx"),
    *("python_nodes_shown_name_idx", "workflows_shown_name_idx"),
}
_LISTS: Final = pytest.mark.parametrize(
    "listed", [lists.NODES, lists.WORKFLOWS], ids=lambda each: each.table
)


@_LISTS
@pytest.mark.parametrize("descending", [True, False], ids=["desc", "asc"])
@pytest.mark.parametrize("text", ["", "load", "template != true description : reads"])
def test_a_page_of_every_order_walks_its_own_indexes(
    filled: Filled, listed: Listed, text: str, *, descending: bool
) -> None:
    """S55: also where a filter lets most rows through; no row of a tenant's is sorted."""
    for field in listed.orders:
        plan = _asked(filled, listed, text, order=Order(field, descending))
        found = _read(plan)
        assert _OWN[listed.table, field.name] in found, field.name
        assert 1 == len(found & _SHOWN) == len(found) - 1, found


def test_nodes_of_one_python_are_found_without_reading_those_of_others(filled: Filled) -> None:
    """I31: a version that other tenants use much costs this one nothing."""
    plan = _asked(filled, lists.NODES, 'load python_version = "3.99"')
    (found,) = [
        part["Index Cond"]
        for part in _parts(plan)
        if part.get("Index Name") == "idx_python_nodes_python_version"
        and "tenant_id" in part["Index Cond"]
    ]
    assert "3.99" in found


@_LISTS
@pytest.mark.parametrize("later", [True, False], ids=["later", "first"])
def test_a_search_looks_at_the_first_rows_by_the_index_of_its_order_and_at_no_more(
    filled: Filled, listed: Listed, *, later: bool
) -> None:
    """I31: what it looks at is bounded before the filter is asked, whatever that lets through."""
    for field in listed.orders:
        key = "load 5" if field.key_type is str else datetime.now(UTC)
        after = (key, _NOBODY) if later else None
        for text in ("load", "load tags : rare"):
            order, most = Order(field, True), lists.WALKED_FIRST
            plan = _asked(filled, listed, text, order=order, after=after, walked=most)
            found = _read(plan)
            assert _OWN[listed.table, field.name] in found, found
            assert f"all of {listed.table}" not in found
            (bounded,) = [
                part
                for part in _parts(plan)
                if part["Node Type"] == "Limit" and part["Plan Rows"] == most
            ]
            (walk,) = [p for p in bounded["Plans"] if p["Parent Relationship"] == "Outer"]
            assert _OWN[listed.table, field.name] == walk["Index Name"]
            assert "load" not in walk["Filter"]


@_LISTS
def test_a_later_page_begins_where_the_one_before_ended(filled: Filled, listed: Listed) -> None:
    """The last row's key bounds the index: pages that were read are not walked again."""
    for field in listed.orders:
        key = "load 5" if field.key_type is str else datetime.now(UTC)
        plan = _asked(filled, listed, order=Order(field, descending=True), after=(key, _NOBODY))
        column = field.column.removeprefix("listed.")
        (bound,) = [
            part["Index Cond"]
            for part in _parts(plan)
            if part.get("Index Name") == _OWN[listed.table, field.name]
        ]
        assert f"ROW({column}" in bound or f"ROW(({column})" in bound, bound


@_LISTS
def test_what_was_looked_up_is_read_by_its_id(filled: Filled, listed: Listed) -> None:
    plan = _asked(filled, listed, "load", ids=[_NOBODY, filled.owner])
    assert {f"{listed.table}_pkey"} == _read(plan)


@_LISTS
def test_many_candidates_are_read_each_by_its_id_under_the_callers_policy(
    filled: Filled, listed: Listed
) -> None:
    """I31: an array of ids once had the planner walk all of the tenant's index for it."""
    with filled.database.connect() as db:
        rows = db.execute(f"SELECT id FROM {listed.table} LIMIT 2000".encode()).fetchall()
    for order in (Order(field, descending=True) for field in listed.orders):
        plan = _asked(filled, listed, "load", order=order, ids=[row[0] for row in rows])
        assert {f"{listed.table}_pkey"} == _read(plan)


def _candidates(
    filled: Filled, listed: Listed, login: str, *, short: bool, mode: str = "force_custom_plan"
) -> Iterator[dict[str, Any]]:
    """The plans of a look-up in every order, on the first page and on a later one."""
    for field in listed.orders:
        key = "load 5" if field.key_type is str else datetime.now(UTC)
        for after in (None, (key, _NOBODY)):
            question = Question(
                expression=None, order=Order(field, True), after=after, limit=51, full=False
            )
            text, more = candidates.by_text_statement(listed, question, short=short)
            parameters = [filled.owner, ["q7" if short else "load 77"], candidates.CANDIDATES_MAX]
            with _acting(filled, login) as db:
                db.execute(f"SET LOCAL plan_cache_mode = {mode}".encode())
                yield _plan(db, text, [*parameters, *more])


@_LISTS
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize(("short", "index"), [(False, "search_idx"), (True, "letters_idx")])
def test_a_search_reads_its_two_indexes_and_no_table_whole(
    filled: Filled, listed: Listed, mode: str, index: str, *, short: bool
) -> None:
    """I31: also of one letter or two, in every order, at every depth."""
    expected = {f"{listed.table}_{index}", f"{listed.table}_shown_{index}"}
    for plan in _candidates(filled, listed, "qflow_registry_engine", short=short, mode=mode):
        assert expected == _read(plan)


@_LISTS
def test_row_level_security_keeps_a_search_of_a_callers_login_from_its_index(
    filled: Filled, listed: Listed
) -> None:
    """Why the engine's login looks first: were this otherwise, no other login would be needed."""
    for plan in _candidates(filled, listed, "qflow_registry", short=False):
        assert not {name for name in _read(plan) if name.endswith("search_idx")}


@_LISTS
def test_a_tag_is_looked_up_by_its_name(filled: Filled, listed: Listed) -> None:
    with _acting(filled, "qflow_registry") as db:
        text = candidates.BY_TAG[listed.table]
        plan = _plan(db, text, [filled.owner, "rare", candidates.CANDIDATES_MAX])
    kind = {"python_nodes": "python_node"}.get(listed.table, "workflow")
    # The policy on relations looks at their rows; the relations themselves fill one page.
    assert _read(plan) <= {
        f"{listed.table}_pkey",
        f"{kind}_tags_name_key",
        f"{kind}_tag_relations_pkey",
        f"{kind}_tag_relations_tag_id_idx",
        f"all of {kind}_tags",
        f"all of {kind}_tag_relations",
    }
