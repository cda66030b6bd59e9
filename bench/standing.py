"""Benches of what stands still: schedules that are not due, runs that are over, nodes that wait."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final
from uuid import UUID

import asyncpg
import psutil
from qflow.orchestrator.v1 import execution_service_pb2 as executions_pb
from qflow.orchestrator.v1 import schedule_pb2
from qflow.orchestrator.v1 import schedule_service_pb2 as schedules_pb
from qflow.orchestrator.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from qflow.registry.v1 import workflow_pb2
from qflow.registry.v1 import workflow_service_pb2 as workflows_pb
from qflow.registry.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from bench import floors
from bench.figures import figure
from bench.flow import ONE, OTHER, SUM, Flow, running

_SCHEDULES: Final = 100
_SETTLE_S: Final = 90.0  # the first hourly pass of retention comes within a minute
_IDLE_S: Final = 60.0
_COUNTED_S: Final = 300.0  # what is done every five minutes is in it once
_STATISTICS_S: Final = 5.0
_IDLE_TARGET: Final = 0.3
_TRANSACTIONS_TARGET: Final = 0.1

_FINISHED: Final = 1_000_000
_AGED_TARGET: Final = 0.95
_RUNS: Final = 100
_RUN_NODES: Final = 5
_ROUNDS: Final = 7

_WAITING_PLACES: Final = 1_000
_WAITING_RUNS: Final = 20
_WAITING_TARGET: Final = 2_048.0

# What the logins of the suite committed or rolled back; a question of this bench's own is one too.
# PostgreSQL's own cleaning counts as transactions there: it rests while these are counted.
_TRANSACTIONS: Final = """
    SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()
"""
_CLEANING: Final = "ALTER SYSTEM SET autovacuum = {}"
# Copies of a run that is over and of one of its nodes, spread over the weeks before it.
_AGE: Final = """
    WITH aged AS (
        INSERT INTO workflow_executions
               (id, workflow_id, tenant_id, created_by, workflow_version, pins_id, shard, status,
                input_data, output_data, python_version, revision, resource_usage,
                created_at, queued_at, started_at, completed_at)
        SELECT gen_random_uuid(), workflow_id, tenant_id, created_by, workflow_version, pins_id,
               n % 64, status, input_data, output_data, python_version, revision, resource_usage,
               created_at - n * interval '2 seconds', queued_at - n * interval '2 seconds',
               started_at - n * interval '2 seconds', completed_at - n * interval '2 seconds'
          FROM workflow_executions, generate_series($2::int, $3::int) AS n
         WHERE id = $1
     RETURNING id, started_at, completed_at
    )
    INSERT INTO node_executions
           (id, workflow_execution_id, node_id, definition_node_id, node_type, status,
            node_version_id, execution_order, max_retries, attempt_token, revision, output_data,
            started_at, completed_at)
    SELECT gen_random_uuid(), aged.id, node.node_id, node.definition_node_id, node.node_type,
           node.status, node.node_version_id, node.execution_order, node.max_retries,
           node.attempt_token, node.revision, node.output_data, aged.started_at, aged.completed_at
      FROM aged, node_executions AS node
     WHERE node.workflow_execution_id = $1 AND node.node_id = 'a'
