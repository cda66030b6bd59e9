"""The runner's end of an Attach stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn
from uuid import UUID

import grpc
from google.protobuf.message import DecodeError
from qflow.orchestrator.v1 import attach_service_pb2 as pb
from qflow.orchestrator.v1.attach_service_pb2_grpc import AttachServiceStub

from services.kit.lane import Lane, LaneLost, enter
from services.kit.rpc.channel import open_channel
from services.kit.rpc.tls import Trust
from services.runner.domain.attempts import FileReference
from services.runner.domain.frames import (
    Greeting,
    Incoming,
    Outgoing,
    Value,
    ValuesNotGiven,
)
from services.runner.gateways import attach_frames

_STATUS_S: Final = 0.5  # to wait for the stream's status, if its lane ends first
_GET_VALUES_S: Final = 60.0
# Errors of the request itself: a retry would fail in the same way.
_REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class StreamLost(Exception):  # noqa: N818 - it ends a stream, not an attempt
    """The stream ended or could not be opened."""

    def __init__(self, message: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(message)
        self.code = code


class AttachStream:
    """One open stream to one orchestrator."""

    def __init__(self, address: str, token: str, *, trust: Trust | None = None) -> None:
        self._channel = open_channel(address, token, trust=trust, peer="orchestrator")
        self._stub: Any = AttachServiceStub(self._channel)
        self._call: Any = None
        self._lane: Lane | None = None  # if set, carries all frames after the welcome
        self._closed = False

    @property
    def by_lane(self) -> bool:
        """Whether frames travel over a local socket instead of the stream."""
        return self._lane is not None

    async def open(self, greeting: Greeting, first: Outgoing) -> tuple[str, int]:
        """Send the greeting; returns the orchestrator's (member id, epoch). Raises StreamLost."""
        with self._ending():
            self._call = self._stub.Attach()
            frames = list(attach_frames.frames(first))
            frames[0].hello.CopyFrom(attach_frames.hello(greeting))
            for frame in frames:
                await self._call.write(frame)
            answer = await self._call.read()
        if answer is grpc.aio.EOF or not answer.HasField("welcome"):
            await self._raise_status()
        if answer.welcome.HasField("lane"):
            offer = answer.welcome.lane
            self._lane = await enter(offer.path, offer.key, offer.answer)
            with self._ending():
                await self._call.write(pb.AttachRequest(lane=self.by_lane))
        return answer.welcome.member_id, answer.welcome.epoch

    async def send(self, outgoing: Outgoing) -> None:
        """Write everything, in frames under the size limit; raises StreamLost."""
        with self._ending():
            for frame in attach_frames.frames(outgoing):
                if self._lane is None:
                    await self._call.write(frame)
                else:
                    await self._lane.send(frame.SerializeToString())

    def put(self, outgoing: Outgoing) -> bool:
        """Write everything without waiting, if a lane has room; returns whether it did.

        Returns False on errors too: `send` then raises them.
        """
        if self._lane is None:
            return False
        try:
            frames = [frame.SerializeToString() for frame in attach_frames.frames(outgoing)]
        except Exception:  # noqa: BLE001
            return False
        return self._lane.put_at_once(frames)

    async def listen(self, take: Callable[[Incoming], None]) -> NoReturn:
        """Pass on frames until the stream ends, then raise StreamLost."""
        if self._lane is not None:
            await self._listen_by(self._lane, take)
        while True:
            with self._ending():
                frame = await self._call.read()
            if frame is grpc.aio.EOF:
                await self._raise_status()
            take(attach_frames.incoming(frame))

    async def _listen_by(self, lane: Lane, take: Callable[[Incoming], None]) -> NoReturn:
        """Pass on frames in the event loop's callback; the stream only reports its end."""

        def take_raw(raw: bytes) -> None:
            take(attach_frames.incoming(pb.AttachResponse.FromString(raw)))

        lane.listen(take_raw)
        ending = asyncio.ensure_future(self._call.read())
        try:
            await asyncio.wait({ending, lane.ended}, return_when=asyncio.FIRST_COMPLETED)
            if lane.fault is not None:
                raise lane.fault
            await asyncio.wait({ending}, timeout=_STATUS_S)  # it says why
            if not ending.done():
                raise StreamLost("the lane has ended")
            with self._ending():
                await ending
            await self._raise_status()
        except (LaneLost, DecodeError) as fault:
            raise StreamLost(f"the lane: {fault}") from None
        finally:
            ending.cancel()

    async def get_values(self, attempt_ref: UUID, token: int, count: int) -> list[Value]:
        """Pull the inputs of an attempt that are too large for its assignment.

        Raises ValuesNotGiven, also if the orchestrator does not own the attempt at the moment: it
        may be reloading the run. If the attempt has ended, the stream reports it.
        """
        parts: list[list[bytes | FileReference]] = [[] for _ in range(count)]
        request = pb.GetValuesRequest(attempt_ref=attempt_ref.bytes, token=token)
        try:
            with self._ending():
                async for part in self._stub.GetValues(request, timeout=_GET_VALUES_S):
                    if 0 <= part.input < count:
                        parts[part.input].append(
                            attach_frames.file_from(part.file)
                            if part.HasField("file")
                            else part.chunk
                        )
        except StreamLost as lost:
            if lost.code in _REFUSALS:
                raise
            raise ValuesNotGiven(str(lost)) from None
        return [attach_frames.whole(pieces) for pieces in parts]

    async def close(self) -> None:
        """End the stream and its connection."""
        self._closed = True
        if self._lane is not None:
            self._lane.end()
        if self._call is not None:
            self._call.cancel()
        await self._channel.close()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Raise StreamLost for each error by which gRPC reports that a call has ended."""
        try:
            yield
        except grpc.aio.AioRpcError as problem:
            raise StreamLost(
                f"{problem.code().name}: {problem.details()}", problem.code()
            ) from None
        except (
            grpc.RpcError,
            grpc.aio.UsageError,
            asyncio.InvalidStateError,
            LaneLost,
        ) as problem:
            raise StreamLost(str(problem) or type(problem).__name__) from None
        except asyncio.CancelledError:
            # gRPC reports a cancelled call in this way, though the task was not cancelled.
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise StreamLost("closed") from None
            raise

    async def _raise_status(self) -> NoReturn:
        code = await self._call.code()
        details = await self._call.details()
        raise StreamLost(f"{code.name}: {details}" if code is not None else "ended")
