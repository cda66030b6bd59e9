"""AttachService: the long-lived streams of runners."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from typing import Any, Final
from uuid import UUID

import grpc
import structlog
from qflow.isolation.v1 import isolation_pb2
from qflow.orchestrator.v1 import attach_service_pb2 as pb
from qflow.orchestrator.v1 import attach_service_pb2_grpc
from qflow.types.values import ValueTextError, parse_strict

from services.kit.errors import Conflict, InvalidArgument
from services.kit.ids import uuid_from_bytes
from services.kit.lane import Lane, LaneLost, Lanes
from services.kit.pg import Pool
from services.kit.rpc import codec as kit
from services.kit.rpc.failures import detail_of
from services.kit.sealed_mark import SEALED_MARK
from services.orchestrator.domain.commands import AckCommand, KillCommand, SupersededCommand
from services.orchestrator.domain.needs import Offer
from services.orchestrator.domain.records import Failure, Usage
from services.orchestrator.domain.steps.attempts import Outcome
from services.orchestrator.domain.values import FilePart, FileValue, Spliced, Value
from services.orchestrator.engine.engine import STREAM_PAUSE_BYTES, Engine
from services.orchestrator.engine.streams import (
    Assignment,
    Outgoing,
    Owned,
    Stream,
)
from services.orchestrator.rpc.frames import file_to_pb, frames_of
from services.orchestrator.rpc.way import ROOM_CHECK_S, Way
from services.orchestrator.usecases.runners import admit

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]

PROTOCOL: Final = 1
CHUNK_BYTES: Final = 128 * 1024
PROGRESS_CHARS_MAX: Final = 8192
_ID_BYTES: Final = 16
_SHA256_BYTES: Final = 32

# Commands that depend on the state of runs: sent only while this member certainly owns them.
_OF_MEMORY: Final = (Assignment, AckCommand, SupersededCommand, KillCommand, Owned)

_TIERS: Final = {
    number: name.removeprefix("TIER_") for name, number in isolation_pb2.Tier.items() if number
}
_NETWORK_WORDS: Final = {
    number: name.removeprefix("NETWORK_").lower() for name, number in isolation_pb2.Network.items()
}


class AttachServicer(attach_service_pb2_grpc.AttachServiceServicer):
    """Turns frames of runners into engine events, and engine commands into frames."""

    def __init__(self, engine: Engine, pool: Pool, lanes: Lanes | None = None) -> None:
        self._engine = engine
        self._pool = pool
        self._lanes = lanes

    async def Attach(
        self, request_iterator: AsyncIterator[pb.AttachRequest], context: Context
    ) -> AsyncIterator[pb.AttachResponse]:
        """Serve a runner's stream until either side ends it."""
        first = await anext(request_iterator, None)
        if first is None or not first.HasField("hello"):
            raise InvalidArgument("HELLO_MISSING", "hello: must be set in the first frame")
        if first.hello.protocol != PROTOCOL:
            raise InvalidArgument(
                "PROTOCOL_UNKNOWN",
                f"hello.protocol {first.hello.protocol}: this orchestrator supports {PROTOCOL}",
            )
        runner_id = kit.uuid_from(first.hello.incarnation, field="hello.incarnation")
        await admit(self._engine, self._pool, runner_id)
        inventory = {
            uuid_from_bytes(item.attempt_ref): item.token for item in first.hello.inventory
        }
        stream = self._engine.attach(runner_id, _offer(first.hello), inventory)
        log.info("runner_attached", incarnation=str(runner_id), slots=first.hello.slots)
        way = Way(
            stream,
            self._lanes if first.hello.lane else None,
            take=partial(self._take, runner_id),
            is_behind=self._is_behind,
        )
        reader = asyncio.create_task(self._read(stream, first, request_iterator, way))
        try:
            member = self._engine.member
            welcome = pb.RunnerWelcome(
                member_id=str(member.id), epoch=member.epoch, lane=way.offer()
            )
            yield pb.AttachResponse(welcome=welcome)
            lane = await way.chosen()
            if lane is not None:
                stream.say = partial(self._say, lane)
            async for frame in self._said(stream):
                if lane is None:
                    yield frame
                else:
                    await lane.send(frame.SerializeToString())
            if reader.done():
                await reader  # raises if reading failed
            way.tell()
        except LaneLost as lost:
            way.tell()
            log.warning("lane_lost", incarnation=str(runner_id), cause=str(lost))
        finally:
            reader.cancel()
            way.close()
            self._engine.detach(stream)
            log.info("runner_detached", incarnation=str(runner_id))

    async def _said(self, stream: Stream) -> AsyncIterator[pb.AttachResponse]:
        """Yield frames of released commands until the stream is closed."""
        while not stream.closed:
            commands = await stream.take()
            if any(isinstance(each, _OF_MEMORY) for each in commands) and (
                not await self._knows(commands) or stream.closed
            ):
                return
            for frame in frames_of(commands):
                yield frame

    def _say(self, lane: Lane, commands: Sequence[Outgoing]) -> bool:
        """Send commands by the lane without waiting; False if that is not possible now.

        Also False if encoding fails: the stream's own task then meets the error, and ends with it.
        """
        if not self._engine.member.certain or _forgets(commands):
            return False
        try:
            frames = [frame.SerializeToString() for frame in frames_of(commands)]
        except Exception:  # noqa: BLE001  # `_said` raises it again
            return False
        return lane.put_at_once(frames)

    async def _knows(self, commands: list[Outgoing]) -> bool:
        """Return whether these commands still hold, because this member still owns the runs.

        A runner drops a superseded result for good, so for that the database is asked, not the
        lease alone.
        """
        return await self._engine.knows(anew=_forgets(commands))

    async def _read(
        self,
        stream: Stream,
        first: pb.AttachRequest,
        rest: AsyncIterator[pb.AttachRequest],
        way: Way,
    ) -> None:
        try:
            self._take(stream.runner, first)
            async for frame in rest:
                if stream.closed:
                    return
                if frame.HasField("lane") or stream.by_lane:
                    way.choose(frame)
                    continue
                self._take(stream.runner, frame)
                while self._is_behind():  # noqa: ASYNC110  # rare
                    await asyncio.sleep(ROOM_CHECK_S)  # backpressure on the runner
        finally:
            stream.close()
            way.nothing_comes()

    def _is_behind(self) -> bool:
        return self._engine.journal.pending_bytes > STREAM_PAUSE_BYTES

    def _take(self, runner_id: UUID, frame: pb.AttachRequest) -> None:
        if frame.results:
            self._engine.outcomes(runner_id, [_outcome(each) for each in frame.results])
        if frame.HasField("grant"):  # before declines, or a declined attempt could return at once
            self._engine.granted(runner_id, frame.grant.credits, frame.grant.grant_epoch)
        for decline in frame.declines:
            log.info("attempt_declined", reason=decline.reason)
            self._engine.declined(runner_id, _attempt(decline), decline.token)

    async def GetValues(
        self, request: pb.GetValuesRequest, context: Context
    ) -> AsyncIterator[pb.GetValuesResponse]:
        """Stream the inputs of an attempt in parts."""
        known = self._engine.core.find(uuid_from_bytes(request.attempt_ref))
        record = known and known[0].records[known[1]]
        if known is None or record is None or record.token != request.token:
            raise Conflict("ATTEMPT_SUPERSEDED", "token: the attempt is no longer the current one")
        run, slot = known
        if not run.has_inputs(slot):
            self._engine.take_back(run, slot)
            raise Conflict("ATTEMPT_SUPERSEDED", "token: what the attempt was a part of has ended")
        given = [value for value in run.inputs(slot) if value is not None]
        for at, value in enumerate(given):
            for part in _parts(at, value):
                yield part


