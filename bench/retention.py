"""Retention: executions a second that go, and what runs feel of it."""

from __future__ import annotations

import asyncio
import statistics
import time
from datetime import timedelta
from typing import Any, Final

import psycopg

from bench.figures import figure
from bench.flow import ONE, Flow, running
from migrations import login_urls
from services.kit.pg import open_pool
from services.telemetry.domain.retention import RULES, Removed
from services.telemetry.usecases.retain import forget_all

_RUNS: Final = 10_000
_NODES: Final = 10
_KEEP: Final = {rule.subject: timedelta(days=rule.keep_days) for rule in RULES if rule.keep_days}
_STARTS_PER_S: Final = 100
_SPAN_S: Final = 8.0


async def retention() -> dict[str, Any]:
    """Count executions with ten nodes each that go a second when idle, and what runs feel of it."""
    # Without metrics: each run would have five rows more, made while it is removed.
    async with running({"QFLOW_EXECUTION_METRICS": "0"}) as flow:
        workflow_id = await flow.workflow({"a": await flow.node(ONE)}, [("", "a", "x")], "a")
        await asyncio.to_thread(_fill, flow, workflow_id, _RUNS)
        report: list[Removed] = []
        begin = time.perf_counter()
        await _forget(flow, report)
        rate = _RUNS / (time.perf_counter() - begin)
        [told] = [each for each in report if each.subject == "executions"]
        idle, busy = await _felt(flow, workflow_id)
    found = figure([rate], "executions/s", "higher", target=1000.0, floor=0.0)
    return found | {
        "rows": told.rows,
        "batches": told.batches,
        "longest_batch_ms": told.longest_ms,
        "start_to_end_p99_ms_without": round(idle, 2),
        "start_to_end_p99_ms_during": round(busy, 2),
        "p99_ratio": round(busy / idle, 3),
    }


async def _felt(flow: Flow, workflow_id: str) -> tuple[float, float]:
    """Give the p99 of runs of one node at a fixed rate, without retention and during it.

    Both beside the same rows: to have written them is felt too, until they are on the disk.
    """
    await asyncio.to_thread(_fill, flow, workflow_id, 2 * _RUNS)
    for _ in range(20):
        await flow.run(workflow_id, 1)
    await _p99_ms(flow, workflow_id)
    idle = await _p99_ms(flow, workflow_id)
    forgetting = asyncio.ensure_future(_forget(flow, []))
    busy = await _p99_ms(flow, workflow_id)
    assert not forgetting.done(), "retention ended before the runs did: fill more"
    forgetting.cancel()
    await asyncio.gather(forgetting, return_exceptions=True)
    return idle, busy


async def _p99_ms(flow: Flow, workflow_id: str) -> float:
    spans: list[float] = []

    async def one(number: int) -> None:
        begin = time.perf_counter()
        await flow.run(workflow_id, number)
        spans.append((time.perf_counter() - begin) * 1000)

    begin, runs = time.perf_counter(), []
    for number in range(round(_STARTS_PER_S * _SPAN_S)):
        await asyncio.sleep(max(0.0, begin + number / _STARTS_PER_S - time.perf_counter()))
        runs.append(asyncio.ensure_future(one(number)))
    await asyncio.gather(*runs)
    return statistics.quantiles(spans, n=100)[98]


async def _forget(flow: Flow, report: list[Removed]) -> None:
    """Make a pass, as telemetry's login does it."""
    async with await open_pool(
        _login_url(flow), application_name="bench", size_max=1, statement_timeout_s=60.0
    ) as pool:
        await forget_all(pool, keep=_KEEP, report=report)


def _login_url(flow: Flow) -> str:
    urls = login_urls(flow.suite.database_url, flow.suite.home.root)
    return urls["qflow_telemetry_maint"]


def _fill(flow: Flow, workflow_id: str, runs: int) -> None:
    """Write executions that ended 31 days ago, each of ten nodes, with their data flow."""
    with psycopg.connect(flow.suite.database_url, autocommit=True) as db:
        db.execute("SET session_replication_role = replica")  # no events of what never happened
        db.execute(
            "INSERT INTO workflow_executions (workflow_id, workflow_version, tenant_id, created_by,"
            " shard, status, created_at, queued_at, started_at, completed_at)"
            " SELECT w.id, 1, w.tenant_id, w.created_by, n %% 64, 'completed', at, at, at,"
            " at + interval '1 s' FROM workflows w, generate_series(1, %(runs)s) n,"
            " LATERAL (SELECT now() - interval '31 days' - n * interval '1 ms') AS t(at)"
            " WHERE w.id = %(workflow)s",
            {"runs": runs, "workflow": workflow_id},
        )
        db.execute(
            "INSERT INTO node_executions (workflow_execution_id, node_id, definition_node_id,"
            " node_type, status, started_at, completed_at, execution_order, output_data)"
            " SELECT e.id, 'n' || n, 'n' || n, 'python', 'completed', e.started_at,"
            " e.completed_at, n, '{}' FROM workflow_executions e, generate_series(1, %s) n"
            " WHERE e.completed_at < now() - interval '30 days'",
            (_NODES,),
        )
        db.execute("SET session_replication_role = origin")
        # As they are after a month: summed up, looked through, and on the disk.
        db.execute("SELECT roll_up_executions(array_agg(id)) FROM workflow_executions")
        db.execute("VACUUM (ANALYZE) workflow_executions, node_executions, rolled_up_executions")
        db.execute("CHECKPOINT")
