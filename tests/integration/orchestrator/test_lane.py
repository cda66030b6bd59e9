"""The lane beside an Attach stream, seen from a runner's place: who gets it, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from qflow.isolation.v1 import isolation_pb2
from qflow.orchestrator.v1 import attach_service_pb2 as pb
from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as runs_pb
from qflow.orchestrator.v1.attach_service_pb2_grpc import AttachServiceStub

from services.kit.lane import Lane, enter
from services.kit.rpc.channel import open_channel
from services.orchestrator.engine.member import Member
from services.orchestrator.engine.owner import Owner
from tests import factories
from tests.fakes.runner import FakeRunner
from tests.integration.orchestrator.conftest import Orchestra

_SECONDS = 30


async def has(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_SECONDS):
        while not condition():  # noqa: ASYNC110  # frames bring it
            await asyncio.sleep(0.01)


@dataclass
class Talk:
    """A stream to which a lane was offered, and what came by either way."""

    call: Any
    offer: pb.RunnerLane
    by_lane: list[pb.AttachResponse] = field(default_factory=list)
    by_stream: list[pb.AttachResponse] = field(default_factory=list)
    lane: Lane | None = None

    async def enter(self, offer: pb.RunnerLane | None = None) -> Lane:
        offer = offer or self.offer
        self.lane = await enter(offer.path, offer.key, offer.answer)
        assert self.lane is not None
        return self.lane

    async def choose(self, *, lane: bool) -> None:
        if lane and self.lane is not None:
            self.lane.listen(lambda raw: self.by_lane.append(pb.AttachResponse.FromString(raw)))
        await self.call.write(pb.AttachRequest(lane=lane))

    async def end(self) -> grpc.StatusCode:
        """Wait for the stream's end; gives how it ended."""
        async with asyncio.timeout(_SECONDS):
            while True:
                try:
                    frame = await self.call.read()
                except grpc.aio.AioRpcError as error:
                    return error.code()
                if frame is grpc.aio.EOF:
                    code: grpc.StatusCode = await self.call.code()
                    return code
                self.by_stream.append(frame)

    async def assigned(self) -> pb.AttemptAssignment:
        """Wait for an assignment by the lane."""
        await has(lambda: any(frame.assignments for frame in self.by_lane))
        return next(each for frame in self.by_lane for each in frame.assignments)

    def say(self, frame: pb.AttachRequest) -> None:
        assert self.lane is not None
        self.lane.put(frame.SerializeToString())


def result(assignment: pb.AttemptAssignment, *outputs: bytes) -> pb.AttachRequest:
    return pb.AttachRequest(
        results=[
            pb.AttemptResult(
                attempt_ref=assignment.attempt_ref,
                token=assignment.token,
                success=pb.AttemptSuccess(outputs=outputs),
            )
        ]
    )


@asynccontextmanager
async def talking(orchestra: Orchestra, *, lane: bool = True) -> AsyncIterator[Talk]:
    """Attach as a runner that can use a lane, or cannot."""
    async with open_channel(orchestra.attach_address, orchestra.runner_token) as channel:
        runner = FakeRunner(channel, lambda *_: None, incarnation=uuid4())
        await orchestra.renew(runner, ttl_s=3600)
        call: Any = AttachServiceStub(channel).Attach()
        hello = pb.RunnerHello(
            incarnation=str(runner.incarnation),
            protocol=1,
            slots=8,
            tiers=[isolation_pb2.TIER_T0],
            pythons=["3.11"],
            lane=lane,
        )
        grant = pb.RunnerGrant(credits=8, grant_epoch=1)
        await call.write(pb.AttachRequest(hello=hello, grant=grant))
        welcome = await call.read()
        talk = Talk(call, welcome.welcome.lane)
        assert lane is bool(talk.offer.path)
        try:
            yield talk
        finally:
            call.cancel()
            if talk.lane is not None:
                talk.lane.end()


async def started(orchestra: Orchestra) -> str:
    """Start a run of one node."""
    node = factories.node(orchestra.sql, orchestra.owner)
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": node},
        edges=[("", "x", "a", "x")],
        outputs=[("out", "a")],
    )
    answer = await orchestra.stub.StartExecution(
        runs_pb.StartExecutionRequest(workflow_id=str(workflow), input_json='{"x":1}')
    )
    return str(answer.execution.id)


async def outputs(orchestra: Orchestra, run: str) -> Any:
    done = await orchestra.stub.WaitExecution(
        runs_pb.WaitExecutionRequest(execution_id=run), timeout=_SECONDS
    )
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.execution.status, done
    return json.loads(done.execution.output_json)


