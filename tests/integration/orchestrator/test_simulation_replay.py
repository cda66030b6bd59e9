"""What simulated worlds wrote, written again by the real flush: PostgreSQL agrees row by row."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from services.kit.ids import uuid7
from services.orchestrator.domain.transition import Transition
from services.orchestrator.storage import flush
from tests import factories
from tests.simulation.store import Store, Written
from tests.simulation.world import World, quiet
from tests.support.database import Database
from tests.support.invariants import INVARIANTS

_SEEDS = 500 if os.environ.get("QFLOW_TEST_FULL") else 20
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_NOT_THERE = "23503"
_NEVER = 1 << 30  # worlds that are replayed here were compared with their memory elsewhere
# Of the others some look at what a world does not have: versions, shards, runners' rows.
_LOOKED_AT = ("I1 ", "I2 ", "I3 ", "I4 ", "I6 ", "I7 ", "I8 ", "I10 ", "I5 a completed node")
_RUN = ("status", "revision", "error_type", "failed_node_id", "cpu_us", "memory_peak_bytes")
_NODE = (
    "status",
    "attempt_token",
    "runner_incarnation",
    "retry_count",
    "delivery_count",
    "execution_order",
    "revision",
    "error_type",
)


@pytest.mark.timeout(900)
async def test_postgresql_writes_and_refuses_what_the_reference_store_does(
    database: Database,
) -> None:
    """Rule 9, F9, F10: every flush of these seeds, those that were fenced or refused among them."""
    quiet()
    with database.connect() as sql:
        owner = factories.user(sql)
        node = factories.node(sql, owner)
        workflow_id = factories.workflow(
            sql, owner, nodes={"a": node}, edges=[("", "x", "a", "x")], outputs=[("o", "a")]
        )
    db = await asyncpg.connect(database.url("qflow_orchestrator_engine"))
    owners_view = await asyncpg.connect(database.url())
    refused = 0
    try:
        for seed in range(_SEEDS):
            world = World(seed, recording=True, compared_every=_NEVER)
            store = (await asyncio.to_thread(world.run)).store  # it has a loop of its own
            fences: dict[UUID, tuple[int, bool]] = {}
            await _promise(owners_view, store, owner.id)
            for written in store.history or ():
                if written.refused == _NOT_THERE and any(t.uses for t in written.batch):
                    continue  # places under limits are not the journal's, and not here
                await _fence(owners_view, fences, written)
                batch = [_real(t, written, store, owner.id, workflow_id) for t in written.batch]
                await _write(db, batch, written, seed)
                refused += bool(written.refused)
            await _compare(owners_view, store, seed)
            await owners_view.execute(
                "TRUNCATE workflow_executions, engine_members, execution_budgets, tenant_usage"
                " CASCADE"
            )
    finally:
        await db.close()
        await owners_view.close()
    assert refused, "no flush was refused: these seeds show half of it"


async def _promise(db: Any, store: Store, owner: UUID) -> None:
    """Have the budgets that runs were given, with nothing of them used."""
    for run_id, row in {**store.past_budgets, **store.budgets}.items():
        await db.execute(
            "INSERT INTO execution_budgets (execution_id, tenant_id, nodes, cpu_us)"
            " VALUES ($1, $2, $3, $4)",
            run_id,
            owner,
            row["nodes"],
            row["cpu_us"],
        )


async def _fence(db: Any, fences: dict[UUID, tuple[int, bool]], written: Written) -> None:
    """Have the member's row stand as it stood when the flush arrived."""
    if fences.get(written.member_id) == (written.epoch, written.live):
        return
    fences[written.member_id] = (written.epoch, written.live)
    await db.execute(
        "INSERT INTO engine_members (id, epoch, state, expires_at)"
        " VALUES ($1, $2, 'live', now() + interval '1 hour')"
        " ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch",
        written.member_id,
        written.epoch if written.live else written.epoch + 1,
    )


def _real(t: Transition, written: Written, store: Store, owner: UUID, workflow: UUID) -> Transition:
    """Point a transition at rows that exist, or at none where it met none."""
    inserts = []
    for row in t.run_inserts:
        taken = row.request_id is not None and (row.created_by, row.request_id) in store.requests
        there = taken or row.parent_node_id is not None  # sub-workflows begin whatever became of it
        met = workflow if there else uuid7()  # where no request was in its way, its workflow was
        inserts.append(row._replace(workflow_id=met, tenant_id=owner, created_by=owner))
    errors = [row._replace(tenant_id=owner) for row in t.errors]
    signals = [row._replace(tenant_id=owner, sent_by=owner) for row in t.signals]
    charges = tuple(row._replace(tenant_id=owner) for row in t.charges)
    copies = [
        row._replace(source_id=uuid7()) if row.source_id in written.gone else row
        for row in t.copies
    ]
    return replace(
        t, run_inserts=inserts, errors=errors, signals=signals, charges=charges, copies=copies
    )


