"""Runners on a Ray cluster of three nodes: placed where there is room, killed with their node."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio
from qflow.orchestrator.v1 import execution_pb2

from tests import factories
from tests.support.cluster import Cluster, OrchestratorProcess
from tests.support.database import Template
from tests.support.invariants import broken
from tests.support.suite_fixtures import discard

pytestmark = [
    pytest.mark.ray,
]

COMPLETED = execution_pb2.EXECUTION_STATUS_COMPLETED
_IDLE_S = 4.0
_NODE_BYTES = 3 * 1024**3
# Says that it has begun, and ends when the test lets it or it is begun for the second time.
_HELD = """
import os, time

def main(x: int) -> int:
    lines = open("/ledger/lines", "a+")
    lines.write(os.environ["QFLOW_RUN_ID"] + " " + os.environ["QFLOW_NODE_ID"] + "\\n")
    lines.flush()
    while not os.path.exists("/ledger/go"):
        time.sleep(0.02)
    return x + 1
"""


class RayNodes:
    """A head on which no runner has room, a plain node, and one with a GPU and a label."""

    def __init__(self, env: Mapping[str, str]) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        env = {**env, "RAY_USAGE_STATS_ENABLED": "0"}
        os.environ.update(env)  # what a node's operator sets; its workers inherit it
        try:
            common: dict[str, Any] = {"memory": _NODE_BYTES, "include_dashboard": False}
            head = {"num_cpus": 0, **common}
            self.cluster = RayCluster(initialize_head=True, head_node_args=head)
            self.plain = self.cluster.add_node(num_cpus=1, **common)
            self.rich = self.cluster.add_node(
                num_cpus=2, num_gpus=1, labels={"zone": "attic"}, **common
            )
        finally:
            for name in env:
                del os.environ[name]

    def runners_of(self, node: Any) -> list[psutil.Process]:
        """List the runners that a node has."""
        return [each for each in _below(node) if _command(each)[-1:] == ["services.runner"]]

    def kill(self, node: Any) -> None:
        """Have a node vanish with all that ran on it, as a machine does whose power fails."""
        gone = _below(node)
        [raylet] = node.all_processes["raylet"]
        for each in [psutil.Process(raylet.process.pid), *gone]:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def _below(node: Any) -> list[psutil.Process]:
    [raylet] = node.all_processes["raylet"]
    return psutil.Process(raylet.process.pid).children(recursive=True)


def _command(process: psutil.Process) -> list[str]:
    """Give a process's command; nothing of one that has ended."""
    with suppress(psutil.Error):
        return process.cmdline()
    return []


class Site:
    """An orchestrator, a placement, and the nodes that it places runners on."""

    def __init__(
        self, nodes: RayNodes, cluster: Cluster, orchestrator: OrchestratorProcess
    ) -> None:
        self.nodes = nodes
        self.cluster = cluster
        self.orchestrator = orchestrator

    def workflow(self, code: str = _HELD, **runner: Any) -> str:
        """Make a workflow of one node that requires this of its runner."""
        step = factories.node(self.cluster.sql, self.cluster.owner, code=code)
        return str(
            factories.workflow(
                self.cluster.sql,
                self.cluster.owner,
                nodes={"a": step},
                edges=[("", "x", "a", "x")],
                outputs=[("out", "a")],
                node_settings={"a": {"runner": runner}} if runner else None,
            )
        )

    async def start(self, workflow: str, x: int) -> str:
        return await self.cluster.start(lambda: self.orchestrator, workflow, x)

    async def finished(self, run: str) -> Any:
        return await self.cluster.finished(lambda: self.orchestrator, run)

    async def begun(self, run: str, times: int = 1) -> None:
        await until(lambda: self.cluster.begun()[f"{run} a"] >= times)

    def let_go(self) -> None:
        (self.cluster.ledger / "go").touch()


