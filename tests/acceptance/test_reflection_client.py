"""A client that has no stubs: what it can do, it learnt from the servers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import grpc
import pytest

from tests.support.stubless import Stubless
from tests.support.suite import Suite


@pytest.fixture
def clients(suite: Suite) -> Iterator[dict[str, Stubless]]:
    made = {
        name: Stubless(suite.endpoints[name], suite.owner_token)
        for name in ("registry", "orchestrator", "runner", "telemetry")
    }
    yield made
    for one in made.values():
        one.channel.close()


def test_every_service_lists_itself(clients: dict[str, Stubless]) -> None:
    listed = {name: set(one.database.get_services()) for name, one in clients.items()}
    for name, services in listed.items():
        assert [] != [each for each in services if each.startswith(f"qflow.{name}.v1.")]
        assert "grpc.health.v1.Health" in services
        assert "grpc.reflection.v1.ServerReflection" in services


def test_a_run_is_started_and_watched_without_stubs(clients: dict[str, Stubless]) -> None:
    registry, orchestrator = clients["registry"], clients["orchestrator"]
    code = "def twice(x: int) -> int:\n    return 2 * x\n"
    created = {"name": "twice", "code": code}
    [node] = registry.call("qflow.registry.v1.NodeService/CreateNode", created)
    definition = {
        "nodes": [{"id": "a", "nodeId": node["node"]["id"]}],
        "connections": [
            {"sourceOutput": "x", "targetNode": "a", "targetInput": "x"},
        ],
        "inputs": [{"name": "x"}],
    }
    [workflow] = registry.call(
        "qflow.registry.v1.WorkflowService/CreateWorkflow",
        {"name": "twice", "definition": definition, "activate": True},
    )
    executions = "qflow.orchestrator.v1.ExecutionService"
    [started] = orchestrator.call(
        f"{executions}/StartExecution",
        {"workflowId": workflow["workflow"]["id"], "inputJson": '{"x": 21}'},
    )
    request = {"executionId": started["execution"]["id"]}
    steps = list(orchestrator.call(f"{executions}/WatchExecution", request))
    assert "snapshot" in steps[0]
    ends = [step["delta"]["execution"] for step in steps if "execution" in step.get("delta", {})]
    last = ends[-1] if ends else steps[0]["snapshot"]["execution"]
    assert "EXECUTION_STATUS_COMPLETED" == last["status"]
    assert {"a": 42} == json.loads(last["outputJson"])


def test_a_wrong_token_starts_nothing(suite: Suite) -> None:
    nobody = Stubless(suite.endpoints["orchestrator"], "wrong")
    request = {"workflowId": "0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a"}
    with pytest.raises(grpc.RpcError) as refused:
        list(nobody.call("qflow.orchestrator.v1.ExecutionService/StartExecution", request))
    nobody.channel.close()
    assert grpc.StatusCode.UNAUTHENTICATED == refused.value.code()
