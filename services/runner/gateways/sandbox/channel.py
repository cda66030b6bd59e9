"""Frames to and from the agent: one request at a time, on a socket pair."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from services.runner.gateways.sandbox.port import Header, OnAnswer, Reply, SandboxDied

_HEAD: Final = struct.Struct("!II")
_HEADER_BYTES_MAX: Final = 256 * 1024
_READ_BYTES: Final = 256 * 1024
# Shared by all channels of the loop's thread: `recv` of this size would map and unmap memory, which
# costs several times as much as reading a short reply.
_READ_INTO: Final = memoryview(bytearray(_READ_BYTES))
# The agent itself stays far below: more comes from user code, and would starve other sandboxes.
LOG_FRAMES_MAX: Final = 64 * 1024
LOG_BYTES_MAX: Final = 64 * 1024
# Heartbeats are sent at most ten times a second; leaves room for those at a call's end, and jitter.
_BEATS_FREE: Final = 100
_BEATS_PER_S: Final = 20
_UNASKED: Final = "the agent sent what nobody asked for"
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(dict).decode


class FrameTaker(Protocol):
    """Receives the frames of an agent that serves several calls at once."""

    def take(self, header: Header, body: bytes) -> str:
        """Process one frame; return what is wrong with it, or ""."""

    def failed(self, died: SandboxDied) -> None:
        """Handle the end: no frame will come any more."""


class AgentChannel:
    """The runner's end. Everything received is untrusted and bounded.

    The agent replies to requests, and may send output of user code until it has. If it sends more,
    or malformed frames, it is not read any further and `on_fault` is called: such a sandbox serves
    no other call.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_fault: Callable[[], None],
        on_log: Callable[[Header, bytes], None],
        on_beat: Callable[[bytes], None],
    ) -> None:
        self._loop = loop
        self._on_fault = on_fault
        self._on_log = on_log
        self._on_beat = on_beat
        self._socket, self.far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._received = bytearray()
        self._answer: OnAnswer | None = None  # while a reply is awaited
        self._taker: FrameTaker | None = None
        self._reply_bytes_max = 0
        self._log_frames = 0
        self._beats = 0
        self._asked_at = 0.0
        self._descriptors_max = 0
        self._descriptors: list[int] = []
        self._unsent = memoryview(b"")
        self._broken: str = ""
        loop.add_reader(self._socket.fileno(), self._readable)

    @property
    def broken(self) -> bool:
        """Whether no reply can come any more."""
        return bool(self._broken)

    def expect(
        self, *, reply_bytes_max: int = 1 << 20, descriptors_max: int = 0
    ) -> asyncio.Future[Reply]:
        """Return a future of the next reply, which may carry up to `descriptors_max` open files."""
        reply: asyncio.Future[Reply] = self._loop.create_future()

        def answer(found: Reply | SandboxDied) -> None:
            if reply.done():
                return
            if isinstance(found, SandboxDied):
                reply.set_exception(found)
            else:
                reply.set_result(found)

        def unless_wanted(done: asyncio.Future[Reply]) -> None:
            if done.cancelled() and self._answer is answer:
                self._answer = None

        reply.add_done_callback(unless_wanted)
        self.hear(answer, reply_bytes_max=reply_bytes_max, descriptors_max=descriptors_max)
        return reply

    def hear(self, answer: OnAnswer, *, reply_bytes_max: int, descriptors_max: int = 0) -> None:
        """Call `answer` with the next reply or an error; never before this returns."""
        if self._answer is not None:
            raise RuntimeError("the agent handles one request at a time")
        self._reply_bytes_max = reply_bytes_max
        self._log_frames = 0
        self._beats = 0
        self._asked_at = self._loop.time()
        self._descriptors_max = descriptors_max
        if self._descriptors:
            self._drop_descriptors()
        self._answer = answer
        if self._broken:
            self._tell(SandboxDied(self._broken))

    def share(self, taker: FrameTaker, *, reply_bytes_max: int) -> None:
        """Pass all frames on from now on: several calls run, and are answered in any order."""
        self._taker = taker
        self._reply_bytes_max = reply_bytes_max
        if self._broken:
            taker.failed(SandboxDied(self._broken))

    def send(self, header: Header, body: bytes) -> None:
        """Send one frame; what the socket does not accept at once is sent later."""
        head = _encode(header)
        data = b"".join((_HEAD.pack(len(head), len(body)), head, body))
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as problem:
            self.fail(f"the agent's channel broke: {problem.strerror}")
            return
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._loop.add_writer(self._socket.fileno(), self._writable)

    def fail(self, message: str, *, oom: bool = False, status: int | None = None) -> None:
        """Fail the awaited reply, and all later ones."""
        self._broken = self._broken or message
        self._drop_descriptors()
        if self._taker is not None:
            self._taker.failed(SandboxDied(message, oom=oom, status=status))
        self._tell(SandboxDied(message, oom=oom, status=status))

    def close(self) -> None:
        """Close the socket pair's ends that this process holds."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
        self.far_end.close()

    def _writable(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError as problem:
            self._loop.remove_writer(self._socket.fileno())
            self.fail(f"the agent's channel broke: {problem.strerror}")
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        piece: bytes | memoryview
        try:
            piece = self._receive()
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            # The process's end is noticed by its pidfd: user code may have closed this descriptor
            # only.
            self._loop.remove_reader(self._socket.fileno())
            return
        self._received += piece
        self._parse()
        if self._received and self._taker is None and self._answer is None:
            self._fault(_UNASKED)

    def _receive(self) -> bytes | memoryview:
        """Read what has arrived; the result is only valid until the next read."""
        if not self._descriptors_max:
            # The kernel closes descriptors that are not received.
            return _READ_INTO[: self._socket.recv_into(_READ_INTO)]
        piece, descriptors, _, _ = socket.recv_fds(
            self._socket,
            _READ_BYTES,
            self._descriptors_max,
            socket.MSG_CMSG_CLOEXEC,
        )
        self._descriptors += descriptors
        return piece

    def _drop_descriptors(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _parse(self) -> None:
        while (frame := self._next_frame()) is not None:
            header, body = frame
            if self._taker is not None:
                if fault := self._taker.take(header, body):
                    self._fault(fault)
                    return
                continue
            op = header.get("op")
            if op == "beat":
                if not self._take_beat(body):
                    return
                continue
            if op != "log":
                answer, self._answer = self._answer, None
                assert answer is not None
                descriptors, self._descriptors = self._descriptors, []
                if self._received:  # before the reply, so that no other call begins here
                    self._fault(_UNASKED)
                answer(Reply(header, body, descriptors))
                return
            self._log_frames += 1
            if self._log_frames > LOG_FRAMES_MAX or len(body) > LOG_BYTES_MAX:
                self._fault("the agent told more than allowed")
                return
            self._on_log(header, body)

    def _take_beat(self, body: bytes) -> bool:
        self._beats += 1
        if self._beats > beats_allowed(self._loop.time() - self._asked_at):
            self._fault("the agent told of more heartbeats than allowed")
            return False
        self._on_beat(body)
        return True

    def _next_frame(self) -> tuple[Header, bytes] | None:
        """Return the next frame, if it is complete and awaited; else None."""
        received = self._received
        if len(received) < _HEAD.size or (self._taker is None and self._answer is None):
            return None
        header_length, body_length = _HEAD.unpack_from(received)
        if header_length > _HEADER_BYTES_MAX or body_length > self._reply_bytes_max:
            self._fault("the agent's frame is larger than allowed")
            return None
        start = _HEAD.size + header_length
        if len(received) < start + body_length:
            return None
        try:
            header = _decode(memoryview(received)[_HEAD.size : start])
        except (msgspec.DecodeError, ValueError, RecursionError):
            self._fault("the agent's frame cannot be read")
            return None
        body = bytes(memoryview(received)[start : start + body_length])
        del received[: start + body_length]
        return header, body

    def _tell(self, died: SandboxDied) -> None:
        """Fail the awaited reply: later, since the caller may be about to send."""
        if self._answer is not None:
            self._loop.call_soon(self._answer, died)
            self._answer = None

    def _fault(self, message: str) -> None:
        """Stop reading: an agent that keeps sending must not cost the loop anything."""
        self._loop.remove_reader(self._socket.fileno())
        self._received.clear()
        self.fail(message)
        self._on_fault()


def beats_allowed(seconds: float) -> float:
    """Return how many heartbeats a call may have sent after so many seconds."""
    return _BEATS_FREE + _BEATS_PER_S * seconds
