"""Run the weather example on a suite that runs: what `make demo` shows.

It uses nothing but the generated stubs, so every step can be taken over into a program of one's
own, in any language that has stubs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as executions_pb
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub
from qflow.registry.v1 import node_pb2, workflow_pb2
from qflow.registry.v1 import node_service_pb2 as nodes_pb
from qflow.registry.v1 import workflow_service_pb2 as workflows_pb
from qflow.registry.v1.node_service_pb2_grpc import NodeServiceStub
from qflow.registry.v1.workflow_service_pb2_grpc import WorkflowServiceStub
from qflow.runner.v1 import runner_service_pb2 as runners_pb
from qflow.runner.v1.runner_service_pb2_grpc import RunnerServiceStub
from rich.console import Console

from examples import show
from examples.weather import workflow as weather

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qflow.registry.v1.node_service_pb2_grpc import NodeServiceAsyncStub

    Metadata = Sequence[tuple[str, str]]
    Connect = Callable[..., grpc.aio.Channel]

# Values may be large: the data travels as one text of 48 KiB, and the default limit is 4 MiB.
_OPTIONS: Final = (("grpc.max_receive_message_length", 16 * 1024 * 1024),)
_CALL_S: Final = 60.0
_WATCH_S: Final = 600.0
_CUTS_MAX: Final = 30
_LOCK_S: Final = 60.0
_LOCK_LOOK_S: Final = 0.5


class LockError(Exception):
    """The exact versions of a node's dependencies are not to be had."""


async def run(
    endpoints: Mapping[str, str],
    token_file: Path,
    console: Console,
    *,
    connect: Connect = grpc.aio.insecure_channel,
    authorities: str | None = None,
) -> int:
    """Create, start, watch and print; gives the exit code of the demo."""
    bearer = _bearer(token_file)
    async with (
        connect(endpoints["registry"], options=_OPTIONS) as registry,
        connect(endpoints["orchestrator"], options=_OPTIONS) as orchestrator,
        connect(endpoints["runner"], options=_OPTIONS) as runner,
    ):
        try:
            workflow = await _store(registry, bearer, console)
            execution, nodes = await _execute(orchestrator, workflow, bearer, console)
            show.sandboxes(console, await _sandboxes(runner, nodes, bearer))
        except grpc.aio.AioRpcError as error:
            console.print(f"{error.code().name}: {error.details()}", style="red", markup=False)
            return 1
        except LockError as error:
            console.print(str(error), style="red", markup=False)
            return 1
    if execution.status != execution_pb2.EXECUTION_STATUS_COMPLETED:
        show.failure(console, execution)
        return 1
    show.result(console, json.loads(execution.output_json))
    show.calls(console, endpoints, token_file, execution.id, authorities=authorities)
    return 0


def _bearer(token_file: Path) -> Metadata:
    return (("authorization", f"Bearer {token_file.read_text('utf-8').strip()}"),)


async def _store(
    channel: grpc.aio.Channel, bearer: Metadata, console: Console
) -> workflow_pb2.Workflow:
    """Send every source, then the graph, and say what was read and proven."""
    console.print("\nNodes: plain Python functions, read but not run", style="bold")
    stub = NodeServiceStub(channel)
    stored = {name: await _node(stub, name, bearer) for name in weather.PLACES.values()}
    for node in stored.values():
        show.node(console, node)
    console.print("\nEdges: what the type check says of each", style="bold")
    definition = weather.definition({name: node.id for name, node in stored.items()})
    answer = await WorkflowServiceStub(channel).CreateWorkflow(
        workflows_pb.CreateWorkflowRequest(
            name="Weather of Seattle",
            definition=definition,
            activate=True,
            request_id=_same_id(definition.SerializeToString(deterministic=True)),
        ),
        metadata=bearer,
        timeout=_CALL_S,
    )
    places = {place: stored[name] for place, name in weather.PLACES.items()}
    show.edges(console, answer.workflow, places)
    console.print("\nGraph", style="bold")
    show.graph(console, answer.workflow)
    return answer.workflow


