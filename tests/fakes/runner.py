"""A runner without sandboxes: it speaks Attach and answers by a function of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import orjson
from qflow.isolation.v1 import isolation_pb2
from qflow.orchestrator.v1 import attach_service_pb2 as pb
from qflow.orchestrator.v1.attach_service_pb2_grpc import AttachServiceStub

from services.kit.ids import uuid7

_AGAIN_S = 0.1

Answer = Callable[[Any, Any, dict[str, Any]], object]


class Fail(Exception):  # noqa: N818  # what a node does, not a fault of the test
    """Raised by an answer: the attempt fails with this error type."""

    def __init__(
        self,
        error_type: str = "user_error",
        *,
        retryable: bool = True,
        progress: str = "",
        exception: str = "",
    ) -> None:
        super().__init__(error_type)
        self.exception = exception
        self.progress = progress
        self.error_type = error_type
        self.retryable = retryable


class PartedError(Exception):
    """The orchestrator ended a stream before its first word: it has taken shards in."""


@dataclass(slots=True)
class FakeRunner:
    """What it was told, and how it answers."""

    channel: grpc.aio.Channel
    answer: Answer
    slots: int = 8
    window: int = 0  # that it grants; as many as its slots when 0
    cpu_us: int = 100  # that each attempt says it took
    user_us: int = 0  # that each attempt says it was in the user's function
    moved_bytes: int = 10  # that each attempt says it was given and gave
    incarnation: UUID = field(default_factory=uuid7)
    assigns: list[pb.AttemptAssignment] = field(default_factory=list)
    acks: list[pb.AttemptAck] = field(default_factory=list)
    kills: list[pb.AttemptKill] = field(default_factory=list)
    superseded: list[pb.AttemptSuperseded] = field(default_factory=list)
    held: dict[bytes, pb.AttemptAssignment] = field(
        default_factory=dict
    )  # attempts without an answer yet
    unacked: dict[bytes, pb.AttemptResult] = field(default_factory=dict)
    member: str = ""  # the orchestrator's, as it says
    other: FakeRunner | None = None  # the same runner's stream to another orchestrator
    told: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _out: asyncio.Queue[pb.AttachRequest] = field(default_factory=asyncio.Queue)
    _defines: dict[int, pb.AttemptDefinition] = field(default_factory=dict)

    @asynccontextmanager
    async def attached(self) -> AsyncIterator[FakeRunner]:
        """Hold the stream inside the block."""
        self._out = asyncio.Queue()
        call = AttachServiceStub(self.channel).Attach(self._frames())
        welcome: Any = await call.read()
        if welcome is grpc.aio.EOF:
            raise PartedError
        assert welcome.HasField("welcome"), welcome
        self.member = welcome.welcome.member_id
        reading = asyncio.create_task(self._read(call))
        try:
            yield self
        finally:
            reading.cancel()
            call.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[FakeRunner]:
        """Hold a stream inside the block, and make it again whenever it ends or cannot be made."""

        async def keep() -> None:
            while True:
                self.ended.clear()
                try:
                    async with self.attached():
                        await self.ended.wait()
                except PartedError:
                    await asyncio.sleep(_AGAIN_S)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise
                    await asyncio.sleep(_AGAIN_S)  # an orchestrator may not listen yet

        keeping = asyncio.create_task(keep())
        try:
            yield self
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _frames(self) -> AsyncIterator[pb.AttachRequest]:
        inventory = [
            pb.RunnerInventoryItem(attempt_ref=ref, token=each.token, state=state)
            for state, known in (
                (pb.ATTEMPT_STATE_RUNNING, self.held),
                (pb.ATTEMPT_STATE_FINISHED, self.unacked),
            )
            for ref, each in known.items()
        ]
        yield pb.AttachRequest(
            hello=pb.RunnerHello(
                incarnation=str(self.incarnation),
                protocol=1,
                slots=self.slots,
                tiers=[isolation_pb2.TIER_T0],
                pythons=["3.11"],
                inventory=inventory,
            ),
            grant=pb.RunnerGrant(credits=self.window or self.slots, grant_epoch=1),
            results=list(self.unacked.values()),
        )
        while True:
            yield await self._out.get()

    async def _read(self, call: Any) -> None:
        # A write that meets the end of a stream makes its read fail: that is an end, too.
        with suppress(grpc.aio.AioRpcError):
            while (frame := await call.read()) is not grpc.aio.EOF:
                self._take(frame)
        self.ended.set()

    def _take(self, frame: Any) -> None:
        for define in frame.definitions:
            self._defines[define.definition] = define
        self.acks.extend(frame.acks)
        self.kills.extend(frame.kills)
        self.superseded.extend(frame.superseded)
        for ack in [*frame.acks, *frame.superseded]:
            self.unacked.pop(ack.attempt_ref, None)
            self.held.pop(ack.attempt_ref, None)
        for owner in frame.owners:
            known = self.unacked.get(owner.attempt_ref)
            if known is not None and self.other and owner.member_id == self.other.member:
                self.other._out.put_nowait(pb.AttachRequest(results=[known]))
        for kill in frame.kills:
            held = self.held.get(kill.attempt_ref)
            known = self.unacked.get(kill.attempt_ref)
            if held is not None:
                self.fail(held, "cancelled", killed=True)
            elif known is not None:
                self._out.put_nowait(pb.AttachRequest(results=[known]))
        for assign in frame.assignments:
            self.assigns.append(assign)
            self._make(assign)
        self.told.set()

    def _make(self, assign: pb.AttemptAssignment) -> None:
        define = self._defines[assign.definition]
        inputs = {
            binding.name: value.file if value.HasField("file") else orjson.loads(value.json)
            for binding, value in zip(define.inputs, assign.inputs, strict=not assign.pull)
        }
        self.held[assign.attempt_ref] = assign
        try:
            answer = self.answer(define, assign, inputs)
        except Fail as failure:
            self.fail(
                assign,
                failure.error_type,
                retryable=failure.retryable,
                progress=failure.progress,
                exception=failure.exception,
            )
        else:
            if answer is not None:
                self.succeed(assign, answer)

    def succeed(self, assign: pb.AttemptAssignment, value: object) -> None:
        """Answer an attempt with its one output, or with the file that holds it."""
        if isinstance(value, pb.AttemptValueFile):
            self._send(assign, success=pb.AttemptSuccess(file=value))
            return
        raw = value if isinstance(value, bytes) else orjson.dumps(value)
        self._send(assign, success=pb.AttemptSuccess(outputs=[raw]))

    def fail(
        self,
        assign: pb.AttemptAssignment,
        error_type: str,
        *,
        retryable: bool = True,
        killed: bool = False,
        progress: str = "",
        exception: str = "",
    ) -> None:
        """Answer an attempt with a failure."""
        failure = pb.AttemptFailure(
            error_type=error_type,
            message=f"it {error_type}",
            retryable=retryable,
            killed=killed,
            progress_json=progress,
            exception_type=exception,
        )
        self._send(assign, failure=failure)

    def decline(self, assign: pb.AttemptAssignment) -> None:
        """Do not take an attempt."""
        self.held.pop(assign.attempt_ref, None)
        self._out.put_nowait(
            pb.AttachRequest(
                declines=[
                    pb.AttemptDecline(
                        attempt_ref=assign.attempt_ref, token=assign.token, reason="over_grant"
                    )
                ]
            )
        )

    def _send(
        self, assign: pb.AttemptAssignment, **outcome: pb.AttemptSuccess | pb.AttemptFailure
    ) -> None:
        result = pb.AttemptResult(
            attempt_ref=assign.attempt_ref,
            token=assign.token,
            cpu_us=self.cpu_us,
            memory_peak_bytes=1 << 20,
            user_us=self.user_us,
            serialization_us=5,
            transfer_us=7,
            moved_bytes=self.moved_bytes,
            stdout_tail="out",
            **outcome,  # type: ignore[arg-type]
        )
        self.say(result)

    def say(self, *results: pb.AttemptResult) -> None:
        """Send results, all in one frame."""
        for result in results:
            self.held.pop(result.attempt_ref, None)
            self.unacked[result.attempt_ref] = result
        self._out.put_nowait(pb.AttachRequest(results=results))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what it is told to make a condition true."""
        while not condition():
            self.told.clear()
            await self.told.wait()


async def register(
    db: asyncpg.Connection[asyncpg.Record], runner: FakeRunner, *, ttl_s: float
) -> None:
    """Write the runner's own row, as its process would."""
    await db.execute(
        "INSERT INTO runner_members (incarnation, state, expires_at)"
        " VALUES ($1, 'live', clock_timestamp() + $2 * interval '1 second')"
        " ON CONFLICT (incarnation) DO UPDATE SET expires_at = EXCLUDED.expires_at",
        runner.incarnation,
        ttl_s,
    )
