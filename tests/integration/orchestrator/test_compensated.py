"""Reruns of runs whose results were undone: what was undone is done again, and undone once."""

from __future__ import annotations

import pytest
from qflow.orchestrator.v1 import rerun_service_pb2

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import COMPLETED, FAILED, ended, reruns, start
from tests.integration.orchestrator.test_reruns import Worker, hold_invariants, node, rerun


@pytest.fixture
def order(orchestra: Orchestra) -> str:
    """quote → pay → ship, and refund, which undoes pay."""
    one = factories.node(orchestra.sql, orchestra.owner)
    made = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes=dict.fromkeys(("quote", "pay", "ship", "refund"), one),
        edges=[
            ("", "x", "quote", "x"),
            ("quote", "result", "pay", "x"),
            ("pay", "result", "ship", "x"),
            ("pay", "result", "refund", "x"),
        ],
        node_settings={"refund": {"compensates": "pay"}},
        outputs=[("out", "ship")],
    )
    return str(made)


async def test_what_was_compensated_is_done_again(orchestra: Orchestra, order: str) -> None:
    """From the node that failed, from nothing named, and for many at once."""
    worker = Worker("ship")
    async with orchestra.running():
        async with (await orchestra.runner(worker)).attached():
            stub = reruns(orchestra)
            first = await ended(orchestra, (await start(orchestra, order)).id)
            assert {"quote": 1, "pay": 1, "ship": 1, "refund": 1} == worker.ran
            dry = await stub.RerunExecution(rerun(first.id, node("ship"), validate_only=True))
            again = await stub.RerunExecution(rerun(first.id))
            assert FAILED == (await ended(orchestra, again.execution.id)).status
            # It paid again before it gave back again.
            assert {"quote": 1, "pay": 2, "ship": 2, "refund": 2} == worker.ran
            worker.failing.clear()
            named = await stub.RerunExecution(rerun(first.id, node("ship", node_version=1)))
            assert COMPLETED == (await ended(orchestra, named.execution.id)).status
            many = await stub.BatchRerunExecutions(
                rerun_service_pb2.BatchRerunExecutionsRequest(execution_ids=[first.id])
            )
            done = await ended(orchestra, many.items[0].new_execution_id)
    assert (COMPLETED, '{"out":4}') == (done.status, done.output_json)
    assert {"quote": 1, "pay": 4, "ship": 4, "refund": 2} == worker.ran
    assert [1, 1, 1] == [each.kept_results for each in (dry, again, named)]
    hold_invariants(orchestra)
