"""The runner's end of an Attach stream, and its wire's form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn
from uuid import UUID

import grpc
from google.protobuf.message import DecodeError
from qflow.failure.v1 import failure_pb2
from qflow.isolation.v1 import isolation_pb2
from qflow.orchestrator.v1 import attach_service_pb2 as pb
from qflow.orchestrator.v1.attach_service_pb2_grpc import AttachServiceStub

from services.kit.ids import uuid_from_bytes
from services.kit.lane import Lane, LaneLost, enter
from services.kit.rpc.channel import open_channel
from services.kit.rpc.tls import Trust
from services.runner.domain.attempts import FileReference, Spliced
from services.runner.domain.frames import (
    Assignment,
    Definition,
    Finished,
    Greeting,
    Incoming,
    Kill,
    Outgoing,
    Owned,
    Value,
    ValuesNotGiven,
)
from services.runner.domain.limits import Asked
from services.runner.domain.network import Network, Reach
from services.runner.domain.reuse import Reuse

PROTOCOL: Final = 1
_FRAME_BYTES_MAX: Final = 256 * 1024
_STATUS_S: Final = 0.5  # for the stream's status to come, where its lane ends first
_GET_VALUES_S: Final = 60.0
_CAUSES: Final = {
    "cause": failure_pb2.CAUSE_KIND_CAUSE,
    "context": failure_pb2.CAUSE_KIND_CONTEXT,
    "member": failure_pb2.CAUSE_KIND_MEMBER,
}
# What is wrong with the question itself: it would be answered so for ever.
_REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class StreamLost(Exception):  # noqa: N818 - it ends a stream, not an attempt
    """The stream ended or could not be made."""

    def __init__(self, message: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(message)
        self.code = code


class AttachStream:
    """One held stream to one orchestrator."""

    def __init__(self, address: str, token: str, *, trust: Trust | None = None) -> None:
        self._channel = open_channel(address, token, trust=trust, peer="orchestrator")
        self._stub: Any = AttachServiceStub(self._channel)
        self._call: Any = None
        self._lane: Lane | None = None  # the way of all frames after the welcome, where there is
        self._closed = False

    @property
    def by_lane(self) -> bool:
        """Whether frames travel beside the stream, over a socket of this machine."""
        return self._lane is not None

    async def open(self, greeting: Greeting, first: Outgoing) -> tuple[str, int]:
        """Greet and be welcomed: (member id, epoch); raises StreamLost."""
        with self._ending():
            self._call = self._stub.Attach()
            frames = list(_frames(first))
            frames[0].hello.CopyFrom(_hello(greeting))
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
            for frame in _frames(outgoing):
                if self._lane is None:
                    await self._call.write(frame)
                else:
                    await self._lane.send(frame.SerializeToString())

    def put(self, outgoing: Outgoing) -> bool:
        """Write everything at once, by a lane that has room; False where that cannot be.

        Also where anything is wrong with it: `send` meets that again.
        """
        if self._lane is None:
            return False
        try:
            frames = [frame.SerializeToString() for frame in _frames(outgoing)]
        except Exception:  # noqa: BLE001
            return False
        return self._lane.put_at_once(frames)

    async def listen(self, take: Callable[[Incoming], None]) -> NoReturn:
        """Hand on what comes until the stream ends; raises StreamLost then."""
        if self._lane is not None:
            await self._listen_by(self._lane, take)
        while True:
            with self._ending():
                frame = await self._call.read()
            if frame is grpc.aio.EOF:
                await self._raise_status()
            take(_incoming(frame))

    async def _listen_by(self, lane: Lane, take: Callable[[Incoming], None]) -> NoReturn:
        """Hand it on in the loop's own callback; the stream only tells that it is over."""

        def take_raw(raw: bytes) -> None:
            take(_incoming(pb.AttachResponse.FromString(raw)))

        lane.listen(take_raw)
        ending = asyncio.ensure_future(self._call.read())
        try:
            await asyncio.wait({ending, lane.ended}, return_when=asyncio.FIRST_COMPLETED)
            if lane.fault is not None:
                raise lane.fault
            await asyncio.wait({ending}, timeout=_STATUS_S)  # it says why
            if not ending.done():
                raise StreamLost("its lane has ended")
            with self._ending():
                await ending
            await self._raise_status()
        except (LaneLost, DecodeError) as fault:
            raise StreamLost(f"its lane: {fault}") from None
        finally:
            ending.cancel()

    async def get_values(self, attempt_ref: UUID, token: int, count: int) -> list[Value]:
        """Pull the inputs of an attempt that are too large for its assignment.

        Raises ValuesNotGiven, also when the attempt is not this orchestrator's at the moment: it
        may be loading the run again, and one that is over is told on the stream.
        """
        parts: list[list[bytes | FileReference]] = [[] for _ in range(count)]
        request = pb.GetValuesRequest(attempt_ref=attempt_ref.bytes, token=token)
        try:
            with self._ending():
                async for part in self._stub.GetValues(request, timeout=_GET_VALUES_S):
                    if 0 <= part.input < count:
                        parts[part.input].append(
                            _file_from(part.file) if part.HasField("file") else part.chunk
                        )
        except StreamLost as lost:
            if lost.code in _REFUSALS:
                raise
            raise ValuesNotGiven(str(lost)) from None
        return [_whole(pieces) for pieces in parts]

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
        """Turn every way in which the library says that a call is over into StreamLost."""
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
            # So it tells that the call was cancelled, which nobody has done to this task.
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise StreamLost("closed") from None
            raise

    async def _raise_status(self) -> NoReturn:
        code = await self._call.code()
        details = await self._call.details()
        raise StreamLost(f"{code.name}: {details}" if code is not None else "ended")


