"""What a limit holds up is told with who has its places, how many come first, and what helps."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from qflow.orchestrator.v1 import control_service_pb2

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import ended, start
from tests.integration.orchestrator.test_clocks import steering
from tests.integration.orchestrator.test_limits import (
    LIMITED,
    NODE,
    TENANT,
    crowded,
    explained,
    limit,
    never,
    node,
    one,
    run_of,
)
from tests.integration.orchestrator.test_runs import add_one

__all__ = ["node", "one"]  # fixtures


async def test_a_run_over_a_limit_is_told_who_has_its_places_and_its_own_in_line(
    orchestra: Orchestra, one: str
) -> None:
    async with crowded(orchestra, one, places=2, count=4) as (_, runs):
        for ahead, run in enumerate(runs[2:]):
            [reason] = await explained(orchestra, run)
            assert (LIMITED, [], 0) == (reason.cause, list(reason.nodes), reason.node_count)
            told = reason.limit
            assert ("few", 2, 2, 2) == (
                told.name,
                told.max_running,
                told.taken_count,
                told.execution_count,
            )
            assert (set(runs[:2]), ahead) == (set(told.execution_ids), told.ahead_count)
            assert f"2 of 2 are taken by 2 executions ({told.execution_ids[0]}" in reason.message
            assert reason.action.startswith("wait until one of them ends; CancelExecution of ")
            assert "UpdateLimit with the name few" in reason.action
        # One that is paused ends by nobody's waiting.
        await steering(orchestra).PauseExecution(
            control_service_pb2.PauseExecutionRequest(execution_id=runs[1])
        )
        [reason] = await explained(orchestra, runs[3])
        assert reason.action.startswith(f"ResumeExecution of {runs[1]}, which is paused")
        assert runs[1] == reason.limit.execution_ids[0]


async def test_nodes_over_a_limit_are_told_apart_from_those_that_have_its_places(
    orchestra: Orchestra, node: factories.Node
) -> None:
    """Of one run both: nothing but its own attempts is in its way."""
    wide = str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"a": node, "b": node},
            edges=[("", "x", "a", "x"), ("", "x", "b", "x")],
            outputs=[("out", "a")],
        )
    )
    async with orchestra.running():
        await limit(orchestra, target=NODE, node_id=str(node.id), max_running=1)
        runner = await orchestra.runner(never)
        async with runner.attached():
            run = (await start(orchestra, wide)).id
            await runner.until(lambda: [run] == [run_of(each) for each in runner.held.values()])
            [reason] = [each for each in await explained(orchestra, run) if each.cause == LIMITED]
            assert ["b"] == list(reason.nodes)
            assert ([run], 1, 0) == (
                list(reason.limit.execution_ids),
                reason.limit.taken_count,
                reason.limit.ahead_count,
            )
            assert "1 of 1 are taken, all by this run; it is next" in reason.message
            assert reason.action.startswith("wait until one of them ends, or UpdateLimit")


async def test_what_a_rate_holds_up_is_told_when_the_next_may_begin(
    orchestra: Orchestra, one: str
) -> None:
    async with orchestra.running():
        await limit(orchestra, target=TENANT, max_starts=1, period=Duration(seconds=3600))
        runner = await orchestra.runner(add_one)
        async with runner.attached():
            runs = [(await start(orchestra, one)).id for _ in range(2)]
            await ended(orchestra, runs[0])
            [reason] = await explained(orchestra, runs[1])
            assert reason.action == "wait, or UpdateLimit with the name few lets more go on"
            assert "its rate lets the next begin at the time that is given" in reason.message
            [(seconds,)] = orchestra.rows(
                "SELECT EXTRACT(epoch FROM updated_at)::float8 FROM limit_buckets"
            )
    assert reason.time.ToNanoseconds() / 1e9 == pytest.approx(float(str(seconds)) + 3600, abs=0.01)
    assert (0, 0) == (reason.limit.max_running, reason.limit.execution_count)


async def test_what_is_ended_or_held_up_by_hand_waits_for_no_limit_any_more(
    orchestra: Orchestra, node: factories.Node
) -> None:
    places = ["a", "b", "c", "d"]
    wide = str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes=dict.fromkeys(places, node),
            edges=[("", "x", each, "x") for each in places],
            outputs=[(each, each) for each in places],
        )
    )
    async with orchestra.running():
        await limit(orchestra, target=NODE, node_id=str(node.id), max_running=1)
        runner = await orchestra.runner(never)
        async with runner.attached():
            run = (await start(orchestra, wide)).id
            await runner.until(lambda: bool(runner.held))
            stub = steering(orchestra)
            ended_one = {"execution_id": run, "node": "b", "output_json": '{"result":1}'}
            await stub.SkipNode(control_service_pb2.SkipNodeRequest(**ended_one))
            held_up = {"execution_id": run, "node": "c"}
            await stub.PauseNode(control_service_pb2.PauseNodeRequest(**held_up))
            reasons = await explained(orchestra, run)
            assert [["d"]] == [list(each.nodes) for each in reasons if each.cause == LIMITED]
            await stub.SkipNode(control_service_pb2.SkipNodeRequest(**ended_one | {"node": "d"}))
            assert LIMITED not in [each.cause for each in await explained(orchestra, run)]
