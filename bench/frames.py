"""Streams of a gRPC server, read as cheaply as can be: the server is measured, not its readers.

Just enough of HTTP/2 (RFC 9113) for calls that send one message and read many: a thousand readers
through grpc.aio take more of two processors than the server that tells them.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Mapping
from typing import Final

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 4, 6, 7, 8
_END_STREAM: Final = 1
_ACK: Final = 1
_END_HEADERS: Final = 4
_INITIAL_WINDOW: Final = 4
_ROOM_BYTES: Final = 1 << 30  # nothing ever waits for a reader
_FRAME_HEAD: Final = 9
_MESSAGE_HEAD: Final = 5
_LENGTH_SHORT: Final = 127

# Told of each message: which stream, when its bytes were there, and the message.
Told = Callable[[int, float, bytes], None]


class Connection(asyncio.Protocol):
    """One connection with many calls; streams are numbered as their calls were opened."""

    def __init__(self, told: Told) -> None:
        self.ended: dict[int, None] = {}
        self._told = told
        self._streams: dict[int, tuple[int, bytearray]] = {}  # by HTTP/2's number
        self._rest = bytearray()
        self._next = 1
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, and give the server all the room that there is."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = struct.pack(">HI", _INITIAL_WINDOW, _ROOM_BYTES)
        transport.write(_PREFACE + _frame(_SETTINGS, 0, 0, settings))
        transport.write(_frame(_WINDOW, 0, 0, struct.pack(">I", _ROOM_BYTES)))

    def open(self, number: int, method: str, headers: Mapping[str, str], request: bytes) -> None:
        """Begin a call whose messages are told under this number."""
        assert self._transport is not None
        stream, self._next = self._next, self._next + 2
        self._streams[stream] = (number, bytearray())
        head = {
            ":method": "POST",
            ":scheme": "http",
            ":path": method,
            ":authority": "bench",
            "content-type": "application/grpc",
            "te": "trailers",
            **headers,
        }
        fields = b"".join(b"\0" + _text(name) + _text(value) for name, value in head.items())
        message = struct.pack(">BI", 0, len(request)) + request
        self._transport.write(
            _frame(_HEADERS, _END_HEADERS, stream, fields)
            + _frame(_DATA, _END_STREAM, stream, message)
        )

    def close(self) -> None:
        """Hang up; the server ends what is open."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take what came, frame by frame."""
        at = time.time()
        rest = self._rest
        rest += data
        begin = 0
        while len(rest) - begin >= _FRAME_HEAD:
            size = int.from_bytes(rest[begin : begin + 3], "big")
            end = begin + _FRAME_HEAD + size
            if len(rest) < end:
                break
            kind, flags = rest[begin + 3], rest[begin + 4]
            stream = int.from_bytes(rest[begin + 5 : begin + _FRAME_HEAD], "big")
            self._take(kind, flags, stream, bytes(rest[begin + _FRAME_HEAD : end]), at)
            begin = end
        del rest[:begin]

    def _take(self, kind: int, flags: int, stream: int, body: bytes, at: float) -> None:
        assert self._transport is not None
        if kind == _DATA:
            number, held = self._streams[stream]
            held += body
            while len(held) >= _MESSAGE_HEAD:
                end = _MESSAGE_HEAD + int.from_bytes(held[1:_MESSAGE_HEAD], "big")
                if len(held) < end:
                    break
                self._told(number, at, bytes(held[_MESSAGE_HEAD:end]))
                del held[:end]
        elif kind in {_SETTINGS, _PING} and not flags & _ACK:
            self._transport.write(_frame(kind, _ACK, 0, body if kind == _PING else b""))
        elif kind == _GOAWAY:
            raise ConnectionError(body)
        if kind in {_DATA, _HEADERS} and flags & _END_STREAM:
            self.ended[self._streams[stream][0]] = None


async def connect(address: str, told: Told) -> Connection:
    """Connect to `host:port`, without TLS."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    _, made = await loop.create_connection(lambda: Connection(told), host, int(port))
    return made


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + body


def _text(value: str) -> bytes:
    """Write a text as HPACK has it (RFC 7541), neither packed nor remembered."""
    raw = value.encode("ascii")
    if len(raw) < _LENGTH_SHORT:
        return bytes([len(raw)]) + raw
    size, more = bytearray([_LENGTH_SHORT]), len(raw) - _LENGTH_SHORT
    while more >= 128:
        size.append(more % 128 | 128)
        more //= 128
    return bytes([*size, more]) + raw