def _hello(greeting: Greeting) -> pb.RunnerHello:
    inventory = [
        pb.RunnerInventoryItem(attempt_ref=ref.bytes, token=token, state=state)
        for items, state in (
            (greeting.running, pb.ATTEMPT_STATE_RUNNING),
            (greeting.finished, pb.ATTEMPT_STATE_FINISHED),
        )
        for ref, token in items
    ]
    return pb.RunnerHello(
        incarnation=str(greeting.incarnation),
        protocol=PROTOCOL,
        slots=greeting.slots,
        tiers=[isolation_pb2.Tier.Value(f"TIER_{tier.value}") for tier in greeting.tiers],
        pythons=greeting.pythons,
        inventory=inventory,
        labels=dict(greeting.machine.labels),
        cpus=greeting.machine.cpus,
        memory_bytes=greeting.machine.memory_bytes,
        gpus=greeting.machine.gpus,
        networks=[_NETWORK_NUMBERS[reach] for reach in greeting.machine.networks],
        lane=True,
    )


def _frames(outgoing: Outgoing) -> Iterator[pb.AttachRequest]:
    """Pack into frames, each under the limit unless one result alone is not."""
    frame = pb.AttachRequest()
    if outgoing.grant is not None:
        frame.grant.credits, frame.grant.grant_epoch = outgoing.grant
    for declined in outgoing.declines:
        frame.declines.add(
            attempt_ref=declined.attempt_ref.bytes, token=declined.token, reason=declined.reason
        )
    size = 64 * len(outgoing.declines)
    for finished in outgoing.results:
        result = frame.results.add()  # made in its place: to append one is to copy it
        _fill(result, finished)
        cost = result.ByteSize() + 8
        if size and size + cost > _FRAME_BYTES_MAX:
            following = pb.AttachRequest(results=[result])
            del frame.results[-1]
            yield frame
            frame, size = following, 0
        size += cost
    yield frame


def _fill(result: pb.AttemptResult, finished: Finished) -> None:
    """Write a result; what is zero or empty in most is left as it is."""
    outcome = finished.outcome
    usage = outcome.usage
    result.attempt_ref = finished.attempt_ref.bytes
    result.token = finished.token
    result.cpu_us = usage.cpu_us
    result.memory_peak_bytes = usage.memory_peak_bytes
    if usage.io_read_bytes or usage.io_write_bytes:
        result.io_read_bytes = usage.io_read_bytes
        result.io_write_bytes = usage.io_write_bytes
    result.user_us = usage.wall_us
    result.serialization_us = usage.serialization_us
    result.transfer_us = finished.transfer_us
    result.moved_bytes = finished.moved_bytes
    if outcome.stdout_tail or outcome.stderr_tail:
        result.stdout_tail = outcome.stdout_tail
        result.stderr_tail = outcome.stderr_tail
    if finished.container_id is not None:
        result.container_id = finished.container_id.bytes
    error = outcome.error
    if error is not None:
        result.failure.error_type = error.type.value
        result.failure.message = error.message
        result.failure.stack_trace = error.traceback
        result.failure.retryable = error.retryable
        result.failure.killed = finished.killed
        result.failure.exception_type = error.exception
        result.failure.input = error.input
        result.failure.progress_json = outcome.progress
        for cause in error.causes:
            result.failure.causes.add(
                kind=_CAUSES[cause.kind], exception_type=cause.exception, message=cause.message
            )
    elif finished.file is not None:
        file = result.success.file
        file.file_id = finished.file.file_id.bytes
        file.size_bytes = finished.file.size_bytes
        file.sha256 = bytes.fromhex(finished.file.sha256)
        file.counts.update(finished.file.counts)
    else:
        result.success.outputs.extend([text for _, text in outcome.outputs])
        result.success.SetInParent()


