"""Telemetry beside the real engine: what a real run leaves behind can be read."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from qflow.telemetry.v1 import telemetry_service_pb2 as pb
from qflow.telemetry.v1.telemetry_service_pb2_grpc import TelemetryServiceStub

from tests.support.client import COMPLETED, FAILED, Step, connected
from tests.support.suite import Suite

DOUBLE = "def main(x: int) -> int:\n    return x * 2\n"
BREAK = "def main(x: int) -> int:\n    raise ValueError('a canary of mine')\n"


async def test_a_real_run_leaves_metrics_and_a_failed_one_its_error(suite: Suite) -> None:
    """I23."""
    async with connected(suite) as client, suite.channel("telemetry") as channel:
        double = await client.create_node("double", DOUBLE)
        fails = await client.create_node("breaks", BREAK)
        good = await client.create_workflow(
            "good", [Step("a", double)], [".x > a.x"], inputs={"x": "int"}
        )
        bad = await client.create_workflow(
            "bad", [Step("a", fails)], [".x > a.x"], inputs={"x": "int"}
        )
        done = await client.run(good, {"x": 1})
        failed = await client.run(bad, {"x": 1})
        assert (COMPLETED, FAILED) == (done.status, failed.status)

        telemetry: Any = TelemetryServiceStub(channel)
        for execution in (done, failed):
            values = await _metrics(telemetry, execution.id)
            assert 1 == values["execution_node_count"]
            assert values["execution_duration_ms"] > 0
            assert values["execution_queue_ms"] >= 0
            assert values["execution_cpu_seconds"] >= 0
        errors = await telemetry.ListErrors(pb.ListErrorsRequest(execution_id=failed.id))
        [error] = errors.errors
        assert "a canary of mine" in error.error_message
        assert "main" in error.stack_trace
        none = await telemetry.ListErrors(pb.ListErrorsRequest(execution_id=done.id))
        assert [] == [*none.errors]


async def _metrics(telemetry: Any, execution_id: str) -> dict[str, float]:
    """Wait until the run is measured, which telemetry does within seconds of its end."""
    request = pb.ListMetricsRequest(execution_id=execution_id)
    async with asyncio.timeout(30):
        while True:
            answer = await telemetry.ListMetrics(request)
            if answer.metrics:
                return {metric.metric_name: metric.metric_value for metric in answer.metrics}
            await asyncio.sleep(0.1)


async def test_each_service_tells_of_what_it_leans_on(suite: Suite) -> None:
    """F11, F13, F27: by grpc.health, without a token, and by the names of its own services."""
    leans_on = {
        "registry": ("postgres", "redis"),
        "orchestrator": ("postgres",),
        "runner": ("postgres", "disk"),
        "telemetry": ("postgres", "disk"),
    }
    for service, dependencies in leans_on.items():
        own = f"qflow.{service}"
        async with suite.channel(service) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for name in ("", own, *(f"{own}.{each}" for each in dependencies), _ITS[service]):
                # On a busy machine a dependency may be silent for a moment.
                watch = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=60)
                while (await watch.read()).status != health_pb2.HealthCheckResponse.SERVING:
                    pass
                watch.cancel()


_ITS = {
    "registry": "qflow.registry.v1.NodeService",
    "orchestrator": "qflow.orchestrator.v1.ExecutionService",
    "runner": "qflow.runner.v1.RunnerService",
    "telemetry": "qflow.telemetry.v1.TelemetryService",
}
