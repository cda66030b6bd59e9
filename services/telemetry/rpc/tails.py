"""TailService."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final, TypeVar
from uuid import UUID

from google.protobuf.message import Message
from qflow.telemetry.v1 import tail_service_pb2 as pb
from qflow.telemetry.v1 import telemetry_service_pb2
from qflow.telemetry.v1.tail_service_pb2_grpc import TailServiceServicer

from services.kit import page
from services.kit.caller import current_caller
from services.kit.errors import InvalidArgument
from services.kit.pg import Pool
from services.kit.rpc.call import Context
from services.kit.rpc.codec import invalid, uuid_or_none
from services.kit.rpc.sizes import FRAME_BYTES
from services.telemetry.domain.records import TailPosition
from services.telemetry.rpc import codec
from services.telemetry.usecases import tails

Record = TypeVar("Record")
Encoded = TypeVar("Encoded", bound=Message)

_MESSAGE_BYTES: Final = 1024 * 1024
_SEVERITIES: Final = {
    telemetry_service_pb2.ERROR_SEVERITY_UNSPECIFIED: "info",
    telemetry_service_pb2.ERROR_SEVERITY_INFO: "info",
    telemetry_service_pb2.ERROR_SEVERITY_WARNING: "warning",
    telemetry_service_pb2.ERROR_SEVERITY_ERROR: "error",
    telemetry_service_pb2.ERROR_SEVERITY_CRITICAL: "critical",
}


class TailServicer(TailServiceServicer):
    """Serves streams of new records."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def WatchMetrics(
        self, request: pb.WatchMetricsRequest, context: Context
    ) -> AsyncIterator[pb.WatchMetricsResponse]:
        """See the contract."""
        execution_id = uuid_or_none(request.execution_id, field="execution_id")
        tokens = _Tokens("WatchMetrics", request.metric_name, execution_id)
        pieces = tails.watch_metrics(
            self._pool,
            current_caller(),
            name=request.metric_name,
            execution_id=execution_id,
            after=tokens.read(request.resume_token),
        )
        async for shown, token in _told(pieces, codec.metric_to_pb, tokens):
            yield pb.WatchMetricsResponse(metrics=shown, resume_token=token)

    async def WatchErrors(
        self, request: pb.WatchErrorsRequest, context: Context
    ) -> AsyncIterator[pb.WatchErrorsResponse]:
        """See the contract."""
        execution_id = uuid_or_none(request.execution_id, field="execution_id")
        minimum = _SEVERITIES[request.minimum_severity]
        tokens = _Tokens("WatchErrors", minimum, execution_id)
        pieces = tails.watch_errors(
            self._pool,
            current_caller(),
            minimum=minimum,
            execution_id=execution_id,
            after=tokens.read(request.resume_token),
        )
        async for shown, token in _told(pieces, codec.error_to_pb, tokens):
            yield pb.WatchErrorsResponse(errors=shown, resume_token=token)


class _Tokens:
    """Resume tokens of a stream: valid for the same caller and filters, for a day."""

    def __init__(self, kind: str, *asked: object) -> None:
        self._kind = f"telemetry.{kind}"
        self._digest = page.filter_digest(*asked)
        self._caller = current_caller()

    def write(self, position: TailPosition) -> str:
        key = (*position, datetime.now(UTC))
        return page.encode_token(self._kind, self._digest, self._caller, key)

    def read(self, token: str) -> TailPosition | None:
        try:
            key = page.decode_token(token, self._kind, self._digest, self._caller)
        except InvalidArgument:
            raise invalid(
                "resume_token", "belongs to another stream; begin without a token"
            ) from None
        match key:
            case None:
                return None
            case [int() as written_by, UUID() as row_id, datetime() as told_at]:
                return tails.checked_position(
                    (written_by, row_id), at=told_at, now=datetime.now(UTC)
                )
            case _:
                raise invalid("resume_token", "belongs to another stream; begin without a token")


async def _told(
    pieces: AsyncGenerator[tails.Piece[Record], None],
    encode: Callable[[Record], Encoded],
    tokens: _Tokens,
) -> AsyncIterator[tuple[Sequence[Encoded], str]]:
    """Split records into messages of moderate size, each with the resume token after it."""
    async with aclosing(pieces):
        async for piece in pieces:
            shown: list[Encoded] = []
            behind, room = piece.position, _MESSAGE_BYTES
            for position, record in piece.records:
                message = encode(record)
                size = message.ByteSize() + FRAME_BYTES
                if shown and size > room:
                    yield shown, tokens.write(behind)
                    shown, room = [], _MESSAGE_BYTES
                shown.append(message)
                behind, room = position, room - size
            yield shown, tokens.write(piece.position)
