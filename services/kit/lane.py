"""A lane: messages of a held stream that travel beside it, over a unix socket of one machine.

gRPC takes some 170 µs to make a message, bring it to another process and read it, a socket less
than half of that. So the stream says who is there, and is the session; what is said in it may go
this shorter way. Each message stands behind its length.
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
# What may wait to be read at the other end before who writes is held back.
UNREAD_BYTES_MAX: Final = 256 * 1024
_LENGTH: Final = struct.Struct("!I")
_ENTER_S: Final = 2.0
_LINGER_S: Final = 1.0

Take = Callable[[bytes], None]


class LaneLost(Exception):  # noqa: N818 - it ends a session, and nothing else
    """The lane has ended, or is to end for what came or should go by it."""


class Lane(asyncio.Protocol):
    """One end. Whatever comes is bounded, and handed on in the loop's own callback."""

    def __init__(self, take: Take, *, bytes_max: int) -> None:
        """`take` gets the messages, each of so many bytes at most; what it raises ends the lane."""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.fault: Exception | None = None  # what was wrong with what came, where that ended it
        self._take = take
        self._bytes_max = bytes_max
        self._received = bytearray()
        self._holds = False
        self._room = asyncio.Event()
        self._room.set()
        self._transport: asyncio.Transport | None = None

    # --- saying ---------------------------------------------------------------------------------

    async def send(self, message: bytes) -> None:
        """Write a message, and wait while too much is unread; raises LaneLost."""
        self.put(message)
        if not self._room.is_set():
            await self._room.wait()
            if self.ended.done():
                raise self._lost()

    def put(self, message: bytes) -> None:
        """Write a message, however much waits; raises LaneLost."""
        if self._transport is None or self.ended.done():
            raise self._lost()
        if len(message) > MESSAGE_BYTES_MAX:
            raise LaneLost(f"a message of {len(message)} bytes; {MESSAGE_BYTES_MAX} at most")
        self._transport.write(_framed(message))

    def put_at_once(self, messages: Sequence[bytes]) -> bool:
        """Write messages if none has to wait and all can be; whether it did."""
        if self._transport is None or self.ended.done() or not self._room.is_set():
            return False
        if any(len(each) > MESSAGE_BYTES_MAX for each in messages):
            return False
        self._transport.write(b"".join([_framed(each) for each in messages]))
        return True

    def end(self, fault: Exception | None = None) -> None:
        """Close it, and hear nothing more; what was written still goes, for a second at most."""
        if self.ended.done():
            return
        self.fault = fault
        self.ended.set_result(None)
        self._room.set()
        self._received.clear()
        if self._transport is not None:
            self._transport.close()
            asyncio.get_running_loop().call_later(_LINGER_S, self._transport.abort)

    # --- hearing --------------------------------------------------------------------------------

    def listen(self, take: Take, *, bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        """Hand on what comes to another from now on."""
        self._take, self._bytes_max = take, bytes_max
        self.go_on()

    def hold(self) -> None:
        """Hand nothing on: what is not read holds the other end back."""
        self._holds = True
        if self._transport is not None and not self.ended.done():
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Hand on again."""
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
            except Exception as problem:  # noqa: BLE001 - who waits for the end is told of it
                self.end(problem)
            if self.ended.done():
                return
        del received[:at]

    # --- what the loop tells --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=UNREAD_BYTES_MAX)

    def data_received(self, data: bytes) -> None:
        """Hand on the messages that are whole."""
        if not self.ended.done():
            self._received += data
            self._hand_on()

    def pause_writing(self) -> None:
        """Hold back who writes."""
        self._room.clear()

    def resume_writing(self) -> None:
        """Let them go on."""
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the loop's
        """Tell that it is over."""
        self.end()

    def _lost(self) -> LaneLost:
        return LaneLost(str(self.fault or "the lane has ended"))


def _framed(message: bytes) -> bytes:
    return _LENGTH.pack(len(message)) + message


@dataclass(slots=True)
class Place:
    """A place for one lane: whoever shows its key has it."""

    path: str
    key: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)
    answer: bytes = field(default_factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)
    lane: Lane | None = None  # once somebody has come; it hands nothing on before `listen`


class Lanes:
    """Where lanes begin: a socket that only this user's processes reach, and who may come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._awaited: dict[bytes, Place] = {}
        self._server: asyncio.AbstractServer | None = None

    @classmethod
    async def open(cls, path: Path, *, wanted: bool = True) -> Self:
        """Listen; where that is not wanted or cannot be, there are no lanes."""
        lanes = cls(path)
        if wanted:
            loop = asyncio.get_running_loop()
            try:
                lanes._server = await loop.create_unix_server(lanes._meet, sock=_bound(path))
            except OSError as problem:
                log.warning("lanes_missing", path=str(path), cause=str(problem))
        return lanes

    def promise(self) -> Place | None:
        """Have a place for whoever is told its key; None where there are no lanes."""
        if self._server is None:
            return None
        place = Place(str(self._path))
        self._awaited[place.key] = place
        return place

    def withdraw(self, place: Place) -> None:
        """Let nobody come there any more, and end the lane of whoever has."""
        self._awaited.pop(place.key, None)
        if place.lane is not None:
            place.lane.end()

    def close(self) -> None:
        """Listen no longer."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    def _meet(self) -> Lane:
        """Wait a moment for the key: until then it is nobody's lane."""

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
    path.unlink(missing_ok=True)  # of one that was killed
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.bind(str(path))
        path.chmod(0o600)  # before it listens: until then nobody gets in
    except OSError:
        bound.close()
        raise
    return bound


async def enter(path: str, key: bytes, answer: bytes) -> Lane | None:
    """Come to a lane, which hands nothing on before `listen`; None where it is not reached.

    So it is on another machine, in a container without the folder, and for another user.
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
            # Another's socket may stand at that path on this machine, and does not know this.
            entered = answered.done() and secrets.compare_digest(answered.result(), answer)
    finally:
        if not entered:
            lane.end()
    return lane if entered else None
