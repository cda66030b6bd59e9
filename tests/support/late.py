"""A connection that takes its time: what goes through it arrives later, and just as fast."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

_CHUNK_BYTES = 1 << 20
_LATER_S = 0.02


@asynccontextmanager
async def late(address: str) -> AsyncIterator[str]:
    """Give an address that leads to another, 20 ms later each way."""
    relay = await asyncio.start_server(partial(_pass, address), "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{relay.sockets[0].getsockname()[1]}"
    finally:
        relay.close()


async def _pass(address: str, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
    host, _, port = address.rpartition(":")
    far, there = await asyncio.open_connection(host, int(port))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            asyncio.get_running_loop().call_later(_LATER_S, writer.write, chunk)
        writer.close()

    await asyncio.gather(pump(near, there), pump(far, back))
