"""A flush as plain values and as arrays, its fence, guards and events, over a real database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import psycopg
import pytest

from services.kit.ids import uuid7
from services.orchestrator.domain.rows import (
    AttemptInsert,
    FlowInsert,
    NodeComplete,
    NodeInsert,
    NodePlaced,
    RunChange,
    RunInsert,
)
from services.orchestrator.domain.transition import Transition
from services.orchestrator.storage import flush
from tests import factories
from tests.support.database import Database

_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Stage:
    """A workflow, its node, and a member that writes."""

    database: Database
    sql: psycopg.Connection
    owner: UUID
    workflow_id: UUID
    node_version: UUID
    member_id: UUID

    def begun(self, **changed: Any) -> Transition:
        """A run and its first node."""
        run_id = uuid7()
        row = RunInsert(
            run_id, self.workflow_id, self.owner, self.owner, 1, None, uuid7(), 0, "running",
            '{"x":1}', None, None, "3.11", None, 1,
        )  # fmt: skip
        return Transition(
            run_id,
            run_inserts=[row._replace(**changed)],
            node_inserts=[self.node(run_id, "a", 1, first=True)],
        )

    def node(self, run_id: UUID, node_id: str, order: int, *, first: bool) -> NodeInsert:
        return NodeInsert(
            uuid7(), run_id, node_id, node_id, self.node_version, order, 0, uuid7(), 7, 1, first
        )

    def next(self, begun: Transition, *, token: int = 7) -> Transition:
        """The first node completes, the second one begins."""
        flow = FlowInsert(uuid7(), begun.run_id, "", "a", 1, 2000, 3000)
        return Transition(
            begun.run_id,
            completes=[_completed(begun, token)],
            node_inserts=[self.node(begun.run_id, "b", 2, first=False)],
            flows=[flow],
        )

    async def write(self, *batch: Transition, last: datetime = _EARLIEST) -> asyncpg.Record:
        """Flush as the journal does."""
        db = await asyncpg.connect(self.database.url("qflow_orchestrator_engine"))
        try:
            made = flush.prepare(batch)
            row = await db.fetchrow(made.sql, *flush.arguments(made, self.member_id, 1, last))
            assert row is not None
            return row
        finally:
            await db.close()

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        return self.sql.execute(sql.encode()).fetchall()


def _completed(begun: Transition, token: int = 7) -> NodeComplete:
    (node,) = begun.node_inserts
    return NodeComplete(node.id, token, '{"result":2}', 2, 10, 20, None, stdout_tail="out")


def _measured(begun: Transition) -> NodeComplete:
    """As long as a row of a small result becomes."""
    row = _completed(begun)
    return row._replace(
        cpu_us=123_456, memory_peak_bytes=123_456_789, io_read_bytes=4096, container_id=row.id
    )


def _attempt(begun: Transition) -> AttemptInsert:
    (node,) = begun.node_inserts
    told = ("user_error", "no", "", "", "", None, 1, 2)
    return AttemptInsert(node.id, 1, 6, "failed", *told)


@pytest.fixture
def stage(database: Database) -> Iterator[Stage]:
    with database.connect() as sql:
        owner = factories.user(sql)
        node = factories.node(sql, owner)
        workflow_id = factories.workflow(
            sql, owner, nodes={"a": node}, edges=[("", "x", "a", "x")], outputs=[("o", "a")]
        )
        member_id = uuid7()
        sql.execute(
            "INSERT INTO engine_members (id, epoch, state, expires_at)"
            " VALUES (%s, 1, 'live', now() + interval '1 hour')",
            (member_id,),
        )
        yield Stage(database, sql, owner.id, workflow_id, node.version_id, member_id)


_NODES = """
    SELECT node_id, status, output_data::text, stdout_tail, resource_usage->'cpu_us', error_type,
           completed_at = (SELECT max(started_at) FROM node_executions)
      FROM node_executions ORDER BY workflow_execution_id, node_id
"""
_FLOWS = """
    SELECT source_node_id, target_node_id, data_type, data_size_bytes, serialization_time_ms,
           transfer_time_us, created_at = (SELECT max(started_at) FROM node_executions)
      FROM node_data_flow ORDER BY workflow_execution_id
