"""LogService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

import grpc
from qflow.runner.v1 import log_service_pb2 as pb
from qflow.runner.v1.log_service_pb2_grpc import LogServiceServicer

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.runner.domain.node_logs import Stream
from services.runner.storage.node_logs import Choice, StoredLine
from services.runner.usecases.node_logs import NodeLogs
from services.runner.usecases.read_logs import list_logs, watch_logs

Context = grpc.aio.ServicerContext[Any, Any]

_KIND: Final = "runner.ListLogs"
_STREAMS: Final = {
    pb.LOG_STREAM_STDOUT: Stream.STDOUT,
    pb.LOG_STREAM_STDERR: Stream.STDERR,
    pb.LOG_STREAM_RECORD: Stream.LOG,
}
_STREAMS_TO_PB: Final = {stream: value for value, stream in _STREAMS.items()}
_MESSAGE_BYTES: Final = 1024 * 1024


class LogServicer(LogServiceServicer):
    """Shows the output of nodes."""

    def __init__(self, pool: Pool, logs: NodeLogs) -> None:
        self._pool = pool
        self._logs = logs

    async def ListLogs(self, request: pb.ListLogsRequest, context: Context) -> pb.ListLogsResponse:
        """Return a page of the lines of a run."""
        execution_id = codec.uuid_from(request.execution_id, field="execution_id")
        pages = Pages(_KIND, request, execution_id, request.filter)
        lines, state = await list_logs(
            self._pool,
            current_caller(),
            execution_id,
            _choice(request.filter),
            after=pages.after_place(),
            limit=pages.limit,
        )
        shown, token = await pages.cut(lines, encode=_line_to_pb, key=lambda line: (line.sequence,))
        return pb.ListLogsResponse(
            lines=shown, next_page_token=token, left_out_lines=state.left_out_count
        )

    async def WatchLogs(
        self, request: pb.WatchLogsRequest, context: Context
    ) -> AsyncIterator[pb.WatchLogsResponse]:
        """Stream the lines of a run as they come."""
        pieces = watch_logs(
            self._pool,
            self._logs,
            current_caller(),
            codec.uuid_from(request.execution_id, field="execution_id"),
            _choice(request.filter),
            after=request.after_sequence,
        )
        async with aclosing(pieces):
            async for piece in pieces:
                for lines in _messages(piece.lines):
                    whole = lines[-1:] == piece.lines[-1:]
                    yield pb.WatchLogsResponse(
                        lines=[_line_to_pb(line) for line in lines],
                        sequence=piece.sequence if whole else lines[-1].sequence,
                        left_out_lines=piece.state.left_out_count,
                        end=piece.is_last and whole,
                    )


def _choice(message: pb.LogFilter) -> Choice:
    return Choice(
        node_ids=tuple(message.workflow_nodes),
        attempt=message.attempt,
        streams=tuple(_STREAMS[each] for each in message.streams),
        level_min=message.minimum_level or None,
    )


def _messages(lines: Sequence[StoredLine]) -> list[list[StoredLine]]:
    """Split lines into messages of moderate size; at least one, which may be empty."""
    shared: list[list[StoredLine]] = [[]]
    size = 0
    for line in lines:
        size += len(line.line) * 4
        if shared[-1] and size > _MESSAGE_BYTES:
            shared.append([])
            size = 0
        shared[-1].append(line)
    return shared


def _line_to_pb(line: StoredLine) -> pb.LogLine:
    return pb.LogLine(
        sequence=line.sequence,
        node_id=line.node_id,
        node_execution_id=str(line.node_execution_id),
        attempt=line.attempt,
        stream=_STREAMS_TO_PB[line.stream],
        level=line.level or 0,
        logger=line.logger,
        text=line.line,
        continued=line.continued,
        left_out_bytes=line.left_out_bytes,
        time=codec.timestamp(line.logged_at),
    )
