"""A runner and an orchestrator between which the network holds, stalls and breaks."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.test_attach import attached, run, single, until
from tests.support.link import Link, Way

__all__ = ["orchestra"]

COMPLETED = execution_pb2.EXECUTION_STATUS_COMPLETED
_ADDRESS = "QFLOW_ORCHESTRATOR_ATTACH_ADDRESS"
_ADD_ONE = "def main(x: int) -> int:\n    return x + 1\n"


@pytest.fixture(autouse=True)
def _far_apart(orchestra: Orchestra) -> None:
    """Between machines there is no lane beside the link."""
    orchestra.more_env["QFLOW_ORCHESTRATOR_ATTACH_LANE"] = "0"


async def started(orchestra: Orchestra, workflow: str, x: int) -> str:
    request = pb.StartExecutionRequest(workflow_id=workflow, input_json=json.dumps({"x": x}))
    return (await orchestra.stub.StartExecution(request)).execution.id


async def outcome(orchestra: Orchestra, execution: str) -> tuple[int, Any]:
    request = pb.WaitExecutionRequest(execution_id=execution)
    async with asyncio.timeout(60):
        while not (answer := await orchestra.stub.WaitExecution(request, timeout=30)).done:
            pass
    return answer.execution.status, json.loads(answer.execution.output_json or "null")


@pytest.mark.parametrize("ways", [("up",), ("down",), ("up", "down")])
async def test_what_runs_behind_a_link_that_holds_everything_comes_to_its_end_once_it_is_mended(
    orchestra: Orchestra, ways: tuple[Way, ...]
) -> None:
    """F23, G2, I8: one way or both, for longer than a lease; each outcome is written once."""
    workflow = single(orchestra, _ADD_ONE)
    async with orchestra.running(), Link.to(orchestra.attach_address) as link:
        async with attached(orchestra, **{_ADDRESS: link.address}):
            assert COMPLETED == (await run(orchestra, workflow)).status
            link.hold(*ways)
            [(now,)] = orchestra.rows("SELECT clock_timestamp()::text")
            runs = [await started(orchestra, workflow, x) for x in range(4)]
            over = f"timestamptz '{now}' + interval '{1.5 * orchestra.ttl_s} seconds'"
            await until(orchestra, f"SELECT 1 WHERE clock_timestamp() > {over}")
            assert [(4,)] == orchestra.rows(
                "SELECT count(*)::int FROM workflow_executions WHERE completed_at IS NULL"
            )
            link.heal()
            found = [await outcome(orchestra, each) for each in runs]
            assert [(COMPLETED, {"out": x + 1}) for x in range(4)] == found
    assert [(5, 5)] == orchestra.rows(
        "SELECT count(*)::int, count(*) FILTER (WHERE status = 'completed')::int"
        " FROM node_executions"
    )


async def test_over_links_that_stall_and_break_all_runs_come_to_their_ends(
    orchestra: Orchestra,
) -> None:
    """F25, G2, I6: what is lost or comes in another order is late for TCP, or breaks it."""
    node = factories.node(orchestra.sql, orchestra.owner)
    places = [f"n{at}" for at in range(12)]
    edges = [("", "x", "n0", "x")]
    edges += [(a, "result", b, "x") for a, b in itertools.pairwise(places)]
    workflow = str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes=dict.fromkeys(places, node),
            edges=edges,
            outputs=[("out", "n11")],
        )
    )
    async with orchestra.running(), Link.to(orchestra.attach_address) as link:
        async with attached(orchestra, **{_ADDRESS: link.address}):
            link.stall_s_max = 0.03
            runs = [await started(orchestra, workflow, x) for x in range(3)]
            for done in (3, 9, 15, 21):
                query = "SELECT 1 FROM node_executions WHERE status = 'completed' OFFSET %d LIMIT 1"
                await until(orchestra, query % (done - 1))
                link.reset()
            found = [await outcome(orchestra, each) for each in runs]
            assert 4 == link.resets
    assert [COMPLETED] * 3 == [status for status, _ in found]
    assert [(36, 0)] == orchestra.rows(
        "SELECT count(*)::int, max(delivery_count)::int FROM node_executions"
    )