async def _write(db: Any, batch: list[Transition], written: Written, seed: int) -> None:
    """Flush a batch as the journal does: it is to be written or refused as it was."""
    prepared = flush.prepare(batch)
    arguments = flush.arguments(prepared, written.member_id, written.epoch, _EARLIEST)
    refused, started = "", frozenset[UUID]()
    try:
        row = await db.fetchrow(prepared.sql, *arguments)
        started = frozenset(row["started"] or ())
    except asyncpg.PostgresError as error:
        refused = error.sqlstate or ""
    # Where several rows are refused, either may be named first; the fence is looked at by itself.
    assert bool(written.refused) == bool(refused), f"seed {seed}: {written.refused}, not {refused}"
    assert (written.refused == flush.FENCED) == (refused == flush.FENCED), f"seed {seed}"
    assert written.started == started, f"seed {seed}"


async def _compare(db: Any, store: Store, seed: int) -> None:
    """Hold every row of the database against the reference."""
    usage = (
        "(resource_usage ->> 'cpu_us')::bigint AS cpu_us,"
        " (resource_usage ->> 'memory_peak_bytes')::bigint AS memory_peak_bytes"
    )
    runs = await db.fetch(f"SELECT *, {usage} FROM workflow_executions")
    assert store.runs.keys() == {row["id"] for row in runs}, f"seed {seed}"
    for row in runs:
        _same(_RUN, store.runs[row["id"]], row, seed)
        assert _value(store.runs[row["id"]]["output_data"]) == _value(row["output_data"])
    nodes = await db.fetch(f"SELECT *, {usage} FROM node_executions")
    assert store.nodes.keys() == {row["id"] for row in nodes}, f"seed {seed}"
    for row in nodes:
        _same(_NODE, store.nodes[row["id"]], row, seed)
        assert _value(store.nodes[row["id"]]["output_data"]) == _value(row["output_data"])
    attempts = await db.fetch("SELECT node_execution_id, token FROM node_attempts")
    assert store.attempts.keys() == {tuple(row) for row in attempts}, f"seed {seed}"
    words = await db.fetch("SELECT id, node_id FROM execution_signals")
    assert {row["id"]: row["node_id"] for row in words} == {
        each: row["node_id"] for each, row in store.signals.items()
    }, f"seed {seed}"
    for name, rows in (("node_data_flow", store.flows), ("error_logs", store.errors)):
        ids = await db.fetch(f"SELECT id FROM {name}")
        assert rows.keys() == {row["id"] for row in ids}, f"seed {seed}: {name}"
    await _compare_sums(db, store, seed)
    for name, query in INVARIANTS.items():
        if name.startswith(_LOOKED_AT):
            assert not await db.fetch(query), f"seed {seed}: {name}"


async def _compare_sums(db: Any, store: Store, seed: int) -> None:
    """Hold what tenants and budgets used against the reference, member by member."""
    summed = await db.fetch(
        "SELECT member_id, sum(nodes) AS nodes, sum(cpu_us) AS cpu_us, "
        "sum(moved_bytes) AS moved_bytes FROM tenant_usage GROUP BY member_id"
    )
    mine: defaultdict[UUID, Counter[str]] = defaultdict(Counter)
    for (_, _, member_id), row in store.usage.items():
        mine[member_id].update({name: row[name] for name in ("nodes", "cpu_us", "moved_bytes")})
    used = {each: {name: int(n) for name, n in row.items()} for each, row in mine.items()}
    theirs = {row["member_id"]: row for row in summed}
    for member_id, sums in used.items():
        for name, expected in sums.items():
            found = theirs[member_id][name] if member_id in theirs else 0
            assert expected == found, f"seed {seed}: {name} of {member_id}"
    budgets = {**store.past_budgets, **store.budgets}
    for row in await db.fetch("SELECT * FROM execution_budgets"):
        known = budgets[row["execution_id"]]
        for name in ("nodes_used", "cpu_us_used", "moved_bytes_used", "over"):
            assert known[name] == row[name], f"seed {seed}: {name} of {row['execution_id']}"


def _same(names: tuple[str, ...], mine: Mapping[str, Any], row: Any, seed: int) -> None:
    for name in names:
        expected = mine.get(name)
        if name in ("cpu_us", "memory_peak_bytes"):
            expected = expected or 0
            assert expected == (row[name] or 0), f"seed {seed}: {name} of {row['id']}"
        else:
            assert expected == row[name], f"seed {seed}: {name} of {row['id']}"


def _value(text: str | None) -> object:
    return None if text is None else json.loads(text)