def _incoming(frame: pb.AttachResponse) -> Incoming:
    """Read a frame; of most parts it has nothing, and those are left as they are."""
    incoming = Incoming(
        acks=_pairs(frame.acks), assignments=[_assignment(each) for each in frame.assignments]
    )
    if frame.definitions:
        incoming.definitions = [_definition(each) for each in frame.definitions]
    if frame.superseded:
        incoming.superseded = _pairs(frame.superseded)
    if frame.kills:
        incoming.kills = [
            Kill(uuid_from_bytes(each.attempt_ref), each.token, each.grace_ms / 1000)
            for each in frame.kills
        ]
    if frame.HasField("demand"):
        incoming.demand = frame.demand.waiting
    if frame.owners:
        incoming.owners = [
            Owned(uuid_from_bytes(each.attempt_ref), each.token, each.member_id)
            for each in frame.owners
        ]
    if frame.HasField("peers"):
        incoming.peers = tuple(frame.peers.addresses)
    return incoming


def _pairs(items: Sequence[Any]) -> list[tuple[UUID, int]]:
    return [(uuid_from_bytes(each.attempt_ref), each.token) for each in items]


_REUSES: Final = {isolation_pb2.Reuse.Value(f"REUSE_{each.name}"): each for each in Reuse}


_NETWORK_NUMBERS: Final = {
    reach: isolation_pb2.Network.Value(f"NETWORK_{reach.name}") for reach in Reach
}
_REACHES: Final = {number: reach for reach, number in _NETWORK_NUMBERS.items()}


def _definition(each: pb.AttemptDefinition) -> Definition:
    return Definition(
        number=each.definition,
        node_version_id=uuid_from_bytes(each.node_version_id),
        tenant_id=uuid_from_bytes(each.tenant_id),
        node_id=each.node_id,
        inputs=[(binding.name, binding.conversion) for binding in each.inputs],
        outputs=list(each.outputs),
        timeout_s=each.timeout_ms / 1000,
        limits=Asked(
            memory_bytes=each.memory_limit_bytes,
            processes=each.limits.processes,
            open_files=each.limits.open_files,
            temporary_bytes=each.limits.temporary_bytes,
            output_bytes=each.limits.output_bytes,
            cpu_millicores=each.limits.cpu_millicores,
        ),
        python_version=each.python_version,
        reuse=_REUSES.get(each.reuse, Reuse.WARM),
        heartbeat_timeout_s=each.heartbeat_timeout_ms / 1000,
        network=Network(_REACHES.get(each.network, Reach.NONE), tuple(each.egress_hosts)),
        concurrency=each.concurrency or 1,
    )


def _assignment(each: pb.AttemptAssignment) -> Assignment:
    """Read an assignment; in order, for by name it takes twice as long."""
    timeout_ms = each.timeout_ms
    return Assignment(
        uuid_from_bytes(each.attempt_ref),
        each.token,
        each.definition,
        uuid_from_bytes(each.execution_id),
        each.attempt,
        [value.json or _value(value) for value in each.inputs],  # no JSON text is empty
        each.pull,
        timeout_ms / 1000 if timeout_ms else 0.0,
        each.progress_json,
        each.traceparent,
    )


def _value(value: pb.AttemptValue) -> Value:
    match value.WhichOneof("place"):
        case "json":
            return value.json
        case "file":
            return _file_from(value.file)
        case _:
            return None


def _whole(pieces: list[bytes | FileReference]) -> Value:
    """Give a value that came in parts: a text, a place in a file, or both in turn."""
    texts = [piece for piece in pieces if isinstance(piece, bytes)]
    if len(texts) == len(pieces):
        return b"".join(texts)
    return pieces[0] if len(pieces) == 1 else Spliced(pieces)


def _file_from(file: pb.AttemptValueFile) -> FileReference:
    return FileReference(
        uuid_from_bytes(file.file_id),
        file.size_bytes,
        file.sha256.hex(),
        file.field,
        file.index if file.HasField("index") else None,
    )
