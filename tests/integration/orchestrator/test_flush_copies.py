"""The part of the flush that copies results, and its guard, over a real database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import psycopg
import pytest

from services.kit.ids import uuid7
from services.orchestrator.domain.rows import NodeCopy, RunInsert
from services.orchestrator.domain.transition import Transition
from services.orchestrator.storage import flush
from tests import factories
from tests.support.database import Database

_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Parent:
    """A run with one result, and what it takes to begin another."""

    database: Database
    sql: psycopg.Connection
    owner: UUID
    workflow_id: UUID
    node_row: UUID
    node_version: UUID
    member_id: UUID

    def child(self, source_id: UUID) -> Transition:
        run_id = uuid7()
        row = RunInsert(
            run_id, self.workflow_id, self.owner, self.owner, 1, None, uuid7(), 0, "pending",
            '{"x":1}', None, None, "3.11", None, 1,
        )  # fmt: skip
        copy = NodeCopy(uuid7(), run_id, source_id, "a", "a", self.node_version, 1, first=True)
        return Transition(run_id, run_inserts=[row], copies=[copy])

    async def write(self, *batch: Transition) -> frozenset[UUID]:
        """Flush as the journal does; gives the runs that were started."""
        db = await asyncpg.connect(self.database.url("qflow_orchestrator_engine"))
        try:
            made = flush.prepare(batch)
            arguments = flush.arguments(made, self.member_id, 1, _EARLIEST)
            row = await db.fetchrow(made.sql, *arguments)
            assert row is not None
            return frozenset(row["started"])
        finally:
            await db.close()

    def copies(self) -> list[tuple[object, ...]]:
        return self.sql.execute(
            "SELECT output_data::text, status, started_at = completed_at FROM node_executions"
            " WHERE copied_from = %s",
            (self.node_row,),
        ).fetchall()


@pytest.fixture
def parent(database: Database) -> Iterator[Parent]:
    with database.connect() as sql:
        owner = factories.user(sql)
        node = factories.node(sql, owner)
        edges = [("", "x", "a", "x")]
        workflow_id = factories.workflow(
            sql, owner, nodes={"a": node}, edges=edges, outputs=[("o", "a")]
        )
        member_id, run_id, node_row = uuid7(), uuid7(), uuid7()
        sql.execute(
            "INSERT INTO engine_members (id, epoch, state, expires_at)"
            " VALUES (%s, 1, 'live', now() + interval '1 hour')",
            (member_id,),
        )
        sql.execute(
            "INSERT INTO workflow_executions (id, workflow_id, workflow_version, status, tenant_id,"
            " created_by, completed_at) VALUES (%s, %s, 1, 'failed', %s, %s, now())",
            (run_id, workflow_id, owner.id, owner.id),
        )
        sql.execute(
            "INSERT INTO node_executions (id, workflow_execution_id, node_id, node_type, status,"
            " started_at, completed_at, execution_order, output_data)"
            """ VALUES (%s, %s, 'a', 'python', 'completed', now(), now(), 1,
                        '{"zz":1, "b":1e+16, "a":-0.0}')""",
            (node_row, run_id),
        )
        yield Parent(database, sql, owner.id, workflow_id, node_row, node.version_id, member_id)


async def test_a_copy_has_the_exact_text_of_its_source(parent: Parent) -> None:
    """Rule 2."""
    t = parent.child(parent.node_row)
    assert {t.run_id} == await parent.write(t)
    assert [('{"zz":1, "b":1e+16, "a":-0.0}', "completed", True)] == parent.copies()


@pytest.mark.parametrize(
    ("status", "began", "error"),
    [
        ("skipped", False, (None, None, None, None)),
        ("quarantined", True, ("user_error", "no", "line 1", '{"exception":"ValueError"}')),
    ],
)
async def test_a_copy_stands_as_its_source(
    parent: Parent, status: str, *, began: bool, error: tuple[str | None, ...]
) -> None:
    """What was skipped never began, here no more than there; what was put aside says why."""
    source = uuid7()
    parent.sql.execute(
        "INSERT INTO node_executions (id, workflow_execution_id, node_id, node_type, status,"
        " completed_at, execution_order, error_type, error_message, error_stack_trace,"
        " error_detail) SELECT %s, workflow_execution_id, 'b', 'python', %s, now(), 2, %s, %s, %s,"
        " %s FROM node_executions WHERE id = %s",
        (source, status, *error, parent.node_row),
    )
    await parent.write(parent.child(source))
    copied = parent.sql.execute(
        "SELECT status, started_at IS NOT NULL, completed_at IS NOT NULL, error_type,"
        " error_message, error_stack_trace, error_detail::text FROM node_executions"
        " WHERE copied_from = %s",
        (source,),
    ).fetchall()
    assert [(status, began, True, *error)] == copied


async def test_a_source_that_is_gone_fails_the_whole_start(parent: Parent) -> None:
    """Purged in that moment: memory would know of a result that no row has."""
    with pytest.raises(asyncpg.PostgresError) as refused:
        await parent.write(parent.child(uuid7()))
    assert flush.GUARD_MISSED == refused.value.sqlstate
    assert [(1,)] == parent.sql.execute("SELECT count(*) FROM workflow_executions").fetchall()


async def test_a_run_that_is_refused_takes_nothing_over(parent: Parent) -> None:
    """Beside one that is started: neither its copies nor their absence hold that one up."""
    good, refused = parent.child(parent.node_row), parent.child(parent.node_row)
    refused.run_inserts = [refused.run_inserts[0]._replace(current_version=9)]
    assert {good.run_id} == await parent.write(good, refused)
    assert 1 == len(parent.copies())
