"""A real runner and a real orchestrator, with and without the lane beside their stream."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest
from qflow.orchestrator.v1 import execution_pb2

from services.kit.lane import Lane, Lanes, Place
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.test_attach import attached, run, runner_of, single, until

__all__ = ["orchestra"]

_ADDS = "def main(x: int) -> int:\n    return x + 1\n"
_WAITS = "import time\ndef main(x: int) -> int:\n    time.sleep(1)\n    return x + 1\n"


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[Place]:
    """Give the places for lanes that the orchestrator of this process promises."""
    seen: list[Place] = []
    promise = Lanes.promise

    def noted(self: Lanes) -> Place | None:
        place = promise(self)
        if place is not None:
            seen.append(place)
        return place

    monkeypatch.setattr(Lanes, "promise", noted)
    return seen


def lane_of(places: list[Place]) -> Lane:
    lane = places[-1].lane
    assert lane is not None
    return lane


@pytest.mark.parametrize("way", ["lane", "switched off", "not reached"])
async def test_runs_go_by_the_lane_where_there_is_one_and_else_by_grpc(
    orchestra: Orchestra, way: str
) -> None:
    if way == "switched off":
        orchestra.more_env["QFLOW_ORCHESTRATOR_ATTACH_LANE"] = "0"
    by_lane = "true" if way == "lane" else "false"
    async with orchestra.running():
        if way == "not reached":  # as in a container without the folder
            (orchestra.home / "run" / "attach.lane").unlink()
        async with attached(orchestra) as runner:
            await runner.until_said(f'"lane":{by_lane}')
            workflow = single(orchestra, _ADDS)
            for x in range(3):
                done = await run(orchestra, workflow, x)
                assert {"out": x + 1} == json.loads(done.output_json)


async def test_a_lane_that_is_cut_ends_no_attempt_and_its_result_is_offered_again(
    orchestra: Orchestra, places: list[Place]
) -> None:
    """Rule 7, by either end, while an attempt is under way."""
    async with orchestra.running(), attached(orchestra) as runner:
        workflow = single(orchestra, _WAITS)
        for times in (2, 3):
            running = asyncio.create_task(run(orchestra, workflow))
            await until(
                orchestra,
                "SELECT 1 FROM node_executions WHERE status = 'running'"
                " AND EXISTS (SELECT 1 FROM containers WHERE status = 'running')",
            )
            transport = lane_of(places)._transport
            assert transport is not None
            transport.abort()
            await runner.until_said('"attached"', times=times)
            done = await running
            assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status, done
        assert times == len(places)
        assert [(0, 0)] * 2 == orchestra.rows(
            "SELECT retry_count, delivery_count FROM node_executions"
        )


@pytest.mark.parametrize("raw", [b"\xff" * 4, b"\0\0\0\3abc"])
async def test_a_frame_that_is_none_ends_the_session_with_a_line_in_the_runners_log(
    orchestra: Orchestra, places: list[Place], raw: bytes
) -> None:
    async with orchestra.running(), attached(orchestra) as runner:
        transport = lane_of(places)._transport
        assert transport is not None
        transport.write(raw)
        await runner.until_said("stream_lost")
        await runner.until_said("the lane: ")
        await runner.until_said('"attached"', times=2)
        done = await run(orchestra, single(orchestra, _ADDS))
        assert {"out": 2} == json.loads(done.output_json)


async def test_a_runner_that_stands_still_and_is_killed_takes_its_lane_along(
    orchestra: Orchestra, places: list[Place]
) -> None:
    """F3, F6: what it holds up is its own."""
    async with orchestra.running():
        workflow = single(orchestra, _ADDS)
        still = runner_of(orchestra, QFLOW_RUNNER_NAME="still").start()
        await still.until_said('"attached"')
        lane = lane_of(places)
        still.send(signal.SIGSTOP)
        async with attached(orchestra, QFLOW_RUNNER_NAME="other"):
            await still.stop(signal.SIGKILL)
            await asyncio.wait_for(lane.ended, 30)
            for x in range(3):
                done = await run(orchestra, workflow, x)
                assert {"out": x + 1} == json.loads(done.output_json)
