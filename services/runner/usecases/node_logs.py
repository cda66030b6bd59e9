"""Stores the output of nodes: queued at once, written in batches, never awaited by a call."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Final

import structlog

from services.kit.pg import Pool, transaction
from services.runner.domain.attempts import AttemptRequest
from services.runner.domain.node_logs import (
    LEVEL_MAX,
    LOGGER_CHARS_MAX,
    Line,
    LineCutter,
    LogCaps,
    RunCaps,
    Stream,
    shown,
)
from services.runner.storage import node_logs
from services.runner.usecases.patience import passing

log = structlog.get_logger()

# How soon output becomes visible; what arrives meanwhile is written in the same statement.
_GATHER_S: Final = 0.1
_RETRY_S: Final = 1.0
_BATCH_LINES_MAX: Final = 1000
_BATCH_BYTES_MAX: Final = 1024 * 1024
# While the database is away: above this the oldest lines are dropped, and that is logged.
_WAITING_BYTES_MAX: Final = 32 * 1024 * 1024
_LINE_COST_BYTES: Final = 200


class NodeLogs:
    """Collects the lines of all attempts and writes them in order.

    Exactly once, unless the connection breaks during a commit: a batch may then be written twice.
    """

    def __init__(self, pool: Pool, *, caps: LogCaps | None = None) -> None:
        self.caps = caps or LogCaps()
        self._run_caps = RunCaps()
        self._pool = pool
        self._waiting: list[Line] = []
        self._waiting_bytes = 0
        self._changed = asyncio.Event()
        self._written = asyncio.Condition()

    def open(self, request: AttemptRequest) -> AttemptLog:
        """Start the log of an attempt; if nothing is written, it costs no more than this."""
        return AttemptLog(self, request)

    def put(self, line: Line) -> None:
        """Queue one line."""
        self._waiting.append(line)
        self._waiting_bytes += len(line.line) + _LINE_COST_BYTES
        if self._waiting_bytes > _WAITING_BYTES_MAX:
            self._forget_oldest()
        self._changed.set()

    async def changed(self, seconds: float) -> None:
        """Wait until lines were written by this process, or for `seconds`."""
        try:
            async with asyncio.timeout(seconds), self._written:
                await self._written.wait()
        except TimeoutError:
            return

    async def write_until(self, stop: asyncio.Event) -> None:
        """Write lines as they come, until `stop` is set."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait({changed, stopping}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                await asyncio.wait({stopping}, timeout=_GATHER_S)
                if not await self.flush():
                    await asyncio.wait({stopping}, timeout=_RETRY_S)
        finally:
            stopping.cancel()

    async def flush(self) -> bool:
        """Write all queued lines; False if the database was unavailable, and they are kept."""
        self._changed.clear()
        while self._waiting:
            batch = self._next_batch()
            try:
                # A crash may lose the last lines; no result depends on them.
                async with transaction(self._pool, durable=False) as db:
                    await node_logs.add(db, batch, self._run_caps)
            except Exception as problem:
                if passing(problem):
                    log.warning("node_logs_delayed", fault=type(problem).__name__)
                    self._changed.set()
                    return False
                log.exception("node_logs_refused", lines=len(batch))
            del self._waiting[: len(batch)]
            self._waiting_bytes -= sum(len(each.line) + _LINE_COST_BYTES for each in batch)
            async with self._written:
                self._written.notify_all()
        return True

    def _next_batch(self) -> list[Line]:
        size = 0
        for at, line in enumerate(self._waiting[:_BATCH_LINES_MAX]):
            size += len(line.line)
            if at and size > _BATCH_BYTES_MAX:
                return self._waiting[:at]
        return self._waiting[:_BATCH_LINES_MAX]

    def _forget_oldest(self) -> None:
        """Drop half of the queue: the database was away for too long."""
        count = len(self._waiting) // 2
        log.warning("node_logs_forgotten", lines=count)
        # A batch at the front may be in the middle of being written.
        gone = self._waiting[_BATCH_LINES_MAX : _BATCH_LINES_MAX + count]
        del self._waiting[_BATCH_LINES_MAX : _BATCH_LINES_MAX + count]
        self._waiting_bytes -= sum(len(each.line) + _LINE_COST_BYTES for each in gone)


class AttemptLog:
    """The lines of one attempt, within its limits."""

    __slots__ = ("_cutters", "_left_out_bytes", "_logs", "_request", "_room_bytes", "_room_lines")

    def __init__(self, logs: NodeLogs, request: AttemptRequest) -> None:
        self._logs = logs
        self._request = request
        self._cutters: dict[Stream, LineCutter] | None = None
        self._left_out_bytes = 0
        self._room_bytes = logs.caps.bytes_max
        self._room_lines = logs.caps.lines_max

    def printed(self, stream: Stream, piece: bytes) -> None:
        """Process output written to stdout or stderr."""
        if self._left_out_bytes:
            self._left_out_bytes += len(piece)
            return
        if self._cutters is None:
            self._cutters = {Stream.STDOUT: LineCutter(), Stream.STDERR: LineCutter()}
        for text, continued in self._cutters[stream].feed(piece):
            self._put(stream, text, continued=continued)

    def recorded(self, level: int, logger: str, text: str) -> None:
        """Process one record of `logging`; its lines stay together."""
        cutter = LineCutter()
        level = min(max(level, 0), LEVEL_MAX)
        for part, continued in (*cutter.feed(text.encode("utf-8", "replace")), *cutter.end()):
            self._put(
                Stream.LOG,
                part,
                continued=continued,
                level=level,
                logger=shown(logger[:LOGGER_CHARS_MAX]),
            )

    def close(self) -> None:
        """Process an unfinished last line, and record how much was left out."""
        for stream, cutter in (self._cutters or {}).items():
            for text, continued in cutter.end():
                self._put(stream, text, continued=continued)
        if self._left_out_bytes:
            self._send(Stream.STDOUT, "", left_out_bytes=self._left_out_bytes)

    def _put(
        self,
        stream: Stream,
        text: str,
        *,
        continued: bool,
        level: int | None = None,
        logger: str = "",
    ) -> None:
        size = len(text.encode("utf-8", "replace")) + (not continued)
        if self._left_out_bytes or size > self._room_bytes or not self._room_lines:
            self._left_out_bytes += size
            return
        self._room_bytes -= size
        self._room_lines -= 1
        self._send(stream, text, continued=continued, level=level, logger=logger)

    def _send(
        self,
        stream: Stream,
        text: str,
        *,
        continued: bool = False,
        level: int | None = None,
        logger: str = "",
        left_out_bytes: int = 0,
    ) -> None:
        request = self._request
        self._logs.put(
            Line(
                execution_id=request.execution_id,
                node_execution_id=request.attempt_ref,
                node_id=request.node_id,
                attempt=request.attempt,
                stream=stream,
                line=shown(text),
                logged_at=datetime.now(UTC),
                level=level,
                logger=logger,
                continued=continued,
                left_out_bytes=left_out_bytes,
            )
        )
