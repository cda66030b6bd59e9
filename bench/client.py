"""The Python client's benches: what it adds to the stubs, a local run, the start of the command."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import qflow
from qflow.client.client import Client
from qflow.client.contexts import of_home
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1 import execution_service_pb2_grpc as pb_grpc

from bench.figures import figure
from bench.flow import running

_ROUNDS: Final = 9
_NODES: Final = 100
_CALLS: Final = 500
_PAIRS: Final = 25
_STARTS: Final = 20


def one_more(n: int) -> int:
    """Be as good as nothing: what is measured stands around it."""
    return n + 1


ONE: Final = qflow.node(one_more)


@qflow.workflow
def line(n: int) -> int:
    """Call a hundred nodes in a line."""
    for _ in range(_NODES):
        n = ONE(n)
    return n


async def local_run() -> dict[str, Any]:
    """Microseconds per node of a local run of 100 nodes, without any server."""
    line.run_local(0)
    spans = []
    for number in range(_ROUNDS):
        begin = time.perf_counter()
        result = line.run_local(number)
        spans.append((time.perf_counter() - begin) * 1e6 / _NODES)
        assert result == number + _NODES, result
    return figure(spans, "us/node", "lower", target=50.0, floor=0.0)


async def client_call() -> dict[str, Any]:
    """Microseconds that the client adds to a unary call over the raw stub, in turns."""
    async with running() as flow, Client(of_home(flow.suite.home.root)) as client:
        stub = client.connection.stub("orchestrator", pb_grpc.ExecutionServiceStub)
        metadata = (("authorization", f"Bearer {client.context.token}"),)
        request = pb.ListExecutionsRequest(page_size=1)
        added, raw = [], []
        for _ in range(_ROUNDS):
            begin = time.perf_counter()
            for _ in range(_CALLS):
                await stub.ListExecutions(request, metadata=metadata, timeout=60)
            bare = (time.perf_counter() - begin) * 1e6 / _CALLS
            begin = time.perf_counter()
            for _ in range(_CALLS):
                await client.connection.call(stub.ListExecutions, request)
            raw.append(bare)
            added.append((time.perf_counter() - begin) * 1e6 / _CALLS - bare)
    told = figure(added, "us/call", "lower", target=30.0, floor=0.0)
    return told | {"stub_us": round(statistics.median(raw), 1)}


@qflow.workflow
def hello(n: int) -> int:
    """Call one node."""
    return ONE(n)


async def sdk_overhead() -> dict[str, Any]:
    """Percent that the client adds to a run of one node, over the raw stubs, run by run in turns.

    Both start it and wait for what it gives; `added_us` is the client's own processor time a run.
    """
    async with running() as flow, Client(of_home(flow.suite.home.root)) as client:
        stub = client.connection.stub("orchestrator", pb_grpc.ExecutionServiceStub)
        metadata = (("authorization", f"Bearer {client.context.token}"),)
        stored = await client.push(hello)

        async def raw(n: int) -> None:
            started = await stub.StartExecution(
                pb.StartExecutionRequest(
                    workflow_id=stored.id,
                    workflow_version=stored.version,
                    input_json=json.dumps({"n": n}),
                    request_id=str(uuid.uuid4()),
                ),
                metadata=metadata,
                timeout=60,
            )
            wait = pb.WaitExecutionRequest(execution_id=started.execution.id)
            wait.timeout.FromSeconds(50)
            ended = await stub.WaitExecution(wait, metadata=metadata, timeout=60)
            assert json.loads(ended.execution.output_json) == {"result": n + 1}

        async def typed(n: int) -> None:
            assert await client.run(hello, n) == n + 1

        await _timed(raw, _PAIRS), await _timed(typed, _PAIRS)  # warm
        more, bare, added = [], [], []
        for _ in range(_ROUNDS):
            plain, ours = [], []
            for _ in range(_PAIRS):  # what follows another is not the same as what goes before
                plain.append(await _timed(raw))
                ours += [await _timed(typed), await _timed(typed)]
                plain.append(await _timed(raw))
            took, took_ours = (statistics.median(e.took_us for e in each) for each in (plain, ours))
            bare.append(took)
            more.append((took_ours / took - 1) * 100)
            spent, spent_ours = (
                statistics.median(each.spent_us for each in those) for those in (plain, ours)
            )
            added.append(spent_ours - spent)
    told = figure(more, "%", "lower", target=5.0, floor=0.0)
    return told | {
        "stub_us": round(statistics.median(bare), 1),
        "added_us": round(statistics.median(added), 1),
    }


class Took(NamedTuple):
    """What something took of the clock and of this thread."""

    took_us: float
    spent_us: float


async def _timed(does: Callable[[int], Awaitable[None]], times: int = 1) -> Took:
    begin, spent = time.perf_counter(), time.thread_time()
    for number in range(times):
        await does(number)
    return Took((time.perf_counter() - begin) * 1e6, (time.thread_time() - spent) * 1e6)


async def cli_help() -> dict[str, Any]:
    """Milliseconds from `qflow --help` to its end, compiled as it is after a first start."""
    command = [sys.executable, "-m", "qflow", "--help"]
    env = {name: each for name, each in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = f"/tmp/qfc-{uuid.uuid4().hex[:8]}"
    spans = []
    for number in range(_STARTS + 1):
        begin = time.perf_counter()
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)  # noqa: ASYNC221  # nothing else runs
        if number:  # the first one compiles
            spans.append((time.perf_counter() - begin) * 1000)
    return figure(spans, "ms", "lower", target=150.0, floor=0.0)