def _forgets(commands: Sequence[Outgoing]) -> bool:
    """Return whether any command makes the runner drop a result."""
    return SupersededCommand in map(type, commands)


def _parts(at: int, value: Value) -> Iterable[pb.GetValuesResponse]:
    pieces = value.pieces if isinstance(value, Spliced) else (value,)
    for number, piece in enumerate(pieces, start=1):
        ends = number == len(pieces)
        if isinstance(piece, FilePart):
            yield pb.GetValuesResponse(input=at, file=file_to_pb(piece), last=ends)
            continue
        for begin in range(0, len(piece), CHUNK_BYTES):
            end = begin + CHUNK_BYTES
            last = ends and end >= len(piece)
            yield pb.GetValuesResponse(input=at, chunk=piece[begin:end], last=last)


def _outcome(result: pb.AttemptResult) -> Outcome:
    stdout, stderr, container = result.stdout_tail, result.stderr_tail, result.container_id
    usage = Usage(
        cpu_us=result.cpu_us,
        memory_peak_bytes=result.memory_peak_bytes,
        io_read_bytes=max(0, result.io_read_bytes),
        io_write_bytes=max(0, result.io_write_bytes),
        moved_bytes=max(0, result.moved_bytes),
        serialization_us=result.serialization_us,
        transfer_us=result.transfer_us,
        took_us=max(0, result.transfer_us + result.user_us + result.serialization_us),
        stdout_tail=_storable(stdout) if stdout else "",
        stderr_tail=_storable(stderr) if stderr else "",
        container_id=_id(container, "results.container_id") if container else None,
    )
    kind = result.WhichOneof("outcome")
    value: tuple[bytes, ...] | FileValue | Failure
    if kind == "success" and (success := result.success).HasField("file"):
        file = success.file
        if len(file.sha256) != _SHA256_BYTES:
            raise kit.invalid("results.success.file.sha256", f"must have {_SHA256_BYTES} bytes")
        file_id = _id(file.file_id, "results.success.file.file_id")
        counts = {name: count for name, count in file.counts.items() if count >= 0}
        value = FileValue(file_id, file.size_bytes, file.sha256, counts)
    elif kind == "success":
        value = tuple(success.outputs)
    elif kind == "failure":
        failure = result.failure
        value = Failure(
            error_type=failure.error_type,
            message=_storable(failure.message),
            stack_trace=_storable(failure.stack_trace),
            retryable=failure.retryable,
            killed=failure.killed,
            detail=detail_of(failure),
            progress=_progress(failure.progress_json),
            input=failure.input,
        )
    else:
        raise InvalidArgument("OUTCOME_MISSING", "results: each must contain success or failure")
    return Outcome(_attempt(result), result.token, value, usage)


