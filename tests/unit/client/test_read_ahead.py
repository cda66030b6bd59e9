"""How much of a stream arrives before anybody reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc
from qflow.client.connection import Connection
from qflow.client.contexts import Context

MIB = 1 << 20


async def test_a_stream_that_is_read_slowly_does_not_gather_in_memory() -> None:
    """Also of one that is fast and far: gRPC's own estimate of what to ask for grows there."""
    sent = 0

    async def all_of_it(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        nonlocal sent
        for sent in range(1, 401):  # noqa: B007  # the test looks at it
            yield bytes(MIB)

    server = grpc.aio.server()
    handler: Any = grpc.unary_stream_rpc_method_handler(all_of_it)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("it", {"All": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    relay = await asyncio.start_server(partial(_late, port), "127.0.0.1", 0)
    address = f"127.0.0.1:{relay.sockets[0].getsockname()[1]}"
    context = Context(registry=address, orchestrator=address, runner=address, telemetry=address)
    connection = Connection(context)
    everything: Any = connection.channel("runner").unary_stream("/it/All")
    read = ahead = 0
    async for _ in connection.stream(everything, b""):
        read += 1
        if read > 100 and read % 20 == 0:
            await asyncio.sleep(0.05)
            ahead = max(ahead, sent - read)
    await connection.close()
    relay.close()
    await server.stop(0)
    assert 400 == read
    assert ahead < 20


async def _late(port: int, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
    """Pass everything on, both ways, a while after it came."""
    far, there = await asyncio.open_connection("127.0.0.1", port)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(MIB):
            asyncio.get_running_loop().call_later(0.02, writer.write, chunk)
        writer.close()

    await asyncio.gather(pump(near, there), pump(far, back))