"""


@pytest.mark.parametrize("runs", [1, 2])
async def test_values_and_arrays_write_the_same_rows(stage: Stage, runs: int) -> None:
    """One run by itself is written as values, two at once as arrays."""
    begun = [stage.begun() for _ in range(runs)]
    started = await stage.write(*begun)
    assert {t.run_id for t in begun} == set(started["started"])
    await stage.write(*(stage.next(t) for t in begun))
    done = ("a", "completed", '{"result":2}', "out", 10, None, True)
    assert [done, ("b", "running", None, None, None, None, None)] * runs == stage.rows(_NODES)
    assert [("", "a", "json", 1, 2, 3000, True)] * runs == stage.rows(_FLOWS)

    last = [RunChange(t.run_id, "completed", False, True, '{"o":2}', 9, 1, 2, None) for t in begun]
    ended = await stage.write(*(Transition(each.id, run_changes=[each]) for each in last))
    told = "SELECT status, output_data::text, completed_at FROM workflow_executions"
    assert [("completed", '{"o":2}', ended["at"])] * runs == stage.rows(told)


@pytest.mark.parametrize("runs", [1, 2])
async def test_a_member_that_is_fenced_writes_nothing_and_learns_that_first(
    stage: Stage, runs: int
) -> None:
    """I3: even where its rows could not be written any more, since its successor's are there."""
    begun = [stage.begun() for _ in range(runs)]
    await stage.write(*begun)
    lost = [Transition(t.run_id, attempts=[_attempt(t)]) for t in begun]
    await stage.write(*lost)
    stage.sql.execute("UPDATE engine_members SET state = 'fenced'")
    before = stage.rows(_NODES)
    for late in (
        [stage.next(t) for t in begun],
        [stage.next(t, token=6) for t in begun],
        [Transition(t.run_id, node_inserts=t.node_inserts) for t in begun],
        [stage.begun() for _ in begun],
        lost,
    ):
        with pytest.raises(asyncpg.PostgresError) as refused:
            await stage.write(*late)
        assert flush.FENCED == refused.value.sqlstate
    assert before == stage.rows(_NODES)
    assert [(runs,)] == stage.rows("SELECT count(*) FROM workflow_executions")


@pytest.mark.parametrize("runs", [1, 2])
async def test_a_late_writer_takes_all_it_brought_with_it(stage: Stage, runs: int) -> None:
    """What no guard looks at is not written either: the next node, and how the data flowed."""
    begun = [stage.begun() for _ in range(runs)]
    await stage.write(*begun)
    late = [stage.next(begun[0], token=6), *(stage.next(t) for t in begun[1:])]
    with pytest.raises(asyncpg.PostgresError, match="guard missed: completed") as refused:
        await stage.write(*late)
    assert flush.GUARD_MISSED == refused.value.sqlstate
    assert f"expected {runs} rows, found {runs - 1}" == refused.value.as_dict()["detail"]
    assert [("a", "running")] * runs == stage.rows("SELECT node_id, status FROM node_executions")
    assert [] == stage.rows(_FLOWS)


async def test_no_flush_is_before_the_one_before_it(stage: Stage) -> None:
    """Whatever the database's clock does."""
    ahead = datetime(2100, 1, 1, tzinfo=UTC)
    written = await stage.write(stage.begun(), last=ahead)
    assert ahead == written["at"]
    assert [(ahead,)] == stage.rows("SELECT started_at FROM node_executions")


async def test_what_lies_ahead_is_told_by_the_clock_that_was_set_right(stage: Stage) -> None:
    """A clock that was years ahead for a moment puts off no timer until it has come there."""
    ahead = datetime(2100, 1, 1, tzinfo=UTC)
    begun = stage.begun(timeout_ms=60_000)
    waits = NodePlaced(
        uuid7(), begun.run_id, "w", "w", "builtin", stage.node_version, "waiting", 2, 0, 8, 1, 0,
        True, True, 5_000, None, None, None, None, None,
    )  # fmt: skip
    written = await stage.write(replace(begun, placed={waits.id: waits}), last=ahead)
    assert written["clock"] < ahead
    told = "SELECT deadline_at - created_at, created_at FROM workflow_executions"
    assert [(timedelta(minutes=1), written["clock"])] == stage.rows(told)
    due = "SELECT due_at FROM node_executions WHERE node_id = 'w'"
    assert [(written["clock"] + timedelta(seconds=5),)] == stage.rows(due)


