"""A short way to say what tests do with a running suite, over its real gRPC API."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from qflow.orchestrator.v1 import execution_pb2, execution_service_pb2, execution_service_pb2_grpc
from qflow.registry.v1 import (
    node_pb2,
    node_service_pb2,
    node_service_pb2_grpc,
    workflow_pb2,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

from tests.support.suite import Suite

COMPLETED = execution_pb2.EXECUTION_STATUS_COMPLETED
FAILED = execution_pb2.EXECUTION_STATUS_FAILED
CANCELLED = execution_pb2.EXECUTION_STATUS_CANCELLED


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a workflow: which node it runs, its literals, what happens when it fails."""

    id: str
    node: node_pb2.Node
    literals: Mapping[str, Any] | None = None
    retry: workflow_pb2.RetryPolicy | None = None
    timeout_s: int = 0


class Client:
    """The calls that tests make, as one user.

    Each waits for a server that is being started again; an error of a server that is there counts.
    """

    def __init__(self, registry: grpc.aio.Channel, orchestrator: grpc.aio.Channel) -> None:
        self.nodes: Any = node_service_pb2_grpc.NodeServiceStub(registry)
        self.workflows: Any = workflow_service_pb2_grpc.WorkflowServiceStub(registry)
        self.executions: Any = execution_service_pb2_grpc.ExecutionServiceStub(orchestrator)

    async def create_node(self, name: str, code: str) -> node_pb2.Node:
        """Create a node and wait until its requirements are locked, where it has any."""
        answer = await self.nodes.CreateNode(
            node_service_pb2.CreateNodeRequest(name=name, code=code),
            timeout=30,
            wait_for_ready=True,
        )
        node: node_pb2.Node = answer.node
        return node

    async def create_workflow(
        self,
        name: str,
        steps: Sequence[Step],
        edges: Sequence[str],
        *,
        inputs: Mapping[str, str] | None = None,
        outputs: Sequence[str] = (),
    ) -> workflow_pb2.Workflow:
        """Create an active workflow; an edge reads `a.result > b.x`, or `.name > b.x` for an input.

        `inputs` maps names to structural types such as `int`; an output reads `name = a.result`.
        """
        definition = workflow_pb2.WorkflowDefinition(
            nodes=[_node(step) for step in steps],
            connections=[_connection(edge) for edge in edges],
            inputs=[
                workflow_pb2.WorkflowInput(name=each, type_json=json.dumps({"t": kind}))
                for each, kind in (inputs or {}).items()
            ],
            outputs=[_output(text) for text in outputs],
        )
        answer = await self.workflows.CreateWorkflow(
            workflow_service_pb2.CreateWorkflowRequest(
                name=name, definition=definition, activate=True
            ),
            timeout=30,
            wait_for_ready=True,
        )
        workflow: workflow_pb2.Workflow = answer.workflow
        assert workflow.active, [finding.message for finding in workflow.findings]
        return workflow

    async def start(
        self, workflow: workflow_pb2.Workflow, inputs: Mapping[str, Any], *, request_id: str = ""
    ) -> str:
        """Start an execution; give its id."""
        answer = await self.executions.StartExecution(
            execution_service_pb2.StartExecutionRequest(
                workflow_id=workflow.id,
                input_json=json.dumps(inputs),
                request_id=request_id or str(uuid.uuid4()),
            ),
            timeout=30,
            wait_for_ready=True,
        )
        started: str = answer.execution.id
        return started

    async def get(self, execution_id: str) -> execution_pb2.Execution:
        """Give an execution with everything."""
        answer = await self.executions.GetExecution(
            execution_service_pb2.GetExecutionRequest(
                execution_id=execution_id, view=execution_pb2.EXECUTION_VIEW_FULL
            ),
            timeout=30,
            wait_for_ready=True,
        )
        execution: execution_pb2.Execution = answer.execution
        return execution

    async def finished(self, execution_id: str, *, timeout_s: float = 120) -> Any:
        """Wait until an execution is over, over lost connections too, and give it."""
        ends_at = time.monotonic() + timeout_s
        while time.monotonic() < ends_at:
            try:
                answer = await self.executions.WaitExecution(
                    execution_service_pb2.WaitExecutionRequest(
                        execution_id=execution_id,
                        timeout=Duration(seconds=10),
                        view=execution_pb2.EXECUTION_VIEW_FULL,
                    ),
                    timeout=40,
                    wait_for_ready=True,
                )
            except grpc.aio.AioRpcError as error:
                if error.code() not in _PASSING:
                    raise
                await asyncio.sleep(0.1)  # a server is being started again
                continue
            if answer.done:
                return answer.execution
        raise AssertionError(f"not over within {timeout_s} s: {await self.get(execution_id)}")

    async def run(
        self, workflow: workflow_pb2.Workflow, inputs: Mapping[str, Any], **waiting: float
    ) -> Any:
        """Start an execution, wait until it is over, give it."""
        return await self.finished(await self.start(workflow, inputs), **waiting)


_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}


@asynccontextmanager
async def connected(suite: Suite) -> AsyncIterator[Client]:
    """Talk to a suite as its owner."""
    async with suite.channel("registry") as registry, suite.channel("orchestrator") as orchestrator:
        yield Client(registry, orchestrator)


def _node(step: Step) -> workflow_pb2.WorkflowNode:
    node = workflow_pb2.WorkflowNode(
        id=step.id,
        node_id=step.node.id,
        literals=[
            workflow_pb2.LiteralInput(input=name, value_json=json.dumps(value))
            for name, value in (step.literals or {}).items()
        ],
    )
    if step.retry is not None:
        node.retry.CopyFrom(step.retry)
    if step.timeout_s:
        node.timeout.seconds = step.timeout_s
    return node


def _connection(edge: str) -> workflow_pb2.Connection:
    source, _, target = (part.strip() for part in edge.partition(">"))
    source_node, _, source_output = source.partition(".")
    target_node, _, target_input = target.partition(".")
    return workflow_pb2.Connection(
        source_node=source_node,
        source_output=source_output,
        target_node=target_node,
        target_input=target_input,
    )


def _output(text: str) -> workflow_pb2.WorkflowOutput:
    name, _, source = (part.strip() for part in text.partition("="))
    source_node, _, source_output = source.partition(".")
    return workflow_pb2.WorkflowOutput(
        name=name, source_node=source_node, source_output=source_output
    )
