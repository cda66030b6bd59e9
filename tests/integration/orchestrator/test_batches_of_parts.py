"""Batches by a filter that lets runs through as well as the sub-workflows that ran within them."""

from __future__ import annotations

from typing import Any

import pytest
from qflow.orchestrator.v1 import rerun_service_pb2 as pb

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import FAILED, chain, ended, reruns, start
from tests.integration.orchestrator.test_repeated_batches import fail


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("BatchRetryExecutions", pb.BatchRetryExecutionsRequest),
        ("BatchRerunExecutions", pb.BatchRerunExecutionsRequest),
    ],
)
async def test_a_part_is_made_again_with_the_whole_and_by_itself_where_it_is_named(
    orchestra: Orchestra, call: str, message: Any
) -> None:
    """Whatever it does would be done twice: in the new run of the whole, and beside it."""
    inner = chain(orchestra, "i")
    outer = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"s": {"kind": "workflow", "node_id": inner, "version": 1}},
        edges=[("", "x", "s", "x")],
        outputs=[],
    )
    async with orchestra.running():
        async with (await orchestra.runner(fail)).attached():
            run = await start(orchestra, outer)
            assert FAILED == (await ended(orchestra, run.id)).status
            [(part,)] = orchestra.rows(
                "SELECT id::text FROM workflow_executions WHERE parent_execution_id = %s", run.id
            )
            many = getattr(reruns(orchestra), call)
            found = await many(message(filter="status = failed"))
            assert [run.id] == [each.execution_id for each in found.items]
            assert FAILED == (await ended(orchestra, found.items[0].new_execution_id)).status
            named = await many(message(execution_ids=[str(part)]))
            assert FAILED == (await ended(orchestra, named.items[0].new_execution_id)).status
    # The whole twice with its part in it, and the part by itself once.
    made = "SELECT workflow_id::text, count(*)::int FROM workflow_executions GROUP BY 1"
    assert {(str(outer), 2), (inner, 3)} == set(orchestra.rows(made))
