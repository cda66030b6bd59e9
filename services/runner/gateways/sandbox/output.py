"""The output of user code: read from pipes as it comes, with its last bytes kept."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
from typing import Final

from services.runner.domain.node_logs import Stream, shown_bytes
from services.runner.domain.secrets import NO_MASK, Mask, StreamMask
from services.runner.gateways.sandbox.port import Header, OnBeat, OutputSink

TAIL_BYTES: Final = 8 * 1024 - 64  # a result holds 8 KiB, including the note of what is left out
_PIPE_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = 1024 * 1024
# A sandbox that prints without end must not starve others: after this much in one call its pipe is
# only read at intervals, so that its writes block.
_FREE_BYTES: Final = 16 * 1024 * 1024
_PAUSE_S: Final = 0.005


class Tail:
    """The last bytes of a stream."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self.total = 0

    def clear(self) -> None:
        """Forget everything."""
        if self.total:
            self._kept.clear()
            self.total = 0

    def take(self, piece: bytes) -> None:
        """Append output."""
        self.total += len(piece)
        self._kept += piece[-TAIL_BYTES:]
        if len(self._kept) > 2 * TAIL_BYTES:
            del self._kept[:-TAIL_BYTES]

    def text(self) -> str:
        """Return the end of the stream, with a note if its start was left out."""
        if self.total == 0:
            return ""
        text = shown_bytes(bytes(self._kept[-TAIL_BYTES:]))
        left_out = self.total - min(self.total, TAIL_BYTES)
        return f"[{left_out} bytes left out]\n{text}" if left_out else text


class OutputTail:
    """Drains one pipe and keeps its last bytes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: Stream) -> None:
        self._loop = loop
        self._stream = stream
        self._sink: OutputSink | None = None
        self._mask: StreamMask | None = None
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.read_end, False)
        with contextlib.suppress(OSError):  # above the user's quota the default size stays
            fcntl.fcntl(self._write_end(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._tail = Tail()
        self._resume: asyncio.TimerHandle | None = None
        self._open = True
        loop.add_reader(self.read_end, self._readable)

    def _write_end(self) -> int:
        return self.write_end

    def begin(self, sink: OutputSink | None = None, mask: Mask = NO_MASK) -> None:
        """Forget earlier output; what follows goes to `sink`, with secrets masked."""
        self._tail.clear()
        self._sink = sink
        self._mask = StreamMask(mask) if mask else None

    def take(self, piece: bytes) -> None:
        """Process output of this stream, from the pipe or sent by the agent."""
        self._keep(piece if self._mask is None else self._mask.feed(piece))

    def _keep(self, piece: bytes) -> None:
        self._tail.take(piece)
        if self._sink is not None:
            self._sink.printed(self._stream, piece)

    def text(self) -> str:
        """Return the end of what came since `begin`, with a note if its start was left out.

        Output written before the agent's reply is in the pipe when that reply is read.
        """
        if self._open:
            self._drain(limit=4)
        if self._mask is not None and (rest := self._mask.end()):
            self._keep(rest)
        return self._tail.text()

    @property
    def silent(self) -> bool:
        """Whether nothing was read since `begin`."""
        return not self._tail.total and self._mask is None

    def close(self) -> None:
        """Stop reading; what was kept is still available."""
        if not self._open:
            return
        self._drain(limit=4)
        self._open = False
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self.read_end)
        os.close(self.read_end)

    def _readable(self) -> None:
        if not self._drain(limit=1):
            self._loop.remove_reader(self.read_end)
        elif self._tail.total > _FREE_BYTES and self._resume is None:
            self._loop.remove_reader(self.read_end)
            self._resume = self._loop.call_later(_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        if self._open:
            self._loop.add_reader(self.read_end, self._readable)

    def _drain(self, *, limit: int) -> bool:
        """Read what is available, at most `limit` pieces; False at the end of the pipe."""
        for _ in range(limit):
            try:
                piece = os.read(self.read_end, _READ_BYTES)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self.take(piece)
        return True


class Output:
    """Both streams of a sandbox, and the sink of the current call."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._stdout = OutputTail(loop, Stream.STDOUT)
        self._stderr = OutputTail(loop, Stream.STDERR)
        self._sink: OutputSink | None = None
        self._on_beat: OnBeat | None = None
        self._mask = NO_MASK
        self.write_ends = (self._stdout.write_end, self._stderr.write_end)
        self._both = select.poll()
        for end in (self._stdout.read_end, self._stderr.read_end):
            self._both.register(end, select.POLLIN)

    def begin(
        self,
        sink: OutputSink | None = None,
        on_beat: OnBeat | None = None,
        mask: Mask = NO_MASK,
    ) -> None:
        """Forget earlier output; what follows goes to `sink`, with secrets masked."""
        self._sink = sink
        self._on_beat = on_beat
        self._mask = mask
        self._stdout.begin(sink, mask)
        self._stderr.begin(sink, mask)

    def tails(self) -> tuple[str, str]:
        """Return the ends of both streams since `begin`."""
        # Most calls print nothing: one poll of both pipes avoids reading either.
        if self._stdout.silent and self._stderr.silent and not self._both.poll(0):
            return "", ""
        return self._stdout.text(), self._stderr.text()

    def told(self, header: Header, body: bytes) -> None:
        """Process output that the agent sends: Python's own streams and `logging`."""
        match header:
            case {"s": 1}:
                self._stdout.take(body)
            case {"s": 2}:
                self._stderr.take(body)
            case {"level": int(level), "name": str(name)} if self._sink is not None:
                self._sink.recorded(
                    level, self._mask.text(name), self._mask.raw(body).decode("utf-8", "replace")
                )

    def beaten(self, progress: bytes) -> None:
        """Process a heartbeat, with the progress of the call, if any."""
        if self._on_beat is not None:
            self._on_beat(self._mask.value(progress) if progress else progress)

    def close_write_ends(self) -> None:
        """Close the write ends here, so that the pipes end with the sandbox."""
        for end in self.write_ends:
            os.close(end)

    def close(self) -> None:
        """Stop reading; what was kept is still available."""
        self._stdout.close()
        self._stderr.close()