@pytest.mark.parametrize("beside", [0, 1])
async def test_what_some_starts_are_asked_is_asked_them_in_any_company(
    stage: Stage, beside: int
) -> None:
    """A start with a business key, an alias or a node alone, by itself or beside one without."""
    others = [stage.begun() for _ in range(beside)]
    kept = stage.begun(business_key="k")
    await stage.write(kept, *others)
    refused = (
        stage.begun(business_key="k", key_reuse="reject"),
        stage.begun(alias="nobody made it"),
        stage.begun(workflow_id=None, workflow_version=None, node_version_id=uuid7()),
    )
    for each in refused:
        more = [stage.begun() for _ in range(beside)]
        written = await stage.write(each, *more)
        assert [t.run_id for t in more] == list(written["started"]), each
    alone = stage.begun(workflow_id=None, workflow_version=None, node_version_id=stage.node_version)
    written = await stage.write(alone, *(stage.begun() for _ in range(beside)))
    assert alone.run_id in written["started"]


_UNUSUAL: dict[str, Any] = {
    "business_key": "k",
    "labels": '{"a": "b"}',
    "priority": 5,
    "start_at": datetime(2100, 1, 1, tzinfo=UTC),
    "parent_execution_id": uuid7(),
    "relation": "retry",
    "ignores_cache": True,
    "traceparent": f"00-{'1' * 32}-{'2' * 16}-00",
    "undoes_parent": True,
    "budget": '{"nodes": 3}',
}


@pytest.mark.parametrize("beside", [0, 1])
@pytest.mark.parametrize("column", _UNUSUAL)
async def test_what_few_starts_have_is_written_in_any_company(
    stage: Stage, column: str, beside: int
) -> None:
    """Columns of which all rows of a flush have what is usual are left out of it, not of a row."""
    begun = stage.begun(**{column: _UNUSUAL[column]})
    await stage.write(begun, *(stage.begun() for _ in range(beside)))
    told = f"SELECT {column}::text FROM workflow_executions WHERE id"
    ((stored,),) = stage.rows(f"{told} = '{begun.run_id}'")
    assert str(_UNUSUAL[column]).replace("+00:00", "+00").lower() == stored
    assert {(None,), ("{}",), ("0",)} >= set(stage.rows(f"{told} <> '{begun.run_id}'"))


@pytest.mark.parametrize("beside", [0, 1])
async def test_a_conversion_is_told_of_its_edge_alone(stage: Stage, beside: int) -> None:
    begun = [stage.begun() for _ in range(1 + beside)]
    await stage.write(*begun)
    converted, *others = (stage.next(t) for t in begun)
    converted.flows = [converted.flows[0]._replace(conversion="int_to_float")]
    await stage.write(converted, *others)
    told = stage.rows("SELECT workflow_execution_id, conversion FROM node_data_flow")
    assert {(t.run_id, None) for t in others} | {(converted.run_id, "int_to_float")} == set(told)


_FEW_NODES: dict[str, tuple[Any, str]] = {
    "output_file_id": (uuid7(), "output_file_id::text"),
    "stdout_tail": ("said", "stdout_tail"),
    "stderr_tail": ("warned", "stderr_tail"),
    "io_read_bytes": (4096, "NULLIF(resource_usage ->> 'io_read_bytes', '0')"),
    "io_write_bytes": (512, "NULLIF(resource_usage ->> 'io_write_bytes', '0')"),
}
_FEW_RUNS: dict[str, tuple[Any, str]] = {
    "cancels": (True, "NULLIF(cancel_requested_at IS NOT NULL, false)::text"),
    "error_type": ("user_error", "error_type"),
    "error_message": ("no", "error_message"),
    "stack_trace": ("line 1", "error_stack_trace"),
    "failed_node_id": ("a", "failed_node_id"),
    "io_read_bytes": (4096, "NULLIF(resource_usage ->> 'io_read_bytes', '0')"),
    "io_write_bytes": (512, "NULLIF(resource_usage ->> 'io_write_bytes', '0')"),
}


