"""What nodes reach of the network: said by nodes, allowed by deployments, seen in rows."""

from __future__ import annotations

import json

import grpc
import pytest
from qflow.isolation.v1 import isolation_pb2
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.runner.v1 import runner_service_pb2 as runner_pb
from qflow.runner.v1.runner_service_pb2_grpc import RunnerServiceStub

from services.kit.rpc.channel import open_channel
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.test_attach import attached, run, single

__all__ = ["orchestra"]

# Without an internet in tests: what the proxy says tells how far a request got.
_ASKS = """
import json, urllib.error, urllib.request
def main(x: int) -> int:
    said = []
    for host in ("allowed.invalid", "other.invalid", "127.0.0.2"):
        try:
            urllib.request.urlopen("http://%s/" % host, timeout=10)
        except urllib.error.HTTPError as refused:
            said.append([refused.code, refused.read().decode().partition(": ")[2].strip()])
        except OSError as problem:
            said.append([0, type(problem).__name__])
    print(json.dumps(said))
    return x
"""


async def said(orchestra: Orchestra, workflow: str) -> list[list[object]]:
    done = await run(orchestra, workflow)
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status, done
    [(tail,)] = orchestra.rows(
        "SELECT stdout_tail FROM node_executions WHERE workflow_execution_id = %s", done.id
    )
    return list(json.loads(str(tail)))


@pytest.mark.parametrize("reuse", ["warm", "fork", "fresh"])
async def test_only_hosts_that_node_and_deployment_allow_are_reached(
    orchestra: Orchestra, reuse: str
) -> None:
    """B104: a host that one of both leaves out, and an address that is not public."""
    hosts = ["allowed.invalid", "127.0.0.2"]
    workflow = single(orchestra, _ASKS, network="egress", egress_hosts=hosts, reuse=reuse)
    env = {"QFLOW_EGRESS_HOSTS": "*.invalid, 127.0.0.2"}
    async with orchestra.running(), attached(orchestra, **env) as runner:
        allowed, other, own = await said(orchestra, workflow)
        assert [502, "the name allowed.invalid is not known"] == allowed
        assert [403, "other.invalid:80 is not among the hosts that this node may reach"] == other
        assert [403, "127.0.0.2 has no public address, and only those are allowed"] == own
        line = next(each for each in runner.said().splitlines() if "service_started" in each)
        address, token = json.loads(line)["addresses"][0], orchestra.owner.token
        async with open_channel(address, token) as channel:
            stub = RunnerServiceStub(channel)
            found = (await stub.GetRunner(runner_pb.GetRunnerRequest())).runner
            [row] = (await stub.ListContainers(runner_pb.ListContainersRequest())).containers
    assert [isolation_pb2.NETWORK_EGRESS] == list(found.networks)
    assert ["*.invalid", "127.0.0.2"] == list(found.egress_hosts)
    assert isolation_pb2.NETWORK_EGRESS == row.network
    assert hosts == list(row.egress_hosts)


async def test_a_network_that_no_deployment_allows_stops_the_start(orchestra: Orchestra) -> None:
    egress = single(orchestra, _ASKS, network="egress")
    host = single(orchestra, _ASKS, network="host")
    nothing = single(orchestra, _ASKS, network="none")
    async with orchestra.running():
        async with attached(orchestra):
            assert "QFLOW_EGRESS_HOSTS" in await refused(orchestra, egress)
            assert "QFLOW_NETWORK_HOST" in await refused(orchestra, host)
            assert [[0, "URLError"]] * 3 == await said(orchestra, nothing)
        async with attached(orchestra, QFLOW_NETWORK_HOST="1"):
            await said(orchestra, host)
            assert "QFLOW_EGRESS_HOSTS" in await refused(orchestra, egress)
    rows = orchestra.rows("SELECT resource_limits->>'network' FROM containers ORDER BY created_at")
    assert [("none",), ("host",)] == rows


async def refused(orchestra: Orchestra, workflow: str) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as told:
        await orchestra.stub.StartExecution(
            pb.StartExecutionRequest(workflow_id=workflow, input_json='{"x": 1}')
        )
    assert grpc.StatusCode.FAILED_PRECONDITION is told.value.code()
    return str(told.value.details())
