"""What Ray costs: a node on a runner that it placed, against one on this machine's own."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
import psutil
from qflow.registry.v1 import workflow_pb2

from bench.figures import figure
from bench.flow import ONE, OTHER, SUM, Flow, running

_LABEL: Final = "bench-place"
_HERE, _RAY = "here", "ray"
_HELLOS: Final = 200
_ROUNDS: Final = 5
_DIAMONDS: Final = 100
_DIAMOND_NODES: Final = 5
_GIB: Final = 1024**3


class NoRay(Exception):  # noqa: N818 - it says what to install
    """The group is not installed."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A suite whose own runner has one label, and a Ray node that has another."""

    flow: Flow

    async def workflow(self, place: str, *, diamond: bool) -> str:
        """Make a workflow whose nodes go to runners of this label alone."""
        only = workflow_pb2.RunnerRequirements(labels={_LABEL: place})
        if not diamond:
            nodes = {"a": await self.flow.node(ONE)}
            return await self.flow.workflow(nodes, [("", "a", "x")], "a", runner=only)
        one, other, add = [await self.flow.node(code) for code in (ONE, OTHER, SUM)]
        nodes = {"a": one, "b": other, "c": one, "d": other, "e": add}
        edges = [("", "a", "x"), ("a", "b", "x"), ("a", "c", "x"), ("a", "d", "x")]
        edges += [("b", "e", "x"), ("c", "e", "y"), ("d", "e", "z")]
        return await self.flow.workflow(nodes, edges, "e", runner=only)


async def ray_dispatch() -> dict[str, Any]:
    """Milliseconds that a one-node run takes longer on a runner of Ray's; both in turns."""
    try:
        async with _placed() as placed:
            here = await placed.workflow(_HERE, diamond=False)
            there = await placed.workflow(_RAY, diamond=False)
            await _until_placed(placed.flow, there)
            for number in range(20):
                await placed.flow.run(here, number)
                await placed.flow.run(there, number)
            ours: list[float] = []
            theirs: list[float] = []
            for number in range(_HELLOS):
                theirs.append(await _hello_ms(placed.flow, here, number))
                ours.append(await _hello_ms(placed.flow, there, number))
    except NoRay as missing:
        return {"skipped": str(missing)}
    base = statistics.median(theirs)
    found = figure([each - base for each in ours], "ms", "lower", target=2.0, floor=0.0)
    return found | {"on_ray_ms": round(statistics.median(ours), 3), "here_ms": round(base, 3)}


async def ray_throughput() -> dict[str, Any]:
    """Part of the nodes per second of this machine's runner that one of Ray's makes; in turns."""
    try:
        async with _placed() as placed:
            here = await placed.workflow(_HERE, diamond=True)
            there = await placed.workflow(_RAY, diamond=True)
            await _until_placed(placed.flow, there)
            rates: dict[str, list[float]] = {here: [], there: []}
            for number in range(_ROUNDS + 1):
                for each in (here, there):
                    rate = await _rate(placed.flow, each)
                    if number:  # the first one warms it
                        rates[each].append(rate)
    except NoRay as missing:
        return {"skipped": str(missing)}
    base = statistics.median(rates[here])
    ratios = [each / base for each in rates[there]]
    found = figure(ratios, "x", "higher", target=0.8, floor=1.0)
    return found | {
        "on_ray_nodes_s": round(statistics.median(rates[there])),
        "here_nodes_s": round(base),
    }


async def _hello_ms(flow: Flow, workflow_id: str, number: int) -> float:
    begin = time.perf_counter()
    assert await flow.run(workflow_id, number) == number + 1
    return (time.perf_counter() - begin) * 1000


async def _rate(flow: Flow, workflow_id: str) -> float:
    begin = time.perf_counter()
    runs = await asyncio.gather(*(flow.start(workflow_id, x) for x in range(_DIAMONDS)))
    await flow.all_over(workflow_id)
    span = time.perf_counter() - begin
    assert [3 * (x + 2) for x in range(_DIAMONDS)] == [await flow.result(run) for run in runs]
    return _DIAMONDS * _DIAMOND_NODES / span


@asynccontextmanager
async def _placed() -> AsyncIterator[_Placed]:
    """Start a suite, a Ray node with all of the machine, and a placement between them."""
    try:
        from ray.cluster_utils import Cluster
    except ImportError:
        raise NoRay("Ray is missing: make test-ray installs it") from None
    async with running({"QFLOW_RUNNER_LABELS": f"{_LABEL}={_HERE}"}) as flow:
        settings = _settings_of_runner(flow)
        os.environ.update(settings)
        try:
            cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": os.cpu_count() or 1,
                    "memory": 4 * _GIB,
                    "labels": {_LABEL: _RAY},
                    "include_dashboard": False,
                },
            )
        finally:
            for name in settings:
                del os.environ[name]
        placing = subprocess.Popen(  # noqa: ASYNC220 - nothing else goes on
            [sys.executable, "-m", "services.runner"],
            env={
                **os.environ,
                **settings,
                "QFLOW_RUNNER_NAME": "placing",
                "QFLOW_RUNNER_LISTEN": f"unix:{flow.suite.home.root}/run/placing.sock",
                "QFLOW_RUNNER_PLACEMENT": "ray",
                "QFLOW_RAY_ADDRESS": str(cluster.address),
                "QFLOW_RAY_CPUS": str(os.cpu_count() or 1),
            },
            stdout=sys.stderr,
        )
        try:
            yield _Placed(flow)
        finally:
            placing.send_signal(signal.SIGTERM)
            placing.wait(40)
            cluster.shutdown()


def _settings_of_runner(flow: Flow) -> dict[str, str]:
    """Read what the suite's runner was told: the database, the token, the home."""
    found = psutil.Process(flow.suite.supervisor_pid).children(recursive=True)
    runner = next(each for each in found if each.cmdline()[-1:] == ["services.runner"])
    told = runner.environ()
    dropped = {"QFLOW_RUNNER_LABELS", "QFLOW_METRICS_LISTEN", "QFLOW_RUNNER_METRICS_LISTEN"}
    return {
        name: value
        for name, value in told.items()
        if name.startswith("QFLOW_") and name not in dropped
    }


async def _until_placed(flow: Flow, workflow_id: str) -> None:
    """Run until it is refused no more: the placement listens then, and its runner is there."""
    async with asyncio.timeout(90):
        while True:
            try:
                await flow.run(workflow_id, 0)
            except grpc.aio.AioRpcError as refused:
                if refused.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                await asyncio.sleep(0.5)
            else:
                return
