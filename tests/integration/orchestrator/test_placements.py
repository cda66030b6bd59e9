"""What waits is told to whoever can start runners, and such runs are not refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from qflow.isolation.v1 import isolation_pb2
from qflow.orchestrator.v1 import explain_service_pb2
from qflow.orchestrator.v1 import placement_service_pb2 as pb
from qflow.orchestrator.v1.placement_service_pb2_grpc import PlacementServiceStub

from services.kit.rpc.channel import open_channel
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import cancel, refusal, start
from tests.integration.orchestrator.test_explain import only

MACHINE = pb.PlacementMachine(
    tier=isolation_pb2.TIER_T2, labels={"zone": "eu"}, cpus=4, memory_bytes=1 << 30, gpus=1
)


@asynccontextmanager
async def watching(orchestra: Orchestra, **more: Any) -> AsyncIterator[Any]:
    """Listen as a placement, inside the block; `await call.read()` gives what waits next."""
    request = pb.WatchDemandRequest(pythons=["3.11"], **more)
    async with open_channel(orchestra.attach_address, orchestra.runner_token) as channel:
        stub: Any = PlacementServiceStub(channel)
        call = stub.WatchDemand(request)
        first = await asyncio.wait_for(call.read(), 30)
        assert [] == list(first.waiting)
        yield call
        call.cancel()


def workflow(orchestra: Orchestra, **runner: Any) -> str:
    node = factories.node(orchestra.sql, orchestra.owner)
    return str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"a": node},
            edges=[("", "x", "a", "x")],
            outputs=[("out", "a")],
            node_settings={"a": {"runner": runner}} if runner else None,
        )
    )


async def test_what_waits_is_told_by_what_it_needs_until_it_is_gone(orchestra: Orchestra) -> None:
    async with orchestra.running(), watching(orchestra, machines=[MACHINE]) as call:
        run = await start(orchestra, workflow(orchestra, gpus=1, labels={"zone": "eu"}))
        [waiting] = (await asyncio.wait_for(call.read(), 30)).waiting
        assert waiting == pb.WaitingNodes(
            count=1, python_version="3.11", labels={"zone": "eu"}, gpus=1
        )
        reason = await only(orchestra, run.id)
        assert explain_service_pb2.EXECUTION_CAUSE_NO_RUNNER == reason.cause
        assert "a runner is started for them" == reason.message
        await cancel(orchestra, run.id)
        assert [] == list((await asyncio.wait_for(call.read(), 30)).waiting)


async def test_a_run_that_no_runner_can_take_starts_where_one_can_be_placed(
    orchestra: Orchestra,
) -> None:
    """On one of the machines, or on any that may come."""
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            wanted, never = workflow(orchestra, gpus=1), workflow(orchestra, gpus=2)
            assert "RUNNER_MISSING" == (await refusal(start(orchestra, wanted)))[1]
            async with watching(orchestra, machines=[MACHINE]) as call:
                assert "RUNNER_MISSING" == (await refusal(start(orchestra, never)))[1]
                run = await start(orchestra, wanted)
                [waiting] = (await asyncio.wait_for(call.read(), 30)).waiting
                assert 1 == waiting.gpus
                await cancel(orchestra, run.id)
                await call.read()
            async with watching(orchestra, machines_come=True):
                await start(orchestra, never)
