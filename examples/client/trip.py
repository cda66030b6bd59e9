"""The whole trip, as the clients in other languages do it: call by call.

Sign in, create two nodes from source and a workflow of them, start it, watch it over a cut, read
what it gives, bring a file and fetch it, be refused.

    QFLOW_REGISTRY=127.0.0.1:7101 QFLOW_ORCHESTRATOR=127.0.0.1:7102 QFLOW_RUNNER=127.0.0.1:7103 \
    QFLOW_EMAIL=owner@localhost QFLOW_PASSWORD=… python examples/client/trip.py
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import qflow
from qflow.client.contexts import Context, Tls
from qflow.orchestrator.v1 import execution_service_pb2, execution_service_pb2_grpc
from qflow.registry.v1 import (
    node_service_pb2,
    node_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    workflow_pb2,
    workflow_service_pb2,
    workflow_service_pb2_grpc,
)

NEXT = "def next_number(n: int) -> int:\n    return n + 1\n"
TELL = """import time


def tell(name: str, n: int) -> str:
    time.sleep(2)  # time to watch
    return f"{name}: {n}"
"""
NAME = "Zoë · 東京 🚲"
NUMBER = 2**53 + 1  # no double holds it


async def main() -> None:
    """Go from one to the next; what goes wrong is an exception."""
    anybody = _context()
    async with qflow.Client(anybody) as client:
        stub = client.connection.stub("registry", session_service_pb2_grpc.SessionServiceStub)
        request = session_service_pb2.SignInRequest(
            email=os.environ["QFLOW_EMAIL"], password=os.environ["QFLOW_PASSWORD"]
        )
        session = await client.connection.call(stub.SignIn, request)
    print("signed in:", session.caller.email, flush=True)
    async with qflow.Client(replace(anybody, token=session.token)) as client:
        workflow = await _create_workflow(client)
        run = await _start(client, workflow)
        await _watch(run)
        await _files(client)
        await _refused(client)


def _context() -> Context:
    ca_file = os.environ.get("QFLOW_CA_FILE", "")
    tls = Tls(
        ca_file=ca_file,
        certificate_file=os.environ.get("QFLOW_CERTIFICATE_FILE", ""),
        key_file=os.environ.get("QFLOW_KEY_FILE", ""),
    )
    return Context(
        registry=os.environ["QFLOW_REGISTRY"],
        orchestrator=os.environ["QFLOW_ORCHESTRATOR"],
        runner=os.environ["QFLOW_RUNNER"],
        telemetry="",
        tls=tls if ca_file else None,
    )


async def _create_workflow(client: qflow.Client) -> str:
    call = client.connection.call
    nodes = client.connection.stub("registry", node_service_pb2_grpc.NodeServiceStub)
    definition = workflow_pb2.WorkflowDefinition(
        inputs=[workflow_pb2.WorkflowInput(name=each) for each in ("name", "n")],
        connections=[
            _edge("", "n", "next", "n"),
            _edge("", "name", "tell", "name"),
            _edge("next", "result", "tell", "n"),
        ],
        outputs=[
            workflow_pb2.WorkflowOutput(name=name, source_node=node, source_output="result")
            for name, node in (("number", "next"), ("text", "tell"))
        ],
    )
    for place, code in (("next", NEXT), ("tell", TELL)):
        node = node_service_pb2.CreateNodeRequest(
            name=f"trip: {place}", code=code, request_id=str(uuid.uuid4())
        )
        made = await call(nodes.CreateNode, node)
        definition.nodes.add(id=place, node_id=made.node.id)
    workflows = client.connection.stub("registry", workflow_service_pb2_grpc.WorkflowServiceStub)
    request = workflow_service_pb2.CreateWorkflowRequest(
        name="trip", activate=True, definition=definition, request_id=str(uuid.uuid4())
    )
    workflow_id: str = (await call(workflows.CreateWorkflow, request)).workflow.id
    return workflow_id


def _edge(node: str, output: str, target: str, target_input: str) -> workflow_pb2.Connection:
    return workflow_pb2.Connection(
        source_node=node, source_output=output, target_node=target, target_input=target_input
    )


async def _start(client: qflow.Client, workflow_id: str) -> qflow.Run[dict[str, Any]]:
    """Ask twice, as one does whose first answer was lost: there is one run."""
    once = client.options(request_id=str(uuid.uuid4()))
    inputs = {"name": NAME, "n": NUMBER}
    first = await once.start_stored(workflow_id, inputs)
    again = await once.start_stored(workflow_id, inputs)
    if first.id != again.id:
        raise RuntimeError("two runs of one request")
    print("started once:", first.id, flush=True)
    return first


async def _watch(run: qflow.Run[dict[str, Any]]) -> None:
    """Leave after the first state and go on from its revision, as after a restart of its own."""
    seen = 0
    async for change in run.watch():
        seen = change.revision
        if seen:
            break
    print("watching again after revision", seen, flush=True)
    async for _ in run.watch(after_revision=seen):
        pass
    told = await run.result()
    print("number:", told["number"])
    print("text:", told["text"])
    if told != {"number": NUMBER + 1, "text": f"{NAME}: {NUMBER + 1}"}:
        raise RuntimeError("values have changed on the way")


async def _files(client: qflow.Client) -> None:
    content = ("Grüße\n" * 30_000).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grüße.txt"
        path.write_bytes(content)
        file = await client.files.upload(path)
    if await client.files.read(file.id) != content:
        raise RuntimeError("the file is another")
    print("file:", file.filename, len(content), "bytes")


async def _refused(client: qflow.Client) -> None:
    stub = client.connection.stub("orchestrator", execution_service_pb2_grpc.ExecutionServiceStub)
    request = execution_service_pb2.StartExecutionRequest(workflow_id="no id", priority=101)
    try:
        await client.connection.call(stub.StartExecution, request)
    except qflow.CallError as error:
        print("refused:", type(error).__name__, error.reason)
        for each in error.violations:
            print(f"  {each.field}: {each.description}")
        return
    raise RuntimeError("it was not refused")


if __name__ == "__main__":
    asyncio.run(main())
