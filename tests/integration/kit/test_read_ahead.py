"""How much of a stream arrives at a service before it reads, and at one that asks another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from services.kit.rpc.channel import open_channel
from tests.integration.kit.conftest import USER, Service
from tests.support.late import late

COUNT = 400
AHEAD_MAX = 20
BLOB = bytes(1 << 20)
BEARER = (("authorization", f"Bearer {USER}"),)


async def test_what_a_service_reads_slowly_does_not_gather_in_its_memory(service: Service) -> None:
    sent = 0
    slow = Slow(lambda: sent)

    async def notes() -> AsyncIterator[Any]:
        nonlocal sent
        for sent in range(1, COUNT + 1):  # noqa: B007  # read while it grows
            yield service.pb.Note(blob=BLOB)

    async def collect(request: Any, _context: Any) -> Any:
        async for _ in request:
            await slow.read()
        return service.pb.Note()

    service.behaviors.unary = collect
    async with late(service.server.address) as address, grpc.aio.insecure_channel(address) as far:
        await service.stubs.grpc.KitTestServiceStub(far).Collect(notes(), metadata=BEARER)
    assert slow.count == COUNT
    assert slow.ahead < AHEAD_MAX


async def test_what_a_service_is_answered_does_not_gather_in_its_memory(service: Service) -> None:
    sent = 0
    slow = Slow(lambda: sent)

    async def count(_request: Any, _context: Any) -> AsyncIterator[Any]:
        nonlocal sent
        for sent in range(1, COUNT + 1):  # noqa: B007  # read while it grows
            yield service.pb.Note(blob=BLOB)

    service.behaviors.stream = count
    async with late(service.server.address) as address, open_channel(address, USER) as channel:
        async for _ in service.stubs.grpc.KitTestServiceStub(channel).Count(service.pb.Note()):
            await slow.read()
    assert slow.count == COUNT
    assert slow.ahead < AHEAD_MAX


class Slow:
    """Reads fast at first, so that gRPC learns to send much; then it pauses."""

    def __init__(self, sent: Any) -> None:
        self.count = self.ahead = 0
        self._sent = sent

    async def read(self) -> None:
        """Take one, and see how many more were sent by now."""
        self.count += 1
        if self.count > 100 and self.count % 20 == 0:
            await asyncio.sleep(0.05)
            self.ahead = max(self.ahead, self._sent() - self.count)