@pytest.mark.parametrize("beside", [0, 1])
@pytest.mark.parametrize("column", _FEW_NODES)
async def test_what_few_nodes_end_with_is_written_in_any_company(
    stage: Stage, column: str, beside: int
) -> None:
    begun = [stage.begun() for _ in range(1 + beside)]
    await stage.write(*begun)
    value, told = _FEW_NODES[column]
    ends = [_completed(t)._replace(stdout_tail="") for t in begun]
    ends[0] = ends[0]._replace(**{column: value})
    await stage.write(
        *(Transition(t.run_id, completes=[end]) for t, end in zip(begun, ends, strict=True))
    )
    stored = stage.rows(f"SELECT id, {told} FROM node_executions ORDER BY id")
    assert [(ends[0].id, str(value)), *((each.id, None) for each in ends[1:])] == stored


@pytest.mark.parametrize("beside", [0, 1])
@pytest.mark.parametrize("column", _FEW_RUNS)
async def test_what_few_runs_end_with_is_written_in_any_company(
    stage: Stage, column: str, beside: int
) -> None:
    begun = [stage.begun() for _ in range(1 + beside)]
    await stage.write(*begun)
    value, told = _FEW_RUNS[column]
    first, *others = (_over(t) for t in begun)
    (row,) = first.run_changes
    first.run_changes = [row._replace(**{column: value})]
    await stage.write(first, *others)
    stored = stage.rows(f"SELECT id, {told} FROM workflow_executions ORDER BY id")
    assert [(first.run_id, str(value).lower()), *((t.run_id, None) for t in others)] == stored


@pytest.mark.parametrize("beside", [0, 1])
async def test_an_edge_is_told_of_a_file_where_it_is_the_tenants(stage: Stage, beside: int) -> None:
    """What it holds and how large it is, by the file's row; another's file is plain JSON."""
    stranger = factories.user(stage.sql).id
    for tenant, kind in ((stage.owner, "file"), (stranger, "json")):
        file_id = uuid7()
        stage.sql.execute(
            "INSERT INTO files (id, filename, original_filename, file_path, file_size_bytes,"
            " hash_sha256, tenant_id, created_by) VALUES (%s, 'f', 'f', %s, 70000, %s, %s, %s)",
            (file_id, f"{tenant}/{file_id}", "0" * 64, tenant, tenant),
        )
        begun = [stage.begun() for _ in range(1 + beside)]
        await stage.write(*begun)
        carries, *others = (stage.next(t) for t in begun)
        (edge,) = carries.flows
        carries.flows = [edge._replace(data_type="file", file_id=file_id)]
        await stage.write(carries, *others)
        told = stage.rows(
            "SELECT data_type, data_size_bytes, file_id FROM node_data_flow"
            f" WHERE workflow_execution_id = '{carries.run_id}'"
        )
        carried = (kind, 70000, file_id) if kind == "file" else (kind, 1, None)
        assert [carried] == told
        plain = [("json", 1, None)] * (1 + 2 * beside if kind == "json" else beside)
        assert plain == stage.rows(
            "SELECT data_type, data_size_bytes, file_id FROM node_data_flow WHERE file_id IS NULL"
        )


@pytest.mark.parametrize("runs", [1, 2])
async def test_the_guard_that_missed_is_named(stage: Stage, runs: int) -> None:
    """A run's row is there and its node's has another token by now: it is the node's that tells."""
    begun = [stage.begun() for _ in range(runs)]
    await stage.write(*begun)
    late = [_over(t) for t in begun]
    for ends, t in zip(late, begun, strict=True):
        ends.completes = [_completed(t, token=6)]
    with pytest.raises(asyncpg.PostgresError, match="missed: completed\n") as refused:
        await stage.write(*late)
    assert f"expected {runs} rows, found 0" == refused.value.as_dict()["detail"]
    assert [("running",)] * runs == stage.rows("SELECT status FROM workflow_executions")


