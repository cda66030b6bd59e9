"""Growth: how much room the tables that change most take under steady work, for what they hold."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import psycopg

from bench.figures import figure
from bench.flow import ONE, Flow, running
from services.telemetry.domain.condition import HOT_TABLES

# A run of one node is four transitions: it and its node, begun and ended.
_RUNS_PER_S: Final = 50
_SPAN_S: Final = 600.0
# What is older goes every now and then, as retention has it go after a month.
_KEEP_S: Final = 120
_PASS_S: Final = 20.0
_BATCH: Final = 1000
_LEASES: Final = ("engine_members", "runner_members")
# Below this a table is a few pages, most of them of its indexes.
_SMALL_BYTES: Final = 1_000_000


async def growth() -> dict[str, Any]:
    """How many times as large as its rows the largest of the tables is after ten minutes."""
    async with running() as flow:
        found = await grown(flow, span_s=_SPAN_S)
    told = figure([max(found["ratios"].values())], "times", "lower", target=2.0, floor=1.0)
    return told | found


async def grown(flow: Flow, *, span_s: float) -> dict[str, Any]:
    """Work for so long; tell of each table how large it is, and would be were it written anew."""
    workflow_id = await flow.workflow({"a": await flow.node(ONE)}, [("", "a", "x")], "a")
    await flow.run(workflow_id, 0)
    stop = asyncio.Event()
    passes = asyncio.ensure_future(_forgetting(flow, stop))
    count = await _work(flow, workflow_id, span_s)
    stop.set()
    await passes
    return await asyncio.to_thread(_sizes, flow) | {"runs": count}


async def _work(flow: Flow, workflow_id: str, span_s: float) -> int:
    begin, number = time.perf_counter(), 0
    running_now: set[asyncio.Task[int]] = set()
    while (now := time.perf_counter() - begin) < span_s:
        while number < now * _RUNS_PER_S:
            task = asyncio.ensure_future(flow.run(workflow_id, number))
            running_now.add(task)
            task.add_done_callback(running_now.discard)
            number += 1
        await asyncio.sleep(0.01)
    await asyncio.gather(*running_now)
    return number


async def _forgetting(flow: Flow, stop: asyncio.Event) -> None:
    """Have old runs go; as the owner, since retention's own login keeps everything for a day."""
    while not stop.is_set():
        await asyncio.to_thread(_forget, flow)
        try:
            async with asyncio.timeout(_PASS_S):
                await stop.wait()
        except TimeoutError:
            continue


def _forget(flow: Flow) -> None:
    with psycopg.connect(flow.suite.database_url, autocommit=True) as db:
        gone = 1
        while gone:
            row = db.execute(
                "SELECT cleanup_old_executions(%s * interval '1 s', %s)", (_KEEP_S, _BATCH)
            ).fetchone()
            assert row is not None
            gone = row[0]


def _sizes(flow: Flow) -> dict[str, Any]:
    with psycopg.connect(flow.suite.database_url, autocommit=True) as db:
        before = {table: _size(db, table) for table in HOT_TABLES}
        updated, hot = _lease_updates(db)
        for table in HOT_TABLES:
            db.execute(f"VACUUM FULL {table}".encode())
        after = {table: _size(db, table) for table in HOT_TABLES}
    return {
        "ratios": {
            table: round(before[table] / after[table], 2)
            for table in HOT_TABLES
            if before[table] > _SMALL_BYTES
        },
        "bytes": {table: size for table, size in before.items() if size > _SMALL_BYTES},
        "lease_updates": updated,
        "lease_hot_share": round(hot / updated, 3) if updated else None,
    }


def _size(db: psycopg.Connection, table: str) -> int:
    row = db.execute("SELECT pg_total_relation_size(%s::regclass)", (table,)).fetchone()
    assert row is not None
    return int(row[0])


def _lease_updates(db: psycopg.Connection) -> tuple[int, int]:
    row = db.execute(
        "SELECT sum(n_tup_upd)::bigint, sum(n_tup_hot_upd)::bigint FROM pg_stat_user_tables"
        " WHERE relname = ANY(%s)",
        (list(_LEASES),),
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])
