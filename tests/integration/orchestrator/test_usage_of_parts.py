"""What a run says it used: all attempts of it and of its sub-workflows, each once."""

from __future__ import annotations

import json
from typing import Any

from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    CANCELLED,
    COMPLETED,
    FAILED,
    cancel,
    chain,
    ended,
    start,
)
from tests.integration.orchestrator.test_members import on_both, two
from tests.integration.orchestrator.test_runs import add_one

ATTEMPT_US = 100  # that each attempt of the runner of these tests says it took


def outer(orchestra: Orchestra, inner: str, **settings: Any) -> str:
    """A workflow of a sub-workflow `s` and a node of its own."""
    node = factories.node(orchestra.sql, orchestra.owner)
    part = {"kind": "workflow", "node_id": inner, "version": 1, **settings}
    return str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"s": part, "own": node},
            edges=[] if "map" in settings else [("", "x", "s", "x")],
            links=[{"source": "s", "target": "own", "kind": "order"}],
            node_settings={"own": {"parameters": {"x": "1"}}},
            outputs=[("out", "own")],
        )
    )


def used(execution: Any) -> int:
    return int(execution.resource_usage.cpu_time.ToMicroseconds())


async def nodes_used(orchestra: Orchestra, execution_id: str) -> dict[str, int]:
    request = pb.ListNodeExecutionsRequest(execution_id=execution_id)
    listed = (await orchestra.stub.ListNodeExecutions(request)).node_executions
    return {each.node_id: used(each) for each in listed}


async def test_a_run_used_what_its_sub_workflows_used_and_theirs(orchestra: Orchestra) -> None:
    """Each row keeps its own sum: that of the run in the middle is in its parent's once."""
    inner = chain(orchestra, "a", "b")
    middle = outer(orchestra, inner, map={"input": "x"}, parameters={"x": "[1,2,3]"})
    workflow = outer(orchestra, middle)
    async with orchestra.running(), (await orchestra.runner(add_one)).attached():
        run = await ended(orchestra, (await start(orchestra, workflow)).id)
        below = (3 * 2 + 1) * ATTEMPT_US
        assert (COMPLETED, below + ATTEMPT_US) == (run.status, used(run))
        assert {"s": below, "own": ATTEMPT_US} == await nodes_used(orchestra, run.id)
    sums = orchestra.rows(
        "SELECT (resource_usage ->> 'cpu_us')::int FROM workflow_executions ORDER BY 1"
    )
    assert [200, 200, 200, below, below + ATTEMPT_US] == [each for (each,) in sums]


async def test_sub_workflows_that_failed_and_were_tried_again_are_in_the_sum(
    orchestra: Orchestra,
) -> None:
    retry = {"max_retries": 1, "initial_delay_ms": 1}
    workflow = outer(orchestra, chain(orchestra, "a", "b"), retry=retry)
    failing = {"b"}

    def answer(define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        if inputs["x"] == 2 and failing:
            failing.clear()
            raise Fail
        return add_one(define, assign, inputs)

    async with orchestra.running(), (await orchestra.runner(answer)).attached():
        run = await ended(orchestra, (await start(orchestra, workflow)).id)
        assert (COMPLETED, 5 * ATTEMPT_US) == (run.status, used(run))
        # A node tells of its last attempt, here the second run of the sub-workflow.
        assert {"s": 200, "own": ATTEMPT_US} == await nodes_used(orchestra, run.id)


async def test_what_ran_before_a_cancel_or_a_failure_is_in_the_sum(orchestra: Orchestra) -> None:
    workflow = outer(orchestra, chain(orchestra, "a", "b"))

    def answer(define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        return None if inputs["x"] == 2 else add_one(define, assign, inputs)

    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            failing, stopped = [(await start(orchestra, workflow)).id for _ in range(2)]
            await runner.until(lambda: len(runner.held) == 2)
            await cancel(orchestra, stopped)
            over = await ended(orchestra, stopped)
            for assign in list(runner.held.values()):
                runner.fail(assign, "user_error", retryable=False)
            failed = await ended(orchestra, failing)
    assert (CANCELLED, FAILED) == (over.status, failed.status)
    assert [2 * ATTEMPT_US] * 2 == [used(over), used(failed)]  # who was killed told of it, too


async def test_a_sub_workflow_whose_end_its_parent_never_heard_of_is_in_the_sum(
    orchestra: Orchestra,
) -> None:
    """Killed between the child's end and the parent's change: the child's row tells of it."""
    workflow = outer(orchestra, chain(orchestra, "a"))
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            run_id = (await start(orchestra, workflow)).id
            await runner.until(lambda: bool(runner.held))
    usage = {"cpu_us": 7000, "memory_peak_bytes": 5, "io_read_bytes": 4, "io_write_bytes": 3}
    of_child = "(SELECT id FROM workflow_executions WHERE parent_execution_id = %s)"
    over = "status = 'completed', completed_at = clock_timestamp(), resource_usage = %s"
    nodes = f"UPDATE node_executions SET {over}, output_data = %s WHERE workflow_execution_id"
    runs = f"UPDATE workflow_executions SET {over}, output_data = %s WHERE id"
    for statement, output in ((nodes, '{"result":2}'), (runs, '{"out":2}')):
        orchestra.sql.execute(f"{statement} = {of_child}", (json.dumps(usage), output, run_id))
    async with orchestra.running(), (await orchestra.runner(add_one)).attached():
        run = await ended(orchestra, run_id)
        stored = await orchestra.stub.GetExecution(pb.GetExecutionRequest(execution_id=run_id))
    for seen in (run, stored.execution):
        assert (COMPLETED, 7000 + ATTEMPT_US) == (seen.status, used(seen))
        assert (4, 3) == (seen.resource_usage.io_read_bytes, seen.resource_usage.io_write_bytes)


async def test_runs_that_move_to_another_orchestrator_lose_and_double_nothing(
    orchestra: Orchestra,
) -> None:
    workflow = outer(orchestra, chain(orchestra, "a", "b"))
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None, slots=8)
        async with runner.kept():
            runs = [(await start(orchestra, workflow)).id for _ in range(8)]
            await runner.until(lambda: len(runner.held) == len(runs))
            for assign in list(runner.held.values()):
                runner.succeed(assign, 2)
            await runner.until(lambda: len(runner.assigns) == 2 * len(runs))
            async with two(orchestra) as other, on_both(runner, other) as second:
                runner.answer = second.answer = add_one
                for assign in list(runner.held.values()):
                    runner.succeed(assign, 3)
                over = [await ended(other, run) for run in runs]
    assert [(COMPLETED, 3 * ATTEMPT_US)] * len(runs) == [(each.status, used(each)) for each in over]