def _storable(text: str) -> str:
    """Replace NUL characters, which no text column takes; not every runner does so."""
    return text.replace("\0", "\ufffd")


def _progress(text: str) -> str | None:
    """Return the progress that user code saved, or None if it is not valid JSON of allowed size."""
    if not text or len(text) > PROGRESS_CHARS_MAX:
        return None
    try:
        parse_strict(text)
    except ValueTextError:
        return None
    return None if text.startswith(SEALED_MARK) else text


def _attempt(message: pb.AttemptResult | pb.AttemptDecline) -> UUID:
    return _id(message.attempt_ref, "attempt_ref")


def _id(raw: bytes, field: str) -> UUID:
    """Decode an id of a frame; only the first frame of a stream is validated by the server."""
    if len(raw) != _ID_BYTES:
        raise kit.invalid(field, f"must have {_ID_BYTES} bytes")
    return uuid_from_bytes(raw)


def _offer(hello: pb.RunnerHello) -> Offer:
    return Offer(
        pythons=frozenset(hello.pythons),
        slots=hello.slots,
        # Tiers are ordered by name.
        tier=max((_TIERS[each] for each in hello.tiers), default=""),
        labels=frozenset(hello.labels.items()),
        cpus=hello.cpus,
        memory_bytes=hello.memory_bytes,
        gpus=hello.gpus,
        networks=frozenset(_NETWORK_WORDS[each] for each in hello.networks),
    )