"""


async def idle_schedules() -> dict[str, Any]:
    """Percent of one core that the suite takes with 100 schedules that are not due for long."""
    async with running() as flow:
        workflow_id = await flow.workflow({"a": await flow.node(ONE)}, [("", "a", "x")], "a")
        await _schedule(flow, workflow_id)
        await asyncio.sleep(_SETTLE_S)
        root = psutil.Process(flow.suite.supervisor_pid)
        db = await asyncpg.connect(flow.suite.database_url)
        try:
            cpu, begin = _cpu_s(root), time.perf_counter()
            await asyncio.sleep(_IDLE_S)
            percent = 100 * (_cpu_s(root) - cpu) / (time.perf_counter() - begin)
            await db.execute(_CLEANING.format("off"))
            await db.execute("SELECT pg_reload_conf()")
            await asyncio.sleep(_STATISTICS_S)
            count, begin = await db.fetchval(_TRANSACTIONS), time.perf_counter()
            await asyncio.sleep(_COUNTED_S)
            span_s = time.perf_counter() - begin
            rate = (await db.fetchval(_TRANSACTIONS) - count - 1) / span_s
        finally:
            await db.close()
    told = figure([percent], "% of a core", "lower", target=_IDLE_TARGET, floor=0.0)
    return told | {
        "transactions_per_s": round(rate, 3),
        "transactions_target": _TRANSACTIONS_TARGET,
        "transactions_met": rate <= _TRANSACTIONS_TARGET,
    }


async def _schedule(flow: Flow, workflow_id: str) -> None:
    async with flow.suite.channel("orchestrator") as channel:
        stub: Any = ScheduleServiceStub(channel)
        for at in range(_SCHEDULES):
            times = schedule_pb2.CronTiming(expression=f"{at % 60} 0 1 1 *")
            await stub.CreateSchedule(
                schedules_pb.CreateScheduleRequest(
                    workflow_id=workflow_id,
                    definition=schedule_pb2.ScheduleDefinition(
                        name=f"s{at}",
                        input_json='{"x":1}',
                        timing=schedule_pb2.ScheduleTiming(cron=times),
                    ),
                )
            )


async def million_finished() -> dict[str, Any]:
    """Which part of its rate in an empty database remains behind a million finished runs."""
    async with running() as flow:
        one, other, add = [await flow.node(code) for code in (ONE, OTHER, SUM)]
        places = {"a": one, "b": other, "c": one, "d": other, "e": add}
        edges = [("", "a", "x"), ("a", "b", "x"), ("a", "c", "x"), ("a", "d", "x")]
        edges += [("b", "e", "x"), ("c", "e", "y"), ("d", "e", "z")]
        workflow_id = await flow.workflow(places, edges, "e")
        floor = await floors.transactions_per_s(flow.suite.database_url)
        for _ in range(2):
            await _rate(flow, workflow_id)
        empty = sorted([await _rate(flow, workflow_id) for _ in range(_ROUNDS)])[_ROUNDS // 2]
        finished = await flow.start(workflow_id, 1)
        await flow.result(finished)
        await _age(flow, UUID(finished))
        await _rate(flow, workflow_id)
        ratios = [await _rate(flow, workflow_id) / empty for _ in range(_ROUNDS)]
    told = figure(ratios, "of empty", "higher", target=_AGED_TARGET, floor=0.0)
    return told | {"empty_nodes_per_s": round(empty), "transactions_per_s": round(floor)}


async def _age(flow: Flow, finished: UUID) -> None:
    db = await asyncpg.connect(flow.suite.database_url)
    try:
        await db.execute("SET session_replication_role = replica")  # they are copies: proven rows
        step = 100_000
        for at in range(0, _FINISHED, step):
            await db.execute(_AGE, finished, at + 1, at + step, timeout=600)
        for table in ("workflow_executions", "node_executions"):
            await db.execute(f"VACUUM (ANALYZE) {table}", timeout=600)
        await db.execute("CHECKPOINT")
    finally:
        await db.close()


async def _rate(flow: Flow, workflow_id: str) -> float:
    begin = time.perf_counter()
    runs = await asyncio.gather(*(flow.start(workflow_id, x) for x in range(_RUNS)))
    await flow.result(runs[-1])
    await flow.all_over(workflow_id)
    return _RUNS * _RUN_NODES / (time.perf_counter() - begin)


async def waiting_memory() -> dict[str, Any]:
    """Bytes of the orchestrator for each of 20,000 nodes that wait for a word from outside."""
    async with running() as flow:
        workflow_id = await _listening(flow)
        process = psutil.Process(flow.suite.marks()["orchestrator"].pid)
        await _wait_in(flow, workflow_id, 1)  # what the plan itself takes is shared by all runs
        samples = []
        for _ in range(3):
            before = process.memory_full_info().uss
            await _wait_in(flow, workflow_id, _WAITING_RUNS)
            after = process.memory_full_info().uss
            samples.append((after - before) / (_WAITING_RUNS * _WAITING_PLACES))
    return figure(samples, "bytes/node", "lower", target=_WAITING_TARGET, floor=0.0)


async def _listening(flow: Flow) -> str:
    nodes = [
        workflow_pb2.WorkflowNode(
            id=f"w{at}", signal=workflow_pb2.NodeSignal(name=f"w{at}", type_json='{"t":"int"}')
        )
        for at in range(_WAITING_PLACES)
    ]
    definition = workflow_pb2.WorkflowDefinition(
        nodes=nodes,
        outputs=[
            workflow_pb2.WorkflowOutput(name=each.id, source_node=each.id, source_output="result")
            for each in nodes
        ],
    )
    answer = await WorkflowServiceStub(flow.registry).CreateWorkflow(
        workflows_pb.CreateWorkflowRequest(name="bench", definition=definition, activate=True)
    )
    return answer.workflow.id


async def _wait_in(flow: Flow, workflow_id: str, runs: int) -> None:
    for _ in range(runs):
        await flow.executions.StartExecution(
            executions_pb.StartExecutionRequest(workflow_id=workflow_id, input_json="{}")
        )
    await asyncio.sleep(1)  # what the starts themselves took is given back


def _cpu_s(root: psutil.Process) -> float:
    processes = [root, *root.children(recursive=True)]
    return sum(sum(each.cpu_times()[:2]) for each in processes)
