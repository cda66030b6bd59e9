"""How long runs stand still when the orchestrator of a machine is killed: until a node begins."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import psutil
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub

from bench.figures import figure
from bench.flow import Flow, running

_NODES: Final = 400
_KILLS: Final = 5
_TARGET_S: Final = 2.0
_STANDBY_TARGET_S: Final = 0.5
_BEFORE_S: Final = 0.5
# The supervisor waits before it starts again what has ended a short while before as well.
_BETWEEN_S: Final = 31.0
_SLOW: Final = """
import time

def slow(x: int) -> int:
    time.sleep(0.02)
    return x + 1
"""
# A flush that was on its way when its process died may still be written.
_ON_ITS_WAY_S: Final = 0.1
_FIRST_AFTER: Final = """
    SELECT extract(epoch FROM min(started_at))::float8 FROM node_executions
     WHERE workflow_execution_id = %s AND started_at > to_timestamp(%s)
"""


async def takeover() -> dict[str, Any]:
    """Seconds from a kill -9 of the only orchestrator until the run goes on under its successor.

    The supervisor starts that, and it has proof that the one before is dead: it waits for no lease.
    Every run ends with the right result.
    """
    async with running() as flow:
        workflow_id = await _chain(flow)
        spans = []
        for number in range(_KILLS):
            spans.append(await _killed(flow, workflow_id, number))
            await asyncio.sleep(_BETWEEN_S)
    return figure(spans, "s", "lower", target=_TARGET_S, floor=0.0)


async def standby() -> dict[str, Any]:
    """Seconds from a kill -9 of an orchestrator until the run goes on under the one standing by.

    That one has all done but to take the home's lock, which the kernel lets go of with its holder.
    """
    spans = []
    for number in range(_KILLS):
        async with running() as flow:
            workflow_id = await _chain(flow)
            async with _standing_by(flow):
                spans.append(await _killed(flow, workflow_id, number, restarted=False))
    return figure(spans, "s", "lower", target=_STANDBY_TARGET_S, floor=0.0)


async def _chain(flow: Flow) -> str:
    node = await flow.node(_SLOW)
    places = {f"n{at}": node for at in range(_NODES)}
    edges = [("", "n0", "x")]
    edges += [(f"n{at}", f"n{at + 1}", "x") for at in range(_NODES - 1)]
    return await flow.workflow(places, edges, f"n{_NODES - 1}")


@asynccontextmanager
async def _standing_by(flow: Flow) -> AsyncIterator[None]:
    """Start another orchestrator on the home of the suite, with the settings of its own."""
    there = psutil.Process(flow.suite.marks()["orchestrator"].pid)
    env = there.environ() | {"QFLOW_ORCHESTRATOR_STANDBY": "1"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.orchestrator"),
        env=env,
        cwd=there.cwd(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        while b"standing_by" not in (line := await process.stdout.readline()):
            assert line, "it ended"
        reading = asyncio.create_task(process.stdout.read())
        yield
        reading.cancel()
    finally:
        process.terminate()
        await process.wait()


async def _killed(flow: Flow, workflow_id: str, x: int, *, restarted: bool = True) -> float:
    run = await flow.start(workflow_id, x)
    await asyncio.sleep(_BEFORE_S)
    before = flow.suite.kill_service("orchestrator")
    killed_at = time.time()
    if restarted:
        await asyncio.to_thread(flow.suite.wait_restarted, "orchestrator", before)
    await flow.all_over(workflow_id)
    with flow.suite.sql() as db:
        row = db.execute(_FIRST_AFTER, (UUID(run), killed_at + _ON_ITS_WAY_S)).fetchone()
    assert row is not None
    assert row[0] is not None, "the run was over before the kill"
    async with flow.suite.channel("orchestrator") as channel:
        result = await replace(flow, executions=ExecutionServiceStub(channel)).result(run)
    assert result == x + _NODES, result
    return float(row[0]) - killed_at
