"""How much of a stream arrives before anybody reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from qflow.client.connection import Connection
from qflow.client.contexts import Context

from tests.support.late import late

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
    async with late(f"127.0.0.1:{port}") as address:
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
    await server.stop(0)
    assert 400 == read
    assert ahead < 20
