"""What the simulation wrote, written again by the real flush: PostgreSQL must agree row by row."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from services.kit.ids import uuid7
from services.orchestrator.domain.rows import Transition
from services.orchestrator.storage import flush
from tests import factories
from tests.support.database import Database
from tests.unit.orchestrator.store import Store
from tests.unit.orchestrator.test_simulation import World, simulate

_SEEDS = 200 if os.environ.get("QFLOW_TEST_FULL") else 25
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.mark.timeout(300)
async def test_postgresql_writes_what_the_simulation_wrote(database: Database) -> None:
    """Rule 9: the reference store is held against the real statements, guards included."""
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
    db = await asyncpg.connect(database.url("qflow_orchestrator_engine"))
    owners_view = await asyncpg.connect(database.url())
    try:
        for seed in range(_SEEDS):
            chance = random.Random(seed)
            store, written = recorded(seed)
            batch: list[Transition] = []
            touched: set[Any] = set()
            for t in written:
                mine = real(t, owner.id, workflow_id)
                keys = {
                    row.id
                    for rows in (
                        t.run_inserts,
                        t.run_changes,
                        t.node_inserts,
                        t.completes,
                        t.changes.values(),
                    )
                    for row in rows
                }
                if batch and (touched & keys or chance.random() < 0.3):
                    await write(db, batch, member_id)
                    batch, touched = [], set()
                batch.append(mine)
                touched |= keys
            await write(db, batch, member_id)
            await compare(owners_view, store, seed)
            await owners_view.execute("TRUNCATE workflow_executions CASCADE")
    finally:
        await db.close()
        await owners_view.close()


def recorded(seed: int) -> tuple[Store, list[Transition]]:
    """Run a simulated world and keep what it wrote, in order."""
    written: list[Transition] = []

    class Recording(World):
        def commit(self) -> None:
            written.append(replace(self.queue[0]))
            super().commit()

    world = simulate(seed, world=Recording(seed))
    return world.store, written


def real(t: Transition, owner: Any, workflow_id: Any) -> Transition:
    """Point a transition at rows that exist."""
    inserts = [
        row._replace(
            workflow_id=workflow_id, tenant_id=owner, created_by=owner, input_data='{"x":1}'
        )
        for row in t.run_inserts
    ]
    errors = [row._replace(tenant_id=owner) for row in t.errors]
    return replace(t, run_inserts=inserts, errors=errors)


async def write(db: Any, batch: list[Transition], member_id: Any) -> None:
    """Flush a batch as the journal does."""
    prepared = flush.prepare(batch)
    if prepared.arguments:
        await db.fetchrow(prepared.sql, *flush.arguments(prepared, member_id, 1, _EARLIEST))


async def compare(db: Any, store: Store, seed: int) -> None:
    """Hold every row of the database against the reference."""
    runs = await db.fetch("SELECT id, status, revision FROM workflow_executions")
    assert {row["id"]: row["status"] for row in runs} == {
        run_id: str(run["status"]) for run_id, run in store.runs.items()
    }, f"seed {seed}"
    assert {row["id"]: row["revision"] for row in runs} == {
        run_id: run["revision"] for run_id, run in store.runs.items()
    }, f"seed {seed}"
    names = ("status", "retry_count", "delivery_count", "execution_order", "revision")
    nodes = await db.fetch(
        f"SELECT id, {', '.join(names)}, attempt_token, output_data IS NOT NULL AS output"
        " FROM node_executions"
    )
    assert len(store.nodes) == len(nodes)
    for row in nodes:
        expected = store.nodes[row["id"]]
        assert [expected[name] for name in names] == [row[name] for name in names], f"seed {seed}"
        assert expected["token"] == row["attempt_token"]
        assert (expected["output"] is not None) == row["output"]
    assert len(store.attempts) == await db.fetchval("SELECT count(*) FROM node_attempts")
    assert len(store.flows) == await db.fetchval("SELECT count(*) FROM node_data_flow")
