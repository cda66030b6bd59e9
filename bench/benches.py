"""The benches by name. Each gives value, unit, target, floor and spread of one run."""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

import psutil

from bench import create_node as creating
from bench import floors
from bench.backups import backup_gigabyte
from bench.client import cli_help, client_call, local_run, sdk_overhead
from bench.costs import costs, spent
from bench.definitions import check_workflow, get_workflow
from bench.environments import known_environment, new_environment
from bench.figures import figure as _figure
from bench.flow import ONE, OTHER, SUM, Flow, running
from bench.growth import growth
from bench.lists import list_nodes, search_nodes
from bench.metrics import metric_points, metrics_cost, percentiles
from bench.ray_cluster import ray_dispatch, ray_throughput
from bench.retention import retention
from bench.sandboxes import cold_docker, cold_sandbox, fork, warm_docker, warm_over_bare
from bench.scale import fan, large_map, load
from bench.security import refusals, secure_cost
from bench.simulated import simulation
from bench.standing import idle_schedules, million_finished, waiting_memory
from bench.takeover import standby, takeover
from bench.unary import unary
from bench.values import file_gigabyte, numpy_edge
from bench.watchers import first_picture, watchers

Bench = Callable[[], Coroutine[Any, Any, dict[str, Any]]]

_ROUNDS: Final = 7
_CHAIN_NODES: Final = 100
_DIAMONDS: Final = 200
_DIAMOND_NODES: Final = 5
_HELLOS: Final = 200
_CHAIN_FLOORS: Final = 2
_HELLO_TARGET_MS: Final = 3.0
_IDLE_S: Final = 30.0
_ROOT: Final = Path(__file__).resolve().parent.parent


async def chain() -> dict[str, Any]:
    """Milliseconds per node of 100 no-op nodes in sequence, alternating two node versions."""
    async with running() as flow:
        nodes = [await flow.node(ONE), await flow.node(OTHER)]
        places = {f"n{at}": nodes[at % 2] for at in range(_CHAIN_NODES)}
        edges = [("", "n0", "x")]
        edges += [(f"n{at}", f"n{at + 1}", "x") for at in range(_CHAIN_NODES - 1)]
        workflow_id = await flow.workflow(places, edges, f"n{_CHAIN_NODES - 1}")
        floor = await floors.node_ms(flow.suite.database_url)
        for _ in range(3):
            await flow.run(workflow_id, 0)
        before, spans = await spent(flow), []
        for number in range(_ROUNDS):
            begin = time.perf_counter()
            result = await flow.run(workflow_id, number)
            spans.append((time.perf_counter() - begin) * 1000 / _CHAIN_NODES)
            assert result == number + _CHAIN_NODES, result
        told = await costs(flow, before, _ROUNDS * _CHAIN_NODES)
    total = sum(floor.values())
    return (
        _figure(spans, "ms/node", "lower", target=_CHAIN_FLOORS * total, floor=total) | floor | told
    )


async def many() -> dict[str, Any]:
    """Nodes per second of 200 five-node diamonds at once, on everything this machine has."""
    async with running() as flow:
        one, other, add = [await flow.node(code) for code in (ONE, OTHER, SUM)]
        places = {"a": one, "b": other, "c": one, "d": other, "e": add}
        edges = [("", "a", "x"), ("a", "b", "x"), ("a", "c", "x"), ("a", "d", "x")]
        edges += [("b", "e", "x"), ("c", "e", "y"), ("d", "e", "z")]
        workflow_id = await flow.workflow(places, edges, "e")
        floor = await floors.transactions_per_s(flow.suite.database_url)
        for _ in range(2):
            await _diamonds(flow, workflow_id)
        before = await spent(flow)
        rates = [await _diamonds(flow, workflow_id) for _ in range(_ROUNDS)]
        told = await costs(flow, before, _ROUNDS * _DIAMONDS * _DIAMOND_NODES)
    return _figure(rates, "nodes/s", "higher", target=1.1 * floor, floor=floor) | told


async def _diamonds(flow: Flow, workflow_id: str) -> float:
    begin = time.perf_counter()
    runs = await asyncio.gather(*(flow.start(workflow_id, x) for x in range(_DIAMONDS)))
    await flow.result(runs[-1])
    await flow.all_over(workflow_id)
    span = time.perf_counter() - begin
    results = await asyncio.gather(*(flow.result(run) for run in runs))
    assert results == [3 * (x + 2) for x in range(_DIAMONDS)]
    return _DIAMONDS * _DIAMOND_NODES / span


async def hello() -> dict[str, Any]:
    """Milliseconds of one call that runs one node, warm; the median of 200.

    `two_calls_ms` is the same by a start and a wait.
    """
    async with running() as flow:
        workflow_id = await flow.workflow({"a": await flow.node(ONE)}, [("", "a", "x")], "a")
        floor = await floors.node_ms(flow.suite.database_url)
        await _hellos(flow.run, workflow_id, 20)
        apart = await _hellos(flow.run, workflow_id, _HELLOS)
        await _hellos(flow.execute, workflow_id, 20)
        before = await spent(flow)
        spans = await _hellos(flow.execute, workflow_id, _HELLOS)
        told = await costs(flow, before, _HELLOS, sandboxes=1)
    # Two commits stand on its way, the start's and the end's; the target is the finished engine's.
    total = sum(floor.values()) + floor["commit_ms"]
    figure = _figure(spans, "ms", "lower", target=_HELLO_TARGET_MS, floor=total)
    two_calls_ms = round(statistics.median(apart), 3)
    told |= {"p99": round(_p99(spans), 3)}
    told |= {"two_calls_ms": two_calls_ms, "two_calls_p99": round(_p99(apart), 3)}
    return figure | floor | told