async def test_rows_stay_on_their_page_when_they_complete(stage: Stage) -> None:
    """So no index has an entry more for it: what makes a row longer finds room beside it."""
    begun = [stage.begun() for _ in range(100)]
    await stage.write(*begun)
    pages = "SELECT id, (ctid::text::point)[0] FROM node_executions WHERE node_id = 'a'"
    before = stage.rows(pages)
    done = [Transition(t.run_id, completes=[_measured(t)]) for t in begun]
    await stage.write(*done)
    assert len(begun) == len(before)
    assert set(before) == set(stage.rows(pages))


_LISTENS = """
    INSERT INTO event_subscriptions (name, url, event_types, key_fingerprint, tenant_id, created_by)
    VALUES ('all', 'https://example.com', %s, 'f', %s, %s)
"""
_EVENTS = """
    SELECT (payload #>> '{data,execution_id}')::uuid, payload ->> 'type', tenant_id,
           payload #>> '{data,error_type}', payload #>> '{data,workflow_version}'
      FROM outbox_events WHERE kind = 'execution_event'
"""


def _over(begun: Transition, status: str = "completed") -> Transition:
    error = "user_error" if status == "failed" else None
    row = RunChange(begun.run_id, status, False, True, None, 9, 1, 2, None, error_type=error)
    return Transition(begun.run_id, run_changes=[row])


async def test_runs_of_one_flush_have_an_event_each_for_those_who_listen(stage: Stage) -> None:
    """Once as a run starts and once as it ends, whatever else the flush writes."""
    types = ["execution.started", "execution.completed", "execution.failed"]
    stage.sql.execute(_LISTENS, (types, stage.owner, stage.owner))
    deaf = factories.user(stage.sql).id
    node = {"workflow_id": None, "workflow_version": None, "node_version_id": stage.node_version}

    first, second, waits = stage.begun(), stage.begun(), stage.begun(status="pending")
    others = stage.begun(tenant_id=deaf, created_by=deaf)
    stage.sql.execute("UPDATE workflows SET is_template = true")
    written = await stage.write(first, second, waits, others)
    assert 4 == len(written["started"])
    started = {(t.run_id, "execution.started", stage.owner, None, "1") for t in (first, second)}
    assert started == set(stage.rows(_EVENTS))

    starts = RunChange(waits.run_id, "running", True, False, None, 9, 1, 2, None)
    alone = stage.begun(**node)
    await stage.write(
        _over(first),
        _over(second, "failed"),
        Transition(waits.run_id, run_changes=[starts]),
        _over(others),
        alone,
    )
    told = stage.rows(_EVENTS)
    assert len(set(told)) == len(told)
    assert started | {
        (first.run_id, "execution.completed", stage.owner, None, "1"),
        (second.run_id, "execution.failed", stage.owner, "user_error", "1"),
        (waits.run_id, "execution.started", stage.owner, None, "1"),
        (alone.run_id, "execution.started", stage.owner, None, None),
    } == set(told)

    stage.sql.execute(
        "UPDATE workflow_executions SET purge_started_at = now() WHERE completed_at IS NOT NULL"
    )
    assert told == stage.rows(_EVENTS)


async def test_a_node_that_waits_has_an_event_as_it_begins_to(stage: Stage) -> None:
    stage.sql.execute(_LISTENS, (["execution.waiting"], stage.owner, stage.owner))
    begun = stage.begun()
    await stage.write(begun)
    waits = ("execution.waiting", stage.owner, None, "1")
    for change, events in (("revision = 2", 0), ("status = 'waiting'", 1), ("revision = 3", 1)):
        stage.sql.execute(f"UPDATE node_executions SET {change}".encode())
        assert [(begun.run_id, *waits)] * events == stage.rows(_EVENTS), change
    stage.sql.execute("UPDATE node_executions SET status = 'running'")
    stage.sql.execute("UPDATE node_executions SET status = 'waiting'")
    assert [(begun.run_id, *waits)] * 2 == stage.rows(_EVENTS)