async def until(true: Callable[[], bool], *, timeout_s: float = 40.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():  # noqa: ASYNC110  # other processes bring it about
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def placed(migrated_template: Template) -> Iterator[tuple[RayNodes, Cluster]]:
    """Give the nodes, and what runs on their database; skip, or fail in CI, without Ray."""
    if importlib.util.find_spec("ray") is None:
        text = "Ray is missing: make test-ray installs it"
        if os.environ.get("QFLOW_REQUIRE_RAY"):
            pytest.fail(text)
        pytest.skip(text)
    folder = Path(tempfile.mkdtemp(prefix="qfr-", dir="/tmp"))
    with migrated_template.clone() as database, database.connect() as sql:
        cluster = Cluster(database, folder, sql)
        nodes = RayNodes(cluster.runner_env())
        try:
            yield nodes, cluster
        finally:
            nodes.cluster.shutdown()
    discard(folder)


@pytest_asyncio.fixture
async def site(placed: tuple[RayNodes, Cluster]) -> AsyncIterator[Site]:
    nodes, cluster = placed
    # Of the test before: they are ended without a word, and may be given something until then.
    await until(lambda: not [*nodes.runners_of(nodes.plain), *nodes.runners_of(nodes.rich)])
    (cluster.ledger / "go").unlink(missing_ok=True)
    orchestrator = cluster.orchestrator("a")
    await orchestrator.until_said("service_started")
    placing = cluster.runner(
        orchestrator,
        QFLOW_RUNNER_PLACEMENT="ray",
        QFLOW_RAY_ADDRESS=nodes.cluster.address,
        QFLOW_RAY_IDLE_S=str(_IDLE_S),
        QFLOW_RAY_MEMORY_BYTES=str(512 * 1024**2),
    )
    await placing.until_said("placing_with_ray", timeout_s=60)
    try:
        yield Site(nodes, cluster, orchestrator)
    finally:
        await cluster.stop()


async def test_a_node_goes_to_the_only_machine_that_has_what_it_asks_for(site: Site) -> None:
    """And one that asks for what no machine has is refused before it starts."""
    asks: dict[str, Any] = {"gpus": 1, "labels": {"zone": "attic"}, "memory_bytes": 1024**3}
    run = await site.start(site.workflow(**asks), 1)
    await site.begun(run)
    assert 1 == len(site.nodes.runners_of(site.nodes.rich))
    assert [] == site.nodes.runners_of(site.nodes.plain)
    site.let_go()
    assert COMPLETED == (await site.finished(run)).status
    with pytest.raises(grpc.aio.AioRpcError, match="needs a runner with 8 GPUs, and none has it"):
        await site.start(site.workflow(gpus=8), 1)


async def test_what_a_lost_machine_ran_is_done_again_on_another(site: Site) -> None:
    """R6: by its lease; the machine's share of the run is told once, and idle runners leave."""
    run = await site.start(site.workflow(), 1)
    await site.begun(run)
    lost, other = site.nodes.plain, site.nodes.rich
    if not site.nodes.runners_of(lost):  # Ray decides, and nothing binds it to either
        lost, other = other, lost
    [runner] = site.nodes.runners_of(lost)
    site.nodes.kill(lost)
    await site.begun(run, times=2)
    assert not runner.is_running()
    [_] = site.nodes.runners_of(other)
    site.let_go()
    execution = await site.finished(run)
    assert COMPLETED == execution.status
    assert {"out": 2} == json.loads(execution.output_json)
    assert {} == broken(site.cluster.sql)
    [(deliveries,)] = site.cluster.sql.execute(
        "SELECT delivery_count FROM node_executions WHERE workflow_execution_id = %s", (run,)
    ).fetchall()
    # One for each runner that was lost with it: on a machine without a breath the next one's lease
    # of seconds may lapse as well.
    assert site.cluster.begun()[f"{run} a"] - 1 == deliveries
    await until(lambda: [] == site.nodes.runners_of(other))
