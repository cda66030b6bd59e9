"""A running suite to measure, and workflows in it made through the contract."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from uuid import UUID

import asyncpg
import grpc
import psycopg
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as executions_pb
from qflow.orchestrator.v1 import run_service_pb2 as runs_pb
from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceStub
from qflow.orchestrator.v1.run_service_pb2_grpc import RunServiceStub
from qflow.registry.v1 import node_service_pb2 as nodes_pb
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as workflows_pb
from qflow.registry.v1.node_service_pb2_grpc import NodeServiceStub
from qflow.registry.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from tests.support.suite import Suite

if TYPE_CHECKING:
    from qflow.orchestrator.v1.execution_service_pb2_grpc import ExecutionServiceAsyncStub
    from qflow.orchestrator.v1.run_service_pb2_grpc import RunServiceAsyncStub

# Backends tell what they committed at most once a second.
_STATISTICS_S: Final = 1.5

Edge = tuple[str, str, str]  # source place ("" the run's input), target place, target input

ONE: Final = "def plus_one(x: int) -> int:\n    return x + 1\n"
OTHER: Final = "def one_more(x: int) -> int:\n    return x + 1\n"
SUM: Final = "def add(x: int, y: int, z: int) -> int:\n    return x + y + z\n"


@dataclass(slots=True)
class Flow:
    """A suite with the owner's channels."""

    suite: Suite
    registry: grpc.aio.Channel
    executions: ExecutionServiceAsyncStub
    runs: RunServiceAsyncStub

    async def node(self, code: str) -> str:
        """Create a node from source; returns its id."""
        answer = await NodeServiceStub(self.registry).CreateNode(
            nodes_pb.CreateNodeRequest(name="bench", code=code, python_version="3.11")
        )
        return answer.node.id

    async def workflow(
        self,
        places: Mapping[str, str],
        edges: Sequence[Edge],
        output: str,
        *,
        mapped: Mapping[str, str] = MappingProxyType({}),
        runner: workflow_pb2.RunnerRequirements | None = None,
    ) -> str:
        """Create an active workflow of nodes; returns its id.

        `mapped` says of places that run once for each element which input takes it, `runner` what
        all of them need.
        """
        nodes = [
            workflow_pb2.WorkflowNode(id=at, node_id=node, runner=runner)
            for at, node in places.items()
        ]
        for node in nodes:
            if node.id in mapped:
                node.for_each.input = mapped[node.id]
        definition = workflow_pb2.WorkflowDefinition(
            nodes=nodes,
            connections=[
                workflow_pb2.Connection(
                    source_node=source,
                    source_output="result" if source else "x",
                    target_node=target,
                    target_input=name,
                )
                for source, target, name in edges
            ],
            inputs=[workflow_pb2.WorkflowInput(name="x")],
            outputs=[
                workflow_pb2.WorkflowOutput(name="o", source_node=output, source_output="result")
            ],
        )
        answer = await WorkflowServiceStub(self.registry).CreateWorkflow(
            workflows_pb.CreateWorkflowRequest(name="bench", definition=definition, activate=True)
        )
        return answer.workflow.id

    async def run(self, workflow_id: str, x: int) -> int:
        """Run it to its end and give its output."""
        return await self.result(await self.start(workflow_id, x))

    async def execute(self, workflow_id: str, x: int) -> int:
        """Run it to its end in one call and give its output."""
        answer = await self.runs.ExecuteWorkflow(
            runs_pb.ExecuteWorkflowRequest(start=_start(workflow_id, x)), timeout=60
        )
        assert answer.done
        return _output(answer.execution)

    async def start(self, workflow_id: str, x: int) -> str:
        """Start it; returns the execution's id."""
        started = await self.executions.StartExecution(_start(workflow_id, x))
        return started.execution.id

    async def start_many(self, workflow_id: str, inputs: Sequence[int]) -> list[str]:
        """Start it for each of the inputs in one call; returns the executions' ids."""
        request = executions_pb.BatchStartExecutionsRequest(
            starts=[_start(workflow_id, x) for x in inputs]
        )
        items = (await self.executions.BatchStartExecutions(request)).items
        assert not any(each.status.code for each in items), items
        return [each.execution_id for each in items]

    async def all_over(self, workflow_id: str) -> None:
        """Wait until no execution of a workflow is open: the rows are asked, 50 times a second.

        To ask by RPC would cost the suite more than many of the nodes that are measured.
        """
        db = await asyncpg.connect(self.suite.database_url)
        try:
            open_runs = await db.prepare(
                "SELECT count(*) FROM workflow_executions"
                " WHERE workflow_id = $1 AND status IN ('pending', 'running')"
            )
            while await open_runs.fetchval(UUID(workflow_id)):  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.02)
        finally:
            await db.close()

    async def result(self, execution_id: str) -> int:
        """Wait for an execution's end and give its output."""
        request = executions_pb.WaitExecutionRequest(execution_id=execution_id)
        while not (answer := await self.executions.WaitExecution(request, timeout=60)).done:
            pass
        return _output(answer.execution)

    def sandboxes(self) -> dict[str, int]:
        """Count the sandboxes that ran, by tier."""
        with self.suite.sql() as db:
            rows = db.execute(
                "SELECT resource_limits ->> 'isolation', count(*) FROM containers"
                " WHERE started_at IS NOT NULL GROUP BY 1"
            ).fetchall()
        return {str(tier): int(count) for tier, count in rows}

    async def spent(self) -> tuple[int, int]:
        """Give the transactions committed and the WAL bytes written so far."""
        await asyncio.sleep(_STATISTICS_S)
        with psycopg.connect(self.suite.database_url, autocommit=True) as db:
            row = db.execute(
                "SELECT sum(xact_commit)::bigint, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"
                "::bigint FROM pg_stat_database WHERE datname = current_database()"
            ).fetchone()
        assert row is not None
        return int(row[0]), int(row[1])


def _start(workflow_id: str, x: int) -> executions_pb.StartExecutionRequest:
    return executions_pb.StartExecutionRequest(
        workflow_id=workflow_id, input_json=json.dumps({"x": x})
    )


def _output(execution: execution_pb2.Execution) -> int:
    assert execution.status == execution_pb2.EXECUTION_STATUS_COMPLETED, execution
    return int(json.loads(execution.output_json)["o"])


@asynccontextmanager
async def running(env: Mapping[str, str] = MappingProxyType({})) -> AsyncIterator[Flow]:
    """Start a suite on a folder of its own, with durability on as always."""
    folder = Path(tempfile.mkdtemp(prefix="qfb-", dir="/tmp"))
    suite = Suite(folder / "home", env)
    try:
        suite.start()
        async with suite.channel("registry") as registry, suite.channel("orchestrator") as channel:
            yield Flow(suite, registry, ExecutionServiceStub(channel), RunServiceStub(channel))
    finally:
        suite.stop()
        shutil.rmtree(folder, ignore_errors=True)
