"""How much of a process calls share, and where they go: said by nodes, seen in rows."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.test_attach import attached, run, single

__all__ = ["orchestra"]

COUNTS = "seen = []\ndef main(x: int) -> int:\n    seen.append(x)\n    return len(seen)\n"
IMAGE = "qflow-ci/debian:bookworm"  # .ci/base-image makes it


async def outputs(orchestra: Orchestra, workflow: str, times: int) -> list[int]:
    found = []
    for x in range(times):
        done = await run(orchestra, workflow, x)
        assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status, done
        found.append(json.loads(done.output_json)["out"])
    return found


@pytest.mark.parametrize(
    ("reuse", "returned", "sandboxes"),
    [
        ("warm", [1, 2, 3], 1),
        ("fork", [1, 1, 1], 1),
        ("fresh", [1, 1, 1], 1),
        ("container", [1, 1, 1], 3),
    ],
)
async def test_what_calls_share_is_what_the_node_says(
    orchestra: Orchestra, reuse: str, returned: list[int], sandboxes: int
) -> None:
    workflow = single(orchestra, COUNTS, reuse=reuse)
    async with orchestra.running(), attached(orchestra):
        assert returned == await outputs(orchestra, workflow, 3)
    rows = orchestra.rows("SELECT resource_limits->>'reuse', container_id FROM containers")
    assert [reuse] * sandboxes == [each[0] for each in rows]
    assert all(str(each[1]).startswith(("bubblewrap:", "landlock:")) for each in rows), rows


async def test_versions_of_one_environment_share_what_forks_them(orchestra: Orchestra) -> None:
    workflows = [single(orchestra, f"{COUNTS}# {at}\n", reuse="fork") for at in range(3)]
    async with orchestra.running(), attached(orchestra):
        for workflow in workflows:
            assert [1, 1] == await outputs(orchestra, workflow, 2)
    assert [(6,)] == orchestra.rows(
        "SELECT sum((resource_usage->>'attempts')::int) FROM containers HAVING count(*) = 1"
    )


async def test_code_of_another_author_never_meets_a_process_twice(orchestra: Orchestra) -> None:
    author = factories.user(orchestra.sql)
    theirs = factories.node(orchestra.sql, author, code=COUNTS)
    await orchestra.change("UPDATE python_nodes SET is_public = true")
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": theirs},
        edges=[("", "x", "a", "x")],
        outputs=[("out", "a")],
    )
    async with orchestra.running(), attached(orchestra):
        assert [1, 1] == await outputs(orchestra, str(workflow), 2)
    assert [("fork",)] == orchestra.rows("SELECT resource_limits->>'reuse' FROM containers")


async def refused(orchestra: Orchestra, workflow: str) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await orchestra.stub.StartExecution(
            pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x": 1}')
        )
    assert grpc.StatusCode.FAILED_PRECONDITION is told.value.code()
    return str(told.value.details())


async def test_a_requirement_that_no_runner_meets_stops_the_start(orchestra: Orchestra) -> None:
    asked: dict[str, Any] = {"labels": {"zone": "eu"}}
    workflow = single(orchestra, COUNTS, runner=asked)
    async with orchestra.running():
        async with attached(orchestra):
            assert "the label zone=eu" in await refused(orchestra, workflow)
        async with attached(orchestra, QFLOW_RUNNER_LABELS="zone=eu, disk=fast"):
            assert [1] == await outputs(orchestra, workflow, 1)
            gpus = single(orchestra, COUNTS, runner={"gpus": 64})
            assert "64 GPUs" in await refused(orchestra, gpus)
            strong = single(orchestra, COUNTS, runner={"isolation": "T4"})
            assert "QFLOW_DOCKER_RUNTIME" in await refused(orchestra, strong)


async def test_a_tier_that_is_missing_stops_the_start(orchestra: Orchestra) -> None:
    """A deployment that asks for containers, on a machine without a daemon."""
    workflow = single(orchestra, COUNTS)
    nowhere = {"QFLOW_MINIMUM_TIER": "T3", "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    async with orchestra.running(), attached(orchestra, **nowhere):
        assert "QFLOW_MINIMUM_TIER" in await refused(orchestra, workflow)
    said = (orchestra.home / "runner.log").read_text()
    assert "install docker" in said


@pytest.mark.docker
async def test_where_containers_are_asked_for_nodes_run_in_them(orchestra: Orchestra) -> None:
    """E15 at T3: the rows say so, and nothing is left when the runner has stopped."""
    workflow = single(orchestra, COUNTS, runner={"isolation": "T3"})
    env = {"QFLOW_MINIMUM_TIER": "T3", "QFLOW_DOCKER_IMAGE": IMAGE}
    async with orchestra.running(), attached(orchestra, **env):
        assert [1, 2] == await outputs(orchestra, workflow, 2)
    [row] = orchestra.rows(
        "SELECT container_id, resource_limits->>'isolation', status,"
        " (resource_usage->>'attempts')::int FROM containers"
    )
    assert str(row[0]).startswith("docker:qflow-")
    assert ("T3", "stopped", 2) == row[1:]
