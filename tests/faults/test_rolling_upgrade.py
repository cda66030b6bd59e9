"""F36, F37: the version before the last migration runs beside this one, over the same database."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
from qflow.orchestrator.v1 import execution_pb2

from tests.faults.test_members import cluster
from tests.support.cluster import Cluster, OrchestratorProcess
from tests.support.invariants import broken

__all__ = ["cluster"]
pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

COMPLETED = execution_pb2.EXECUTION_STATUS_COMPLETED
_ROOT = Path(__file__).parents[2]
_RUNS = 20


def git(*arguments: str) -> str:
    said = subprocess.run(
        ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    return said.stdout.strip()


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Give what has a process run the code from before the last migration was made."""
    last = max((_ROOT / "migrations" / "versions").glob("0*.py"))
    try:
        made = git("log", "-1", "--format=%H", "--diff-filter=A", "--", str(last))
        commit = git("rev-parse", f"{made}^" if made else "HEAD")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no history of this repository is here")
    folder = tmp_path_factory.mktemp("before")
    archive = folder / "code.tar"
    git("archive", "-o", str(archive), commit, "services", "clients/python")
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    return {"PYTHONPATH": f"{folder}:{folder}/clients/python", "PYTHONSAFEPATH": "1"}


async def one_goes(
    cluster: Cluster,
    workflow: str,
    goes: OrchestratorProcess,
    number: signal.Signals,
    *,
    stays: OrchestratorProcess,
) -> None:
    """Start runs at both, and have the one that stays end them all."""
    starts = [
        cluster.start(partial(_one, each), workflow, x)
        for each in (goes, stays)
        for x in range(_RUNS)
    ]
    runs = await asyncio.gather(*starts)
    goes.send(number)
    ends = await asyncio.gather(*(cluster.finished(partial(_one, stays), run) for run in runs))
    assert {COMPLETED} == {each.status for each in ends}
    assert "flush_refused" not in goes.said() + stays.said()


def _one(one: OrchestratorProcess) -> OrchestratorProcess:
    return one


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_versions_take_each_others_runs(
    cluster: Cluster, before: dict[str, str], number: signal.Signals
) -> None:
    """The new one goes on with what the old one began, and an old one that is gone back to too."""
    old = cluster.orchestrator("a", **before)
    await old.until_said("service_started")
    runner = cluster.runner(old)
    await runner.until_said("attached", timeout_s=90)
    new = cluster.orchestrator("b")
    await new.until_said("service_started")
    await runner.until_said("attached", times=2)
    workflow = cluster.chain()
    await one_goes(cluster, workflow, old, number, stays=new)
    again = cluster.orchestrator("a", **before)
    await again.until_said("service_started")
    await one_goes(cluster, workflow, new, number, stays=again)
    assert {} == broken(cluster.sql)
