"""A collector of traces in this process: what a suite told, in the order in which it came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc


@dataclass(frozen=True)
class Span:
    """One span with the service that told of it."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    kind: int
    began_ns: int
    ended_ns: int
    fault: str
    facts: dict[str, Any]


@dataclass
class Collector:
    """Where spans come together."""

    endpoint: str
    spans: list[Span] = field(default_factory=list)
    came: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, enough: Callable[[list[Span]], bool]) -> list[Span]:
        """Wait until there are those that are wanted."""
        async with asyncio.timeout(60):
            while not enough(self.spans):
                self.came.clear()
                await self.came.wait()
        return self.spans


class _Servicer(pb_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    async def Export(  # noqa: N802  # the contract's name
        self, request: pb.ExportTraceServiceRequest, _context: Any
    ) -> pb.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            named = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self._collector.spans += [
                    _span(named["service.name"], each) for each in scope.spans
                ]
        self._collector.came.set()
        return pb.ExportTraceServiceResponse()


def _span(service: str, span: Any) -> Span:
    facts = {each.key: each.value.int_value or each.value.string_value for each in span.attributes}
    return Span(
        service=service,
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=span.kind,
        began_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        fault=span.status.message,
        facts=facts,
    )


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Run a collector meanwhile."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    collector = Collector(f"http://127.0.0.1:{port}")
    add: Any = pb_grpc.add_TraceServiceServicer_to_server  # its stubs are not typed
    add(_Servicer(collector), server)
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(0)
