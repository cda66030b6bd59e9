"""The list of executions finds its indexes under row-level security, whatever it is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from services.kit.filter.language import parse
from services.kit.filter.order import Order
from services.orchestrator.storage import execution_lists as lists
from tests.migrations.subject import Subject
from tests.support.database import Database, Template

pytestmark = [pytest.mark.timeout(300)]

_ROWS: Final = 1_000_000 if os.environ.get("QFLOW_TEST_FULL") else 20_000
# One in a hundred failed, a few are open or cancelled; nine in ten are another tenant's.
_FILL: Final = """
    INSERT INTO workflow_executions
           (workflow_id, workflow_version, tenant_id, created_by, shard, created_at, started_at,
            completed_at, status, error_type, business_key, labels)
    SELECT %(workflow)s, 1, owner, owner, n %% 64, at, at, CASE WHEN kind > 0 THEN at END,
           CASE WHEN kind = 0 THEN 'running' WHEN kind <= 10 THEN 'failed'
                WHEN kind <= 15 THEN 'cancelled' ELSE 'completed' END,
           CASE WHEN kind BETWEEN 1 AND 10 THEN 'user_error' END,
           CASE WHEN n %% 3 = 0 THEN 'order ' || n END,
           jsonb_build_object('env', 'prod', 'order', n::text)
      FROM generate_series(1, %(rows)s) AS n,
           LATERAL (SELECT now() - n * interval '1 min', (n * 7919) %% 1000,
                           CASE WHEN n %% 10 = 0 THEN %(owner)s::uuid ELSE %(other)s::uuid END)
                AS t (at, kind, owner)
"""


@dataclass(frozen=True)
class Filled:
    """A database with many executions, of which the owner has a tenth."""

    database: Database
    owner: UUID
    workflow: UUID


@pytest.fixture(scope="module")
def filled(template: Template) -> Iterator[Filled]:
    with template.clone() as database:
        with database.connect() as db:
            subject = Subject(db, mended=True)
            owner, other = subject.user(), subject.user()
            workflow = subject.workflow(owner)
            facts = {"workflow": workflow, "rows": _ROWS, "owner": owner, "other": other}
            db.execute(_FILL.encode(), facts)
            db.execute("VACUUM ANALYZE")
        yield Filled(database, owner, workflow)


@contextmanager
def _acting(filled: Filled, login: str, mode: str) -> Iterator[psycopg.Connection]:
    with filled.database.connect() as db, db.transaction(force_rollback=True):
        for name, value in (("user_id", filled.owner), ("tenant_id", filled.owner)):
            db.execute("SELECT set_config(%s, %s, true)", (f"qflow.{name}", str(value)))
        db.execute("SELECT set_config('qflow.role', 'user', true)")
        db.execute(f"SET LOCAL plan_cache_mode = {mode}".encode())
        db.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(login)))
        yield db


def _plan(
    filled: Filled,
    text: str,
    parameters: Sequence[object],
    *,
    login: str = "qflow_orchestrator",
    mode: str = "force_custom_plan",
) -> set[str]:
    with _acting(filled, login, mode) as db:
        db.execute(f"PREPARE asked AS {text}".encode())
        values = sql.SQL(", ").join(map(sql.Literal, parameters))
        asked = sql.SQL("EXPLAIN (FORMAT json) EXECUTE asked ({})").format(values)
        row = db.execute(asked).fetchone()
    assert row is not None
    return set(_read(row[0][0]["Plan"]))


def _read(plan: dict[str, Any]) -> Iterator[str]:
    if "Index Name" in plan:
        yield plan["Index Name"].removeprefix("workflow_executions_")
    if plan["Node Type"] in ("Seq Scan", "Sort"):
        yield plan["Node Type"]
    for child in plan.get("Plans", []):
        yield from _read(child)


def _asked(
    filled: Filled,
    text: str,
    *,
    order: Order = lists.NEWEST_FIRST,
    after: tuple[datetime, UUID] | None = None,
    ids: list[UUID] | None = None,
) -> set[str]:
    question = lists.Question(expression=parse(text), order=order, after=after, limit=51)
    statement, parameters = lists.statement(question, among_ids=ids is not None)
    whose: object = filled.owner if ids is None else ids
    return _plan(filled, statement, [whose, 51, False, *parameters])


_FILTERS: Final = {
    "": "tenant_id_created_at_idx",
    "status = completed": "tenant_id_created_at_idx",
    "status = failed": "failed_idx",
    "status = failed error_type = user_error": "failed_idx",
    "status = cancelled": "cancelled_idx",
    "status = running": "idx_workflow_executions_status_created_at",
    'business_key = "order 3"': "business_key_idx",
    "owner = {owner} status = failed": "failed_idx",
    "parent = {owner}": "parent_idx",
}


@pytest.mark.parametrize("text", _FILTERS, ids=_FILTERS)
def test_what_is_rare_is_found_by_its_own_index(filled: Filled, text: str) -> None:
    """I31: no filter of these reads what it does not show."""
    found = _asked(filled, text.format(owner=filled.owner))
    assert _FILTERS[text] in found, found
    assert "Seq Scan" not in found


def test_the_class_of_an_error_is_asked_of_runs_that_failed(filled: Filled) -> None:
    """I31: of no others (there are no nodes here, so how those are found says nothing)."""
    assert "failed_idx" in _asked(filled, "status = failed exception_type = KeyError")


@pytest.mark.parametrize("descending", [True, False], ids=["desc", "asc"])
@pytest.mark.parametrize("later", [True, False], ids=["later", "first"])
def test_a_page_of_every_order_walks_an_index(
    filled: Filled, *, descending: bool, later: bool
) -> None:
    """I31, S55: whatever the page, nothing is sorted."""
    wanted = {"create_time": "tenant_id_created_at_idx", "end_time": "ended_idx"}
    after = (datetime.now(UTC), uuid4()) if later else None
    for field in lists.ORDERS:
        found = _asked(filled, "", order=Order(field, descending), after=after)
        assert {wanted[field.name]} == found


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_labels_are_looked_up_by_whose_they_are(filled: Filled, mode: str) -> None:
    parameters = [filled.owner, '{"order":"77"}', lists.CANDIDATES_MAX]
    login = "qflow_orchestrator_engine"
    found = _plan(filled, lists._BY_LABELS, parameters, login=login, mode=mode)
    assert {"labels_idx"} == found


def test_row_level_security_keeps_labels_of_a_callers_login_from_their_index(
    filled: Filled,
) -> None:
    """Why the engine's login looks first."""
    parameters = [filled.owner, '{"order":"77"}', lists.CANDIDATES_MAX]
    assert "labels_idx" not in _plan(filled, lists._BY_LABELS, parameters)


def test_what_was_looked_up_is_read_by_its_id(filled: Filled) -> None:
    found = _asked(filled, "labels.order = 77", ids=[uuid4(), uuid4()])
    assert {"pkey", "Sort"} == found