async def _hellos(
    run: Callable[[str, int], Awaitable[int]], workflow_id: str, count: int
) -> list[float]:
    spans = []
    for number in range(count):
        begin = time.perf_counter()
        assert await run(workflow_id, number) == number + 1
        spans.append((time.perf_counter() - begin) * 1000)
    return spans


def _p99(spans: list[float]) -> float:
    return sorted(spans)[int(len(spans) * 0.99)]


async def idle() -> dict[str, Any]:
    """Percent of one core that the whole idle suite takes."""
    async with running() as flow:
        processes = _processes(flow)
        await asyncio.sleep(15)  # what starting left over settles
        samples = []
        for _ in range(3):
            before, begin = _cpu_s(processes), time.perf_counter()
            await asyncio.sleep(_IDLE_S / 3)
            spent = _cpu_s(_processes(flow)) - before
            samples.append(100 * spent / (time.perf_counter() - begin))
    return _figure(samples, "% of a core", "lower", target=2.0, floor=0.0)


async def idle_memory() -> dict[str, Any]:
    """Megabytes resident for all processes of the idle suite, shared pages counted once."""
    async with running() as flow:
        workflow_id = await flow.workflow({"a": await flow.node(ONE)}, [("", "a", "x")], "a")
        assert await flow.run(workflow_id, 1) == 2
        await asyncio.sleep(15)
        samples, resident, by_name = [], 0.0, {}
        for _ in range(3):
            sizes = {each.pid: each.memory_full_info() for each in _processes(flow)}
            samples.append(sum(size.pss for size in sizes.values()) / 1e6)
            resident = sum(size.rss for size in sizes.values()) / 1e6
            by_name = {
                _name(each): round(each.memory_full_info().pss / 1e6, 1)
                for each in _processes(flow)
            }
    figure = _figure(samples, "MB", "lower", target=400.0, floor=0.0)
    return figure | {"rss_sum": round(resident, 1), "largest": _largest(by_name)}


async def demo() -> dict[str, Any]:
    """Seconds of `make demo` in a fresh clone with a warm package cache, to its end."""
    spans = []
    for _ in range(3):
        folder = Path(tempfile.mkdtemp(prefix="qfd-", dir="/tmp"))
        try:
            _run(["git", "clone", "-q", str(_ROOT), str(folder / "clone")], folder)
            begin = time.perf_counter()
            _run(["make", "demo"], folder / "clone")
            spans.append(time.perf_counter() - begin)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return _figure(spans, "s", "lower", target=60.0, floor=0.0)


async def create_node() -> dict[str, Any]:
    """Milliseconds of CreateNode with a source of 1,000 lines and nothing to lock."""
    async with running() as flow:
        spans = await creating.spans_ms(flow)
    figure = _figure(spans, "ms", "lower", target=100.0, floor=creating.floor_ms())
    return figure | {"lines": creating.LINES}


def _run(command: list[str], folder: Path) -> None:
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("QFLOW_")}
    subprocess.run(command, cwd=folder, env=inherited, check=True, stdout=sys.stderr)


def _processes(flow: Flow) -> list[psutil.Process]:
    root = psutil.Process(flow.suite.supervisor_pid)
    return [root, *root.children(recursive=True)]


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(each.cpu_times()[:2]) for each in processes)


def _name(process: psutil.Process) -> str:
    return f"{process.pid} {' '.join(process.cmdline()[-3:])[:60] or process.name()}"


def _largest(by_name: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(by_name.items(), key=lambda each: -each[1])[:8])


BENCHES: Final[Mapping[str, Bench]] = {
    "chain": chain,
    "many": many,
    "fan": fan,
    "load": load,
    "large_map": large_map,
    "hello": hello,
    "idle": idle,
    "idle_memory": idle_memory,
    "idle_schedules": idle_schedules,
    "million_finished": million_finished,
    "waiting_memory": waiting_memory,
    "takeover": takeover,
    "standby": standby,
    "demo": demo,
    "list_nodes": list_nodes,
    "search_nodes": search_nodes,
    "get_workflow": get_workflow,
    "check_workflow": check_workflow,
    "create_node": create_node,
    "simulation": simulation,
    "known_environment": known_environment,
    "new_environment": new_environment,
    "numpy_edge": numpy_edge,
    "file_gigabyte": file_gigabyte,
    "warm_over_bare": warm_over_bare,
    "fork": fork,
    "cold_sandbox": cold_sandbox,
    "warm_docker": warm_docker,
    "cold_docker": cold_docker,
    "unary": unary,
    "local_run": local_run,
    "client_call": client_call,
    "sdk_overhead": sdk_overhead,
    "cli_help": cli_help,
    "first_picture": first_picture,
    "watchers": watchers,
    "backup_gigabyte": backup_gigabyte,
    "metric_points": metric_points,
    "percentiles": percentiles,
    "metrics_cost": metrics_cost,
    "secure_cost": secure_cost,
    "refusals": refusals,
    "retention": retention,
    "growth": growth,
    "ray_dispatch": ray_dispatch,
    "ray_throughput": ray_throughput,
}
