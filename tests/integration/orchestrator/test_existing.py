"""Starts that are answered with a run that was there before."""

from __future__ import annotations

import uuid
from typing import Any

from qflow.orchestrator.v1 import execution_pb2, rerun_service_pb2, run_service_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import chain, ended, reruns, runs, start

BASIC = execution_pb2.EXECUTION_VIEW_BASIC
USE = execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_USE_EXISTING


async def shown(orchestra: Orchestra, execution_id: str) -> execution_pb2.Execution:
    request = pb.GetExecutionRequest(execution_id=execution_id, view=BASIC)
    return (await orchestra.stub.GetExecution(request)).execution


async def test_a_run_that_was_there_before_is_shown_as_it_stands(orchestra: Orchestra) -> None:
    """However it was found, it is what GetExecution gives: its nodes are counted too."""
    workflow_id = chain(orchestra, "a", "b")
    node = factories.node(orchestra.sql, orchestra.owner)
    named = {"request_id": str(uuid.uuid4())}
    keyed: dict[str, Any] = {"business_key": "k", "business_key_conflict": USE}
    outcomes: list[object] = [1]

    def answer(*_: Any) -> object:
        return outcomes.pop() if outcomes else None  # the second node goes on and on

    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            first = await start(orchestra, workflow_id, **named)
            await runner.until(lambda: 2 == len(runner.assigns))
            assert await shown(orchestra, first.id) == await start(orchestra, workflow_id, **named)
            outcomes += [1]
            held = await start(orchestra, workflow_id, **keyed)
            await runner.until(lambda: 4 == len(runner.assigns))
            for more in (keyed, keyed | {"validate_only": True}):
                found = await start(orchestra, workflow_id, **more)
                assert (1, 1) == (found.node_counts.completed, found.node_counts.running)
                assert await shown(orchestra, held.id) == found
            outcomes += [1] * 4
            alone = run_service_pb2.RunNodeRequest(
                node_id=str(node.id), input_json='{"x":1}', request_id=str(uuid.uuid4())
            )
            made = (await runs(orchestra).RunNode(alone)).execution
            retry = rerun_service_pb2.RetryExecutionRequest(
                execution_id=made.id, request_id=str(uuid.uuid4())
            )
            stub = reruns(orchestra)
            retried = (await stub.RetryExecution(retry)).execution
            await ended(orchestra, retried.id)
            found = (await stub.RetryExecution(retry)).execution
            assert (1, 0) == (found.node_counts.completed, found.node_counts.skipped)
            assert await shown(orchestra, retried.id) == found
