"""A lane: a unix socket for the messages of a gRPC stream whose ends are on one machine.

gRPC takes some 170 µs to encode, transport and decode a message, a socket less than half. So the
stream identifies the peer and is the session; its messages may take this faster way. Each message
is preceded by its length.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, cast

import structlog

from services.kit.rpc.listener import MESSAGE_BYTES_MAX, UNIX_PATH_BYTES_MAX

log = structlog.get_logger()

SECRET_BYTES: Final = 32
# How much may be unread at the other end before senders have to wait.
UNREAD_BYTES_MAX: Final = 256 * 1024
_LENGTH: Final = struct.Struct("!I")
_ENTER_S: Final = 2.0
_LINGER_S: Final = 1.0

Take = Callable[[bytes], None]


class LaneLost(Exception):  # noqa: N818 - it ends a session, and nothing else
    """The lane has ended, or must end because of a bad message."""


class Lane(asyncio.Protocol):
    """One end of a lane. Received messages are bounded, and delivered in the loop's callback."""

    def __init__(self, take: Take, *, bytes_max: int) -> None:
        """`take` gets each message, of at most `bytes_max`; if it raises, the lane ends."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.fault: Exception | None = None  # set if a received message ended the lane
        self._take = take
        self._bytes_max = bytes_max
        self._received = bytearray()
        self._holds = False
        self._room = asyncio.Event()
        self._room.set()
        self._transport: asyncio.Transport | None = None

    # --- sending --------------------------------------------------------------------------------

    async def send(self, message: bytes) -> None:
        """Send a message, and wait while too much is unread; raises LaneLost."""
        self.put(message)
        if not self._room.is_set():
            await self._room.wait()
            if self.ended.done():
                raise self._lost()

    def put(self, message: bytes) -> None:
        """Send a message without waiting, however much is unread; raises LaneLost."""
        if self._transport is None or self.ended.done():
            raise self._lost()
        if len(message) > MESSAGE_BYTES_MAX:
            raise LaneLost(f"a message of {len(message)} bytes; {MESSAGE_BYTES_MAX} at most")
        self._transport.write(_framed(message))

    def put_at_once(self, messages: Sequence[bytes]) -> bool:
        """Send messages if that needs no waiting; return whether they were sent."""
        if self._transport is None or self.ended.done() or not self._room.is_set():
            return False
        if any(len(each) > MESSAGE_BYTES_MAX for each in messages):
            return False
        self._transport.write(b"".join([_framed(each) for each in messages]))
        return True

    def end(self, fault: Exception | None = None) -> None:
        """Close the lane and receive nothing more; sent data is flushed for at most a second."""
        if self.ended.done():
            return
        self.fault = fault
        self.ended.set_result(None)
        self._room.set()
        self._received.clear()
        if self._transport is not None:
            self._transport.close()
            asyncio.get_running_loop().call_later(_LINGER_S, self._transport.abort)

    # --- receiving ------------------------------------------------------------------------------

    def listen(self, take: Take, *, bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        """Deliver received messages to another function from now on."""
        self._take, self._bytes_max = take, bytes_max
        self.go_on()

    def hold(self) -> None:
        """Pause delivery: unread data makes the other end wait."""
        self._holds = True
        if self._transport is not None and not self.ended.done():
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Resume delivery."""
        self._holds = False
        if self._transport is not None and not self.ended.done():
            self._transport.resume_reading()
            self._hand_on()

    def _hand_on(self) -> None:
        received, at = self._received, 0
        while not self._holds and len(received) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(received, at)
            begin, at_next = at + _LENGTH.size, at + _LENGTH.size + length
            if length > self._bytes_max:
                self.end(LaneLost(f"a message of {length} bytes came; {self._bytes_max} at most"))
                return
            if len(received) < at_next:
                break
            message, at = bytes(memoryview(received)[begin:at_next]), at_next
            try:
                self._take(message)
            except Exception as problem:  # noqa: BLE001 - it becomes the lane's fault
                self.end(problem)
            if self.ended.done():
                return
        del received[:at]

    # --- the protocol's callbacks ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=UNREAD_BYTES_MAX)

    def data_received(self, data: bytes) -> None:
        """Deliver the complete messages."""
        if not self.ended.done():
            self._received += data
            self._hand_on()

    def pause_writing(self) -> None:
        """Make senders wait."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Let senders continue."""
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the protocol's
        """End the lane."""
        self.end()

    def _lost(self) -> LaneLost:
        return LaneLost(str(self.fault or "the lane has ended"))


def _framed(message: bytes) -> bytes:
    return _LENGTH.pack(len(message)) + message


@dataclass(slots=True)
class Place:
    """A place reserved for one lane, taken by whoever presents its key."""

    path: str
    key: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)
    answer: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)
    lane: Lane | None = None  # once connected; it delivers nothing before `listen`


class Lanes:
    """Accepts lanes on a socket that only this user's processes can reach, by reserved keys."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._awaited: dict[bytes, Place] = {}
        self._server: asyncio.AbstractServer | None = None

    @classmethod
    async def open(cls, path: Path, *, wanted: bool = True) -> Self:
        """Listen on a socket; without lanes if they are not wanted, or if that fails."""
        lanes = cls(path)
        if wanted:
            loop = asyncio.get_running_loop()
            try:
                lanes._server = await loop.create_unix_server(lanes._meet, sock=_bound(path))
            except OSError as problem:
                log.warning("lanes_missing", path=str(path), cause=str(problem))
        return lanes

    def promise(self) -> Place | None:
        """Reserve a place for a peer that is told its key; None if there are no lanes."""
        if self._server is None:
            return None
        place = Place(str(self._path))
        self._awaited[place.key] = place
        return place

    def withdraw(self, place: Place) -> None:
        """Cancel a reservation, and end its lane."""
        self._awaited.pop(place.key, None)
        if place.lane is not None:
            place.lane.end()

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    def _meet(self) -> Lane:
        """Accept a connection, which must present a key within a moment."""

        def show(key: bytes) -> None:
            place = self._awaited.pop(key, None)
            if place is None:
                log.warning("lane_refused", cause="a key that nobody was given, or that was used")
                lane.end()
                return
            late.cancel()
            lane.hold()
            lane.put(place.answer)
            place.lane = lane

        lane = Lane(show, bytes_max=SECRET_BYTES)
        late = asyncio.get_running_loop().call_later(_ENTER_S, lane.end)
        return lane


def _bound(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise OSError(f"{path} is longer than {UNIX_PATH_BYTES_MAX} bytes")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # left behind by a process that was killed
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.bind(str(path))
        path.chmod(0o600)  # before it listens: so nobody else can ever connect
    except OSError:
        bound.close()
        raise
    return bound


async def enter(path: str, key: bytes, answer: bytes) -> Lane | None:
    """Connect to a lane, which delivers nothing before `listen`; None if it cannot be reached.

    It cannot from another machine, from a container without the folder, or as another user.
    """
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[bytes] = loop.create_future()

    def hear(message: bytes) -> None:
        lane.hold()
        answered.set_result(message)

    lane = Lane(hear, bytes_max=SECRET_BYTES)
    entered = False
    try:
        with contextlib.suppress(OSError, ValueError, TimeoutError, LaneLost):
            async with asyncio.timeout(_ENTER_S):
                await loop.create_unix_connection(lambda: lane, path)
                lane.put(key)
                either: set[asyncio.Future[Any]] = {answered, lane.ended}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            # Someone else's socket may be at this path on this machine; it does not know the
            # answer.
            entered = answered.done() and secrets.compare_digest(answered.result(), answer)
    finally:
        if not entered:
            lane.end()
    return lane if entered else None
