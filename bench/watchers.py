"""Benches of those who look on: many watchers of one run, and the first picture of a command."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psutil
import qflow
from qflow.client.client import Client
from qflow.client.contexts import of_home
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from bench.figures import figure
from bench.flow import Flow, running
from bench.frames import Connection, connect
from bench.processors import spent_s

_WATCHERS: Final = 1_000
_CONNECTIONS: Final = 20
_ROUNDS: Final = 7
_AT_ONCE: Final = 50
_OPEN_S: Final = 60.0
_SETTLE_S: Final = 3.0
_STARTS: Final = 15
_WATCH: Final = "/qflow.orchestrator.v1.ExecutionService/WatchExecution"
_COMPLETED: Final = execution_pb2.NODE_EXECUTION_STATUS_COMPLETED


def add(n: int, more: int) -> int:
    """Be as good as nothing: what is measured stands around it."""
    return n + more


ADD: Final = qflow.node(add)


@qflow.workflow(name="bench: told")
def told(n: int) -> int:
    """Run a node each time that a signal says so."""
    for number in range(_ROUNDS):
        n = ADD(n, qflow.signal(f"go{number}", int))
    return n


class Watchers:
    """Many watches of one run; what came when is looked at afterwards."""

    def __init__(self) -> None:
        self.came: list[list[tuple[float, bytes]]] = [[] for _ in range(_WATCHERS)]
        self.connections: list[Connection] = []

    def told(self, number: int, at: float, message: bytes) -> None:
        """Note a message of one watch."""
        self.came[number].append((at, message))

    async def stand(self, first: int, end: int) -> None:
        """Wait until these watches have had what stands, and the bookmark."""
        async with asyncio.timeout(_OPEN_S):
            while min(map(len, self.came[first:end])) < 2:  # noqa: ASYNC110  # bytes on a socket
                await asyncio.sleep(0.02)

    async def end(self) -> None:
        """Wait until the server has ended all of them."""
        async with asyncio.timeout(_OPEN_S):
            while sum(len(each.ended) for each in self.connections) < _WATCHERS:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def last_at(self, place: str) -> float:
        """Give when the last of all learnt that a place has completed."""
        return max(self._learnt(messages, place) for messages in self.came)

    @staticmethod
    def _learnt(messages: list[tuple[float, bytes]], place: str) -> float:
        for at, raw in messages:
            step = pb.WatchExecutionResponse.FromString(raw)
            for node in step.delta.node_executions:
                if (node.node_id, node.status) == (place, _COMPLETED):
                    return at
        raise AssertionError(f"a watch never heard of {place}")


async def watchers() -> dict[str, Any]:
    """Milliseconds from a node's commit to the last of 1,000 watchers of its run, in one service.

    `end_ms` is the same of the run's own end; `watcher_kb` what one more watcher takes there. Of
    one delta `server_us` is the service's processor time a watcher, `driver_us` what reading it
    took on the same machine.
    """
    async with running() as flow, Client(of_home(flow.suite.home.root)) as client:
        orchestrator = psutil.Process(flow.suite.marks()["orchestrator"].pid)
        warm = await client.start(told, 0)
        for number in range(_ROUNDS):
            await warm.signal(f"go{number}", 1)
        await warm.result()
        run = await client.start(told, 0)
        await asyncio.sleep(_SETTLE_S)
        before = orchestrator.memory_full_info().uss
        seen = Watchers()
        async with _watching(flow, run.id, seen):
            await asyncio.sleep(_SETTLE_S)
            grown = orchestrator.memory_full_info().uss - before
            began = spent_s(flow.suite)
            for number in range(_ROUNDS):
                await run.signal(f"go{number}", 1)
                await asyncio.sleep(1.0)
            spent = spent_s(flow.suite)
            assert await run.result() == _ROUNDS
        nodes = [each async for each in run.nodes() if each.node_id.startswith("add")]
        assert len(nodes) == _ROUNDS
        late = [(seen.last_at(n.node_id) - n.end_time.ToNanoseconds() / 1e9) * 1000 for n in nodes]
        ended_at = (await run.get()).end_time.ToNanoseconds() / 1e9
        end_ms = (max(each[-1][0] for each in seen.came) - ended_at) * 1000
    # What stood, and the bookmark, had come before.
    deltas = sum(map(len, seen.came)) - 2 * _WATCHERS
    # The last node ends the run: that is told apart.
    report = figure(late[:-1], "ms", "lower", target=100.0, floor=0.0)
    return report | {
        "end_ms": round(end_ms, 1),
        "watcher_kb": round(grown / 1024 / _WATCHERS, 1),
        "watcher_kb_target": 50,
        "watchers": _WATCHERS,
        "deltas": deltas // _WATCHERS,
        "server_us": round((spent["orchestrator"] - began["orchestrator"]) * 1e6 / deltas, 1),
        "driver_us": round((spent["driver"] - began["driver"]) * 1e6 / deltas, 1),
    }


@asynccontextmanager
async def _watching(flow: Flow, run_id: str, seen: Watchers) -> AsyncIterator[None]:
    """Open all watches, over some connections as clients on one machine have."""
    address = flow.suite.endpoints["orchestrator"]
    seen.connections = [await connect(address, seen.told) for _ in range(_CONNECTIONS)]
    headers = {"authorization": f"Bearer {flow.suite.owner_token}"}
    request = pb.WatchExecutionRequest(execution_id=str(UUID(run_id))).SerializeToString()
    try:
        # Some at a time: what stands is read for each, and connections to the database are few.
        for first in range(0, _WATCHERS, _AT_ONCE):
            end = min(first + _AT_ONCE, _WATCHERS)
            for at in range(first, end):
                seen.connections[at % _CONNECTIONS].open(at, _WATCH, headers, request)
            await seen.stand(first, end)
        yield
        await seen.end()
    finally:
        for each in seen.connections:
            each.close()


async def first_picture() -> dict[str, Any]:
    """Milliseconds from `qflow run … --watch` in a terminal to the first picture of the run.

    `python_ms` of them are the interpreter's own start.
    """
    async with running() as flow:
        flows = flow.suite.home.root / "flows.py"
        await asyncio.to_thread(flows.write_text, _FLOWS, "utf-8")
        env = {**os.environ, "QFLOW_HOME": str(flow.suite.home.root), "TERM": "xterm-256color"}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        spans = [await asyncio.to_thread(_pictured_ms, flows, env) for _ in range(_STARTS + 1)][1:]
        bare = [await asyncio.to_thread(_python_ms) for _ in range(_STARTS)]
    report = figure(spans, "ms", "lower", target=300.0, floor=0.0)
    return report | {"python_ms": round(statistics.median(bare), 1)}


_FLOWS: Final = """
import qflow


@qflow.node(name="bench: one more")
def one_more(n: int) -> int:
    return n + 1


@qflow.workflow(name="bench: pictured")
def pictured(n: int) -> int:
    return one_more(n)
"""


def _pictured_ms(flows: Path, env: dict[str, str]) -> float:
    controller, terminal = pty.openpty()
    begin = time.perf_counter()
    command = [sys.executable, "-m", "qflow", "run", str(flows), "n=1", "--watch"]
    running_ = subprocess.Popen(
        command, env=env, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    said, shown = b"", 0.0
    while True:
        if not select.select([controller], [], [], 30)[0]:
            raise AssertionError(said)
        try:
            said += os.read(controller, 65_536)
        except OSError:  # it has ended
            break
        if not shown and b"one_more" in said:  # the graph of the workflow
            shown = (time.perf_counter() - begin) * 1000
    os.close(controller)
    assert running_.wait(30) == 0, said
    assert shown, said
    return shown


def _python_ms() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return (time.perf_counter() - begin) * 1000
