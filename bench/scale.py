"""Benches of size: one run that fans out, one of 100,000 nodes, and a load that does not wait."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import asyncpg

from bench import floors
from bench.costs import costs, spent
from bench.figures import figure
from bench.flow import ONE, OTHER, Flow, running

# Rates are asked of a machine on which one client makes so many durable transactions a second.
_MACHINE_TRANSACTIONS_PER_S: Final = 1_800
_FAN_NODES_PER_S: Final = 4_000
_LOAD_NODES_PER_S: Final = 5_000
_FAN: Final = 1_000
_LARGE: Final = 100_000
_ROUNDS: Final = 5
_ENDS: Final = 2  # the node before the elements and the one behind them
_SPLIT: Final = "def numbers(x: int) -> list[int]:\n    return list(range(x))\n"
_TOTAL: Final = "def total(x: list[int]) -> int:\n    return sum(x)\n"

_LOAD_NODES: Final = 3
_FIRST_RUNS_PER_S: Final = 40.0
_STEP: Final = 1.25
_STEP_S: Final = 10.0
_LATENCY_MAX_S: Final = 1.0
_TICK_S: Final = 0.01
_ENDED: Final = """
    SELECT id, extract(epoch FROM completed_at)::float8 AS ended
      FROM workflow_executions WHERE id = ANY ($1) AND status = 'completed'
"""


async def fan() -> dict[str, Any]:
    """Nodes per second of one run: a node, a map over its 1,000 numbers, and their sum."""
    async with running() as flow:
        workflow_id = await _fan_out(flow)
        floor = await floors.transactions_per_s(flow.suite.database_url)
        await _mapped(flow, workflow_id, _FAN)
        before = await spent(flow)
        rates = [await _mapped(flow, workflow_id, _FAN) for _ in range(_ROUNDS)]
        told = await costs(flow, before, _ROUNDS * (_FAN + _ENDS))
    target = _FAN_NODES_PER_S * floor / _MACHINE_TRANSACTIONS_PER_S
    return figure(rates, "nodes/s", "higher", target=target, floor=floor) | told


async def large_map() -> dict[str, Any]:
    """Nodes per second of one run of 100,002 nodes: that it ends, and with the right sum."""
    async with running() as flow:
        workflow_id = await _fan_out(flow)
        floor = await floors.transactions_per_s(flow.suite.database_url)
        await _mapped(flow, workflow_id, _FAN)
        before = await spent(flow)
        rate = await _mapped(flow, workflow_id, _LARGE)
        told = await costs(flow, before, _LARGE + _ENDS)
    target = _FAN_NODES_PER_S * floor / _MACHINE_TRANSACTIONS_PER_S
    seconds = {"seconds": round((_LARGE + _ENDS) / rate, 1)}
    return figure([rate], "nodes/s", "higher", target=target, floor=floor) | seconds | told


async def load() -> dict[str, Any]:
    """Nodes per second of three-node runs, begun by a call each 10 ms, as many as are kept up with.

    Runs are due at fixed times, whether earlier ones are over or not; every 10 ms one call starts
    those that are. Each rate is held for ten seconds; it is kept up with while 99 of 100 runs are
    over within a second of the time that they were due. From the last before the first that is not
    it goes on in half steps.
    """
    async with running() as flow:
        one, other = await flow.node(ONE), await flow.node(OTHER)
        places = {"a": one, "b": other, "c": one}
        edges = [("", "a", "x"), ("a", "b", "x"), ("b", "c", "x")]
        workflow_id = await flow.workflow(places, edges, "c")
        floor = await floors.transactions_per_s(flow.suite.database_url)
        await asyncio.gather(*(flow.run(workflow_id, 0) for _ in range(20)))
        rate, kept, steps, told = _FIRST_RUNS_PER_S, 0.0, {}, {}
        step = _STEP
        while True:
            before = await spent(flow)
            latency_s = await _offered(flow, workflow_id, rate)
            steps[f"{rate:.0f} runs/s"] = round(latency_s, 3)
            if latency_s <= _LATENCY_MAX_S:
                told = await costs(flow, before, round(rate * _STEP_S) * _LOAD_NODES)
                kept = rate
            elif step == _STEP:
                step = _STEP**0.5
            else:
                break
            rate = kept * step
    target = _LOAD_NODES_PER_S * floor / _MACHINE_TRANSACTIONS_PER_S
    found = figure([kept * _LOAD_NODES], "nodes/s", "higher", target=target, floor=floor)
    return found | {"p99_s_at": steps} | told


async def _fan_out(flow: Flow) -> str:
    split, one, total = [await flow.node(code) for code in (_SPLIT, ONE, _TOTAL)]
    return await flow.workflow(
        {"split": split, "each": one, "total": total},
        [("", "split", "x"), ("split", "each", "x"), ("each", "total", "x")],
        "total",
        mapped={"each": "x"},
    )


async def _mapped(flow: Flow, workflow_id: str, size: int) -> float:
    begin = time.perf_counter()
    result = await flow.run(workflow_id, size)
    span_s = time.perf_counter() - begin
    assert result == size * (size + 1) // 2, result
    return (size + _ENDS) / span_s


async def _offered(flow: Flow, workflow_id: str, rate: float) -> float:
    """Start runs at a rate; give the 99th percentile of the seconds from their time to their end.

    One call starts what is due, as a backend does that has many to begin: the wait for it counts.
    Those that have not ended two seconds after the last began count as never ended.
    """
    begin, count = time.time() + 0.1, round(rate * _STEP_S)
    due: dict[str, float] = {}

    async def start(times: Sequence[float]) -> None:
        due.update(zip(await flow.start_many(workflow_id, [1] * len(times)), times, strict=True))

    starts = []
    left = deque(begin + number / rate for number in range(count))
    while left:
        await asyncio.sleep(max(_TICK_S, left[0] - time.time()))
        now = time.time()
        times = []
        while left and left[0] <= now:
            times.append(left.popleft())
        if times:
            starts.append(asyncio.create_task(start(times)))
    await asyncio.gather(*starts)
    await asyncio.sleep(2 * _LATENCY_MAX_S)
    ended = await _ends(flow, due)
    await flow.all_over(workflow_id)
    spans = sorted(ended.get(run, float("inf")) - at for run, at in due.items())
    return spans[int(len(spans) * 0.99)]


async def _ends(flow: Flow, due: Mapping[str, float]) -> dict[str, float]:
    db = await asyncpg.connect(flow.suite.database_url)
    try:
        rows = await db.fetch(_ENDED, [UUID(run) for run in due])
        return {str(row["id"]): row["ended"] for row in rows}
    finally:
        await db.close()