async def _node(stub: NodeServiceAsyncStub, name: str, bearer: Metadata) -> node_pb2.Node:
    """Store a node; a demo that is run again finds the one it made before."""
    code = weather.source(name)
    request = nodes_pb.CreateNodeRequest(name=name, code=code, request_id=_same_id(code.encode()))
    created = await stub.CreateNode(request, metadata=bearer, timeout=_CALL_S)
    node = await _locked(stub, created.node, bearer)
    if node.lock_state == node_pb2.LOCK_STATE_FAILED:
        # Perhaps one from before, which could not be locked then: try a new one.
        request.request_id = str(uuid.uuid4())
        again = await stub.CreateNode(request, metadata=bearer, timeout=_CALL_S)
        node = await _locked(stub, again.node, bearer)
    if node.lock_state in {node_pb2.LOCK_STATE_FAILED, node_pb2.LOCK_STATE_PENDING}:
        needs = ", ".join(each.specifier for each in node.requirements)
        raise LockError(
            f"{name} needs {needs}, which cannot be had: {node.lock_error or 'no answer yet'}\n"
            "The runner asks the package index that uv or pip is set to (PIP_INDEX_URL, "
            "HTTPS_PROXY); mend that and run the demo again."
        )
    return node


async def _locked(
    stub: NodeServiceAsyncStub, node: node_pb2.Node, bearer: Metadata
) -> node_pb2.Node:
    """Give a node as it stands, once it is known how its lock turned out or time is up.

    A run would wait for it by itself; the demo would rather say what is missing.
    """
    request = nodes_pb.GetNodeRequest(node_id=node.id)
    ends_at = time.monotonic() + _LOCK_S
    while True:
        node = (await stub.GetNode(request, metadata=bearer, timeout=_CALL_S)).node
        if node.lock_state != node_pb2.LOCK_STATE_PENDING or time.monotonic() > ends_at:
            return node
        await asyncio.sleep(_LOCK_LOOK_S)


async def _execute(
    channel: grpc.aio.Channel,
    workflow: workflow_pb2.Workflow,
    bearer: Metadata,
    console: Console,
) -> tuple[execution_pb2.Execution, Mapping[str, execution_pb2.NodeExecution]]:
    """Start the run and watch it to its end; a watch that is cut off goes on where it was."""
    console.print("\nRun: live", style="bold")
    stub = ExecutionServiceStub(channel)
    started = await stub.StartExecution(
        executions_pb.StartExecutionRequest(
            workflow_id=workflow.id,
            input_json=weather.inputs(),
            request_id=str(uuid.uuid4()),
        ),
        metadata=bearer,
        timeout=_CALL_S,
    )
    execution, revision, cuts = started.execution, 0, 0
    with show.Progress(console, list(weather.PLACES.items())) as progress:
        while execution.status not in show.FINAL:
            request = executions_pb.WatchExecutionRequest(
                execution_id=execution.id, after_revision=revision
            )
            try:
                async for step in stub.WatchExecution(request, metadata=bearer, timeout=_WATCH_S):
                    event = step.snapshot if step.HasField("snapshot") else step.delta
                    if event.HasField("execution"):
                        execution = event.execution
                    progress.update(event.node_executions)
                    revision = step.revision
            except grpc.aio.AioRpcError as error:
                cuts += 1
                if error.code() != grpc.StatusCode.UNAVAILABLE or cuts > _CUTS_MAX:
                    raise
    answer = await stub.GetExecution(
        executions_pb.GetExecutionRequest(execution_id=execution.id),
        metadata=bearer,
        timeout=_CALL_S,
    )
    return answer.execution, progress.nodes


async def _sandboxes(
    channel: grpc.aio.Channel,
    nodes: Mapping[str, execution_pb2.NodeExecution],
    bearer: Metadata,
) -> list[runners_pb.Container]:
    """Give the sandboxes that the nodes ran in."""
    used = {node.container_id for node in nodes.values()}
    answer = await RunnerServiceStub(channel).ListContainers(
        runners_pb.ListContainersRequest(page_size=1000), metadata=bearer, timeout=_CALL_S
    )
    return [container for container in answer.containers if container.id in used]


def _same_id(content: bytes) -> str:
    """Give the request id that the same content always has."""
    return str(uuid.UUID(bytes=hashlib.sha256(content).digest()[:16], version=4))
