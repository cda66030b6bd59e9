"""A link between two processes that stalls, holds what it is given, and breaks, as a test says.

What a network loses or reorders TCP sends again and puts in order: its two ends see bytes that come
late, in one direction or both, or a connection that is gone. That is what is made here.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal

Way = Literal["up", "down"]
_CHUNK_BYTES: Final = 4096


class Link:
    """Listens in place of a target and passes on what comes, as long as it is told to."""

    def __init__(self, target: str, chance: random.Random) -> None:
        self.address = ""
        self.stall_s_max = 0.0
        self.resets = 0
        self._target = target
        self._chance = chance
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._ends: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.heal()

    def hold(self, *ways: Way) -> None:
        """Let nothing through any more, towards the target (`up`) or from it."""
        for way in ways:
            self._open[way].clear()

    def heal(self) -> None:
        """Let everything through again, what was held first."""
        for event in self._open.values():
            event.set()

    def lead(self, target: str) -> None:
        """Let those who connect from now on reach another target."""
        self._target = target

    def reset(self) -> None:
        """Break every connection, for both of its ends at once."""
        self.resets += 1
        for end in list(self._ends):
            sock: socket.socket = end.get_extra_info("socket")
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()

    @classmethod
    @asynccontextmanager
    async def to(cls, target: str, *, seed: int = 1) -> AsyncIterator[Link]:
        """Hold a link to a target inside the block: `host:port`, or `unix:` and a path."""
        link = cls(target, random.Random(seed))
        server = await asyncio.start_server(link._joined, "127.0.0.1", 0)
        link.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield link
        finally:
            server.close()
            link.reset()
            for pump in link._pumps:
                pump.cancel()
            await asyncio.gather(*link._pumps, return_exceptions=True)

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._target.startswith("unix:"):
                path = self._target.removeprefix("unix:")
                far_reader, far_writer = await asyncio.open_unix_connection(path)
            else:
                host, port = self._target.rsplit(":", 1)
                far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._ends |= {writer, far_writer}
        pumps = {
            asyncio.ensure_future(self._pump("up", reader, far_writer)),
            asyncio.ensure_future(self._pump("down", far_reader, writer)),
        }
        self._pumps |= pumps
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, far_writer):
            end.transport.abort()
            self._ends.discard(end)
        for pump in pumps:
            pump.cancel()
        self._pumps -= pumps

    async def _pump(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                await self._open[way].wait()
                if self.stall_s_max:
                    await asyncio.sleep(self._chance.uniform(0, self.stall_s_max))
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass  # the connection broke: that is what it is for