async def test_a_run_goes_by_the_lane_and_nothing_of_it_by_the_stream(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running(), talking(orchestra) as talk:
        await talk.enter()
        await talk.choose(lane=True)
        ending = asyncio.create_task(talk.end())
        run = await started(orchestra)
        talk.say(result(await talk.assigned(), b"2"))
        assert {"out": 2} == await outputs(orchestra, run)
        await has(lambda: any(frame.acks for frame in talk.by_lane))
        assert [] == talk.by_stream
        await talk.call.done_writing()  # the runner ends its session
        assert grpc.StatusCode.OK == await ending
        assert talk.lane is not None
        await asyncio.wait_for(talk.lane.ended, _SECONDS)


async def test_who_does_not_enter_or_cannot_is_told_all_by_the_stream(
    orchestra: Orchestra,
) -> None:
    """F37: a runner of before knows of no lane, and one elsewhere reaches none."""
    async with orchestra.running():
        for knows in (True, False):
            async with talking(orchestra, lane=knows) as talk:
                if knows:
                    await talk.choose(lane=False)
                ending = asyncio.create_task(talk.end())
                run = await started(orchestra)
                await has(lambda: any(frame.assignments for frame in talk.by_stream))
                [given] = [each for frame in talk.by_stream for each in frame.assignments]
                await talk.call.write(result(given, b"2"))
                assert {"out": 2} == await outputs(orchestra, run)
                ending.cancel()


async def test_nothing_is_said_or_read_before_the_choice(orchestra: Orchestra) -> None:
    """So nothing overtakes anything: what came by the stream counts first."""
    async with orchestra.running(), talking(orchestra) as talk:
        lane = await talk.enter()
        # Read too early, it would take back what the stream granted, and nothing be assigned.
        talk.say(pb.AttachRequest(grant=pb.RunnerGrant(credits=0, grant_epoch=2)))
        await asyncio.sleep(0.05)
        run = await started(orchestra)
        heard: list[bytes] = []
        lane.listen(heard.append)
        ending = asyncio.create_task(talk.end())
        await asyncio.sleep(0.2)
        assert [] == heard
        await talk.choose(lane=True)
        talk.say(result(await talk.assigned(), b"2"))
        assert {"out": 2} == await outputs(orchestra, run)
        assert [] == talk.by_stream
        ending.cancel()


async def test_a_lane_is_its_own_streams_alone(orchestra: Orchestra) -> None:
    """SEC: with another's key it is another's lane, used or not; a word without one is refused."""
    async with orchestra.running(), talking(orchestra) as one, talking(orchestra) as other:
        assert one.offer.key != other.offer.key
        await one.enter(other.offer)
        await one.choose(lane=True)
        assert grpc.StatusCode.INVALID_ARGUMENT == await one.end()
        used = other.offer
        assert await enter(used.path, used.key, used.answer) is None
        gone = one.offer
        assert await enter(gone.path, gone.key, gone.answer) is None  # its stream is over
        async with talking(orchestra) as third:
            await third.choose(lane=True)
            assert grpc.StatusCode.INVALID_ARGUMENT == await third.end()
        async with talking(orchestra, lane=False) as fourth:
            await fourth.choose(lane=False)
            assert grpc.StatusCode.INVALID_ARGUMENT == await fourth.end()


@pytest.mark.parametrize("what", ["stream", "again", "garbage", "length", "id"])
async def test_what_is_no_frame_or_comes_by_the_wrong_way_ends_the_session(
    orchestra: Orchestra, what: str
) -> None:
    """B18."""
    async with orchestra.running(), talking(orchestra) as talk:
        lane = await talk.enter()
        await talk.choose(lane=True)
        match what:
            case "stream":
                await talk.call.write(pb.AttachRequest(grant=pb.RunnerGrant(credits=1)))
            case "again":
                await talk.call.write(pb.AttachRequest(lane=True))
            case "garbage":
                lane.put(b"\xff" * 100)
            case "length":
                assert lane._transport is not None
                lane._transport.write(b"\xff" * 4)
            case "id":
                decline = pb.AttemptDecline(attempt_ref=b"abc")
                talk.say(pb.AttachRequest(declines=[decline]))
        assert grpc.StatusCode.INVALID_ARGUMENT == await talk.end()
        await asyncio.wait_for(lane.ended, _SECONDS)


async def test_a_lane_that_is_cut_ends_its_stream_and_a_stream_its_lane(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running():
        async with talking(orchestra) as talk:
            lane = await talk.enter()
            await talk.choose(lane=True)
            await started(orchestra)
            ref = UUID(bytes=(await talk.assigned()).attempt_ref)
            assert lane._transport is not None
            lane._transport.abort()
            await talk.end()
        async with talking(orchestra) as talk:
            lane = await talk.enter()
            await talk.choose(lane=True)
            talk.call.cancel()
            await asyncio.wait_for(lane.ended, _SECONDS)
        # The loss of either ends no attempt: it is still the first runner's.
        assert [(1,)] == orchestra.rows("SELECT count(*) FROM node_executions WHERE id = %s", ref)


async def test_a_member_that_may_be_fenced_says_nothing_by_the_lane_either(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I3: what follows from memory is held back while another may own the run."""
    async with orchestra.running(), talking(orchestra) as talk:
        await talk.enter()
        await talk.choose(lane=True)
        ending = asyncio.create_task(talk.end())

        async def knows(_: Owner) -> bool:
            return False

        with monkeypatch.context() as fenced:
            fenced.setattr(Owner, "knows", knows)
            fenced.setattr(Member, "certain", property(lambda _: False))
            await started(orchestra)
            await ending
            assert not any(frame.assignments for frame in talk.by_lane)
            assert [] == talk.by_stream


async def test_a_runner_that_does_not_read_holds_nobody_else_up(orchestra: Orchestra) -> None:
    """Others are served, and what it was given it gets when it reads again, in order."""
    async with orchestra.running(), talking(orchestra) as slow:
        lane = await slow.enter()
        await slow.call.write(pb.AttachRequest(lane=True))  # and does not listen
        ran = [await started(orchestra) for _ in range(4)]
        quick = await orchestra.runner(lambda _define, _assign, given: given["x"] + 1)
        async with quick.attached():
            ran += [await started(orchestra) for _ in range(8)]
            await has(lambda: len(quick.acks) >= 4)
            lane.listen(lambda raw: slow.by_lane.append(pb.AttachResponse.FromString(raw)))
            await has(lambda: sum(len(frame.assignments) for frame in slow.by_lane) >= 4)
            for frame in slow.by_lane:
                for each in frame.assignments:
                    slow.say(result(each, b"2"))
            for run in ran:
                assert {"out": 2} == await outputs(orchestra, run)
