"""What comes over the wire and is no call, to each service as it runs.

Why each is answered so is tried on a service of the tests' own (`tests/integration/kit`); here,
that no service was put together without it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import pytest

from tests.contracts.test_every_rpc import SERVICES, Rpc, every_rpc
from tests.support.suite import Suite

_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
_UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
_MIB = 1 << 20
_STREAMS = 1_200
# A unary call of each service that every caller may make, and one that needs a field.
_READS = {
    "registry": "/qflow.registry.v1.NodeService/ListNodes",
    "orchestrator": "/qflow.orchestrator.v1.ExecutionService/ListExecutions",
    "runner": "/qflow.runner.v1.FileService/ListFiles",
    "telemetry": "/qflow.telemetry.v1.TelemetryService/ListErrors",
}
_NEEDS = {
    "registry": "/qflow.registry.v1.NodeService/GetNode",
    "orchestrator": "/qflow.orchestrator.v1.ExecutionService/GetExecution",
    "runner": "/qflow.runner.v1.FileService/GetFile",
    "telemetry": "/qflow.telemetry.v1.MetricService/RecordMetrics",
}
_WIRE = {
    "B2": (b"\x0a\x05ab", _INVALID),
    "B3": (b"\x0a\x02\xff\xfe\x12\x02\xff\xfe", _INVALID),
    "B4": (b"\x0b" * 10_000 + b"\x0c" * 10_000, _INVALID),  # groups, which any message may hold
    "B5": (bytes(5 * _MIB), _EXHAUSTED),
}


async def _code(channel: grpc.aio.Channel, path: str, raw: bytes, **more: Any) -> grpc.StatusCode:
    method: Any = channel.unary_unary(path)
    try:
        async with asyncio.timeout(60):
            await method(raw, **{"timeout": 45, **more})
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.fixture
async def rpcs(suite: Suite) -> list[Rpc]:
    return await every_rpc(suite)


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_refuses_what_is_no_message_of_its_own(suite: Suite, service: str) -> None:
    """B1-B7, B9, B10, B12: with the right code, and goes on."""
    read, needs = _READS[service], _NEEDS[service]
    async with suite.channel(service) as channel:
        assert grpc.StatusCode.OK == await _code(channel, read, b"")
        assert _INVALID == await _code(channel, needs, b"")
        for name, (raw, expected) in _WIRE.items():
            assert expected == await _code(channel, read, raw), name
        packed = {"compression": grpc.Compression.Gzip}
        assert _EXHAUSTED == await _code(channel, read, bytes(50 * _MIB), **packed)
        nothing = f"{read.rpartition('/')[0]}/Nothing"
        assert _UNIMPLEMENTED == await _code(channel, nothing, b"")
        assert grpc.StatusCode.OK == await _code(channel, read, b"\xfa\x3e\x03abc")
        long = {"metadata": (("x-long", "a" * 20_000),)}
        assert _EXHAUSTED == await _code(channel, read, b"", **long)
        assert grpc.StatusCode.OK == await _code(channel, read, b"", timeout=None)
        assert grpc.StatusCode.OK == await _code(channel, read, b"")


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_outlives_streams_without_number_and_clients_that_vanish(
    suite: Suite, service: str, rpcs: list[Rpc]
) -> None:
    """B14, B15, B16: calls that are begun and say nothing, and are gone in their middle."""
    address = suite.endpoints[service]
    streams = [rpc for rpc in rpcs if rpc.address == address and rpc.kind != "unary_unary"]
    paths = [(rpc.path, rpc.kind) for rpc in streams] or [(_READS[service], "stream_unary")]
    # On a connection of its own: channels of one process to one address share theirs.
    alone = [("grpc.use_local_subchannel_pool", 1)]
    bearer = [("authorization", f"Bearer {suite.owner_token}")]
    async with grpc.aio.insecure_channel(address, options=alone) as crowd:
        begun = []
        for number in range(_STREAMS):
            path, kind = paths[number % len(paths)]
            method: Any = getattr(crowd, kind)(path)
            begun.append(
                method(timeout=30, metadata=bearer)
                if kind.startswith("stream")
                else method(b"", timeout=30, metadata=bearer)
            )
        async with suite.channel(service) as other:
            assert grpc.StatusCode.OK == await _code(other, _READS[service], b"")
        for call in begun[::2]:
            call.cancel()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            await crowd.close(0)  # the others vanish with their connection
    async with suite.channel(service) as other:
        assert grpc.StatusCode.OK == await _code(other, _READS[service], b"")
