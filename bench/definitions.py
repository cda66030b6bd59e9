"""The registry's benches: reading a definition from the cache, and checking a large one."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

import psutil
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as pb
from qflow.registry.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from bench import floors
from bench.figures import figure
from bench.flow import ONE, SUM, Flow, running

if TYPE_CHECKING:
    from qflow.registry.v1.workflow_service_pb2_grpc import WorkflowServiceAsyncStub

_ROUNDS: Final = 7
_READS: Final = 4_000
_AT_ONCE: Final = 32
_READS_TARGET_PER_S: Final = 2_000.0
_CHECKS: Final = 30
_CHECK_EDGES: Final = 1_000
_CHECK_TARGET_MS: Final = 50.0


async def get_workflow() -> dict[str, Any]:
    """Count the calls of GetWorkflow that the registry answers in a second of one core's time.

    Eleven nodes, whole, through every stage of the server, by 32 callers at once.
    """
    async with running() as flow:
        one, add = await flow.node(ONE), await flow.node(SUM)
        places = {f"n{at}": one for at in range(10)} | {"sum": add}
        edges = [("", "n0", "x"), *((f"n{at}", f"n{at + 1}", "x") for at in range(9))]
        edges += [("n7", "sum", "x"), ("n8", "sum", "y"), ("n9", "sum", "z")]
        workflow_id = await flow.workflow(places, edges, "sum")
        stub: WorkflowServiceAsyncStub = WorkflowServiceStub(flow.registry)
        request = pb.GetWorkflowRequest(workflow_id=workflow_id)
        size = (await stub.GetWorkflow(request)).ByteSize()
        registry = _registry(flow)
        await _read(stub, request, _READS)
        rates, walls = [], []
        for _ in range(_ROUNDS):
            cpu, begin = _spent_s(registry), time.perf_counter()
            await _read(stub, request, _READS)
            walls.append(_READS / (time.perf_counter() - begin))
            rates.append(_READS / (_spent_s(registry) - cpu))
    floor = await floors.answers_per_s(size)
    told = figure(rates, "calls/s", "higher", target=_READS_TARGET_PER_S, floor=floor)
    return told | {"wall_calls_per_s": round(statistics.median(walls)), "answer_bytes": size}


async def _read(stub: WorkflowServiceAsyncStub, request: pb.GetWorkflowRequest, count: int) -> None:
    async def some() -> None:
        for _ in range(count // _AT_ONCE):
            await stub.GetWorkflow(request)

    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))


async def check_workflow() -> dict[str, Any]:
    """Time the check of a definition of 1,000 edges in milliseconds; the median of 30."""
    async with running() as flow:
        one, add = await flow.node(ONE), await flow.node(SUM)
        request = pb.CheckWorkflowRequest(definition=_thousand_edges(one, add))
        stub: WorkflowServiceAsyncStub = WorkflowServiceStub(flow.registry)
        for _ in range(3):
            assert (await stub.CheckWorkflow(request)).activatable
        registry, walls, spans = _registry(flow), [], []
        for _ in range(_CHECKS):
            cpu, begin = _spent_s(registry), time.perf_counter()
            await stub.CheckWorkflow(request)
            walls.append((time.perf_counter() - begin) * 1000)
            spans.append((_spent_s(registry) - cpu) * 1000)
    told = figure(walls, "ms", "lower", target=_CHECK_TARGET_MS, floor=0.0)
    return told | {"server_cpu_ms": round(statistics.mean(spans), 2)}


def _thousand_edges(one: str, add: str) -> workflow_pb2.WorkflowDefinition:
    """Join 250 sums, each with the three before it, to as many that take one value."""
    nodes, edges = [], [("", "x", "n0", "x")]
    for at in range(250):
        nodes += [
            workflow_pb2.WorkflowNode(id=f"n{at}", node_id=one),
            workflow_pb2.WorkflowNode(id=f"s{at}", node_id=add),
        ]
        edges += [(f"n{at}", "result", f"s{at}", name) for name in "xyz"]
        if at:
            edges.append((f"s{at - 1}", "result", f"n{at}", "x"))
    assert len(edges) == _CHECK_EDGES
    return workflow_pb2.WorkflowDefinition(
        nodes=nodes,
        connections=[
            workflow_pb2.Connection(
                source_node=source, source_output=output, target_node=target, target_input=name
            )
            for source, output, target, name in edges
        ],
    )


def _registry(flow: Flow) -> psutil.Process:
    return psutil.Process(flow.suite.marks()["registry"].pid)


def _spent_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
